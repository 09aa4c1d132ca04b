"""The command's view of a running training: the rows of log.jsonl as lines, under them a bar on a terminal."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

from megpt.progress import Progress, log, on_terminal
from megpt.training.log import line

LOOK_EVERY_S = 0.5


@contextlib.contextmanager
def watching(path: Path) -> Iterator[None]:
    """Follow a log.jsonl that workers append to, until the block ends."""
    stop = threading.Event()
    thread = threading.Thread(target=_follow, args=(Tail(path), stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class Tail:
    """Rows that were not there at the last look. A restarted group drops rows after its checkpoint and writes them
    again; those were shown already."""

    def __init__(self, path: Path):
        self.path, self._offset, self._seen = path, 0, -1.0
        for _ in self.rows():
            pass

    def rows(self) -> Iterator[dict[str, float]]:
        if not self.path.exists():
            return
        if self.path.stat().st_size < self._offset:
            self._offset = 0
        with self.path.open("rb") as file:
            file.seek(self._offset)
            for text in file:
                if not text.endswith(b"\n"):
                    break
                self._offset += len(text)
                with contextlib.suppress(ValueError):
                    row = json.loads(text)
                    # A validation has the step of the row before it.
                    place = row["step"] + (0.5 if "val_best_metric" in row else 0)
                    if place > self._seen:
                        self._seen = place
                        yield row


def _follow(tail: Tail, stop: threading.Event) -> None:
    with contextlib.ExitStack() as stack:
        bar: Progress | None = None
        while True:
            ending = stop.wait(LOOK_EVERY_S)
            for row in tail.rows():
                log(line(row))
                if on_terminal() and "total_steps" in row:
                    if bar is None:
                        bar = stack.enter_context(Progress("train", int(row["total_steps"]), unit="steps"))
                    bar.advance(int(row["step"]) - bar.done)
            if ending:
                return
