"""Progress of long work: a live bar on a terminal, plain lines in a log.

    with Progress("generate", total=1000) as progress:
        progress.in_flight({"part-000003": PieceCounts(40, Counter({"missing file": 1}))})
        progress.advance(50, {"missing file": 1}, piece="part-000003")                          # finished

Both show studies done, failed and why, per second and time left.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

from rich.console import Console

from megpt import events
from megpt.errors import printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

LINE_EVERY_S = 10.0
STEADY_S, PACE_OVER_S = 5.0, 120.0
NAMED = 3

console = Console(stderr=True, highlight=False, soft_wrap=True)


def log(message: str) -> None:
    """One plain line for a person; never report text, never a DICOM field that names a person."""
    events.emit("log", message=message)
    if events.for_people():
        console.print(printable(message), markup=False)


def on_terminal() -> bool:
    """Whether a line may be drawn again: not in a pipe or a log, nor on a terminal without cursor movements."""
    return console.is_terminal and not console.is_dumb_terminal


@dataclass
class PieceCounts:
    """Units of a piece of work that are done, and how many of them failed, by reason."""

    done: int = 0
    failed: Counter[str] = field(default_factory=Counter)


class Progress:
    """A bar on a terminal, a line every ten seconds elsewhere.

    Args:
        start: units that an earlier run did.
        failed: how many of those failed, by reason.
        live: each unit is counted when it is done, and not only when its piece is: no progress means a standstill.
    """

    current: ClassVar[Progress | None] = None
    """The one whose block is entered, for whoever watches."""

    def __init__(
        self,
        job: str,
        total: int | None,
        *,
        unit: str = "studies",
        start: int = 0,
        failed: Mapping[str, int] | None = None,
        live: bool = False,
    ):
        self.job, self.total, self.unit, self.live = job, total, unit, live
        self.done, self.skipped = start, start
        """Units of finished pieces; `seen` has those in flight too."""
        self._reasons = Counter(failed or {})
        self._failed = self._reasons.total()
        self._flying: dict[str, PieceCounts] = {}
        self._landed: set[str] = set()
        self._lock = threading.Lock()
        self._marks: deque[tuple[float, int]] = deque()
        self.began = self._last_line = time.monotonic()
        self._bar: Bar | None = None
        if on_terminal() and events.for_people():
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task(job, total=total, completed=start, note="")

    def __enter__(self) -> Progress:
        Progress.current = self
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        Progress.current = None
        if self._bar:
            self._bar.stop()
        self._tell(line=self.seen > self.skipped or not self._bar)

    @property
    def seen(self) -> int:
        """Units done, those of unfinished pieces included."""
        return self.done + sum(piece.done for piece in self._flying.values())

    @property
    def flying(self) -> list[str]:
        """The pieces that are not finished and have told of themselves."""
        return list(self._flying)

    @property
    def failed(self) -> int:
        """Units that failed, of `seen`."""
        return self._failed + sum(piece.failed.total() for piece in self._flying.values())

    @property
    def reasons(self) -> Counter[str]:
        """Failed units by reason, where that is known."""
        return sum((piece.failed for piece in self._flying.values()), self._reasons.copy())

    @property
    def rate(self) -> float:
        """Units per second of the last two minutes; of the whole run before there is a pace to tell."""
        if len(self._marks) > 1 and (since := time.monotonic() - self._marks[0][0]) >= STEADY_S:
            return (self.seen - self._marks[0][1]) / since
        return (self.seen - self.skipped) / max(time.monotonic() - self.began, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """At the pace of the last two minutes; None before there is one. Start-up says nothing of it."""
        if self.total is None or not self._marks:
            return None
        since, done = time.monotonic() - self._marks[0][0], self.seen - self._marks[0][1]
        if self.seen >= self.total:
            return 0.0
        return (self.total - self.seen) * since / done if done > 0 and since >= STEADY_S else None

    def advance(self, done: int = 1, failed: int | Mapping[str, int] = 0, *, piece: str = "") -> None:
        """`done` more units are finished, `failed` of them without success, a number or numbers by reason.

        Args:
            piece: what they were counted under while in flight.
        """
        reasons = Counter() if isinstance(failed, int) else Counter(failed)
        with self._lock:
            self.done += done
            self._failed += failed if isinstance(failed, int) else reasons.total()
            self._reasons.update(reasons)
            # another dict, since another thread may be counting this one
            self._flying = {name: counts for name, counts in self._flying.items() if name != piece}
            self._landed.add(piece)
        self._show()

    def in_flight(self, pieces: Mapping[str, PieceCounts]) -> None:
        """How far each piece has come that is not finished; those that are not named have not begun."""
        with self._lock:
            self._flying = {name: counts for name, counts in pieces.items() if name not in self._landed}
        self._show()

    def _show(self) -> None:
        seen, now = self.seen, time.monotonic()
        if not self._marks and seen == self.skipped:
            return
        # a mark a second is enough for a pace
        if not self._marks or now - self._marks[-1][0] >= 1:
            self._marks.append((now, seen))
        while len(self._marks) > 2 and now - self._marks[1][0] > PACE_OVER_S:
            self._marks.popleft()
        if self._bar:
            note = f"{self.rate:.1f} {self.unit}/s" + (f", {self._told_failed(1)}" if self.failed else "")
            self._bar.update(self._task, completed=seen, note=note)
        if now - self._last_line >= LINE_EVERY_S:
            self._tell(line=self._bar is None)

    def _told_failed(self, named: int) -> str:
        """`3 failed (2 × missing file, 1 × empty file)`"""
        reasons = self.reasons.most_common()
        told = [f"{count} × {printable(reason)}" for reason, count in reasons[:named]]
        told += [f"{len(reasons) - named} more reasons"] if len(reasons) > named else []
        return f"{self.failed} failed" + (f" ({', '.join(told)})" if told else "")

    def figures(self) -> dict[str, Any]:
        """What is known now, for an event."""
        left = self.seconds_left
        numbers = {"done": self.seen, "total": self.total, "unit": self.unit, "failed": self.failed}
        rates = {"rate": round(self.rate, 3), "seconds_left": None if left is None else round(left, 1)}
        return {"what": self.job, **numbers, "reasons": dict(self.reasons.most_common()), **rates}

    def _tell(self, *, line: bool) -> None:
        self._last_line = time.monotonic()
        events.emit("progress", **self.figures())
        if not (line and events.for_people()):
            return
        left = "" if self.seconds_left is None else f", {self.seconds_left:.0f} s left"
        of = f"/{self.total}" if self.total is not None else ""
        print(
            f"{self.job}: {self.seen}{of} {self.unit}, {self._told_failed(NAMED)}, {self.rate:.1f}/s{left}",
            file=sys.stderr,
            flush=True,
        )
