"""Progress of long work: a live bar on a terminal, plain lines in a log.

    with Progress("generate", total=1000) as progress:
        progress.advance(done=10, failed=1)

Both show studies done, failed, per second and time left.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

LINE_EVERY_S = 10.0
STEADY_S = 5.0

console = Console(stderr=True, highlight=False, soft_wrap=True)


def log(message: str) -> None:
    """One plain line for a person; never report text, never a DICOM field that names a person."""
    console.print(message, markup=False)


def on_terminal() -> bool:
    """Whether a line may be drawn again: not in a pipe or a log, nor on a terminal without cursor movements."""
    return console.is_terminal and not console.is_dumb_terminal


class Progress:
    """A bar on a terminal, a line every ten seconds elsewhere. `start` counts work that an earlier run did."""

    def __init__(self, job: str, total: int | None, *, unit: str = "studies", start: int = 0):
        self.job, self.total, self.unit = job, total, unit
        self.done, self.failed, self.skipped = start, 0, start
        self.began = self._last_line = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._bar: Bar | None = None
        if on_terminal():
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task(job, total=total, completed=start, note="")

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        if self.done > self.skipped or not self._bar:
            self._line()

    @property
    def rate(self) -> float:
        """Units per second of this run."""
        return (self.done - self.skipped) / max(time.monotonic() - self.began, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """At the pace since the first units came; None before that pace is known. Start-up says nothing of it."""
        if self.total is None or self._first is None:
            return None
        since, done = time.monotonic() - self._first[0], self.done - self._first[1]
        if self.done >= self.total:
            return 0.0
        return (self.total - self.done) * since / done if done > 0 and since >= STEADY_S else None

    def advance(self, done: int = 1, failed: int = 0) -> None:
        """`done` more units are finished, `failed` of them without success."""
        self.done += done
        self.failed += failed
        self._first = self._first or (time.monotonic(), self.done)
        if self._bar:
            note = f"{self.rate:.1f} {self.unit}/s" + (f", {self.failed} failed" if self.failed else "")
            self._bar.update(self._task, completed=self.done, note=note)
        elif time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._line()

    def _line(self) -> None:
        self._last_line = time.monotonic()
        left = "" if self.seconds_left is None else f", {self.seconds_left:.0f} s left"
        of = f"/{self.total}" if self.total is not None else ""
        print(
            f"{self.job}: {self.done}{of} {self.unit}, {self.failed} failed, {self.rate:.1f}/s{left}",
            file=sys.stderr,
            flush=True,
        )
