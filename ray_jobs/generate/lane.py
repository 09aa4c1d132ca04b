"""Shards through one run of the model, one behind the other: its slots stay full across their borders.

    lane = Lane(writer, following)                 # `following()` gives the next ShardWork, or None
    for work in lane.finished():
        predictions.write_shard(work.number, work.rows(…))

A shard's file still appears by itself, as soon as the last of its reports is written.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from megpt.data.studies import Listed
from megpt.study import Study

if TYPE_CHECKING:
    from megpt.generation.image_text import ImageTextWriter
    from megpt.generation.writer import Films, Prediction, ReportWriter


@dataclass(eq=False)
class ShardWork:
    """A shard under way.

    Args:
        films: of its studies, in the list's order.
        tell: is told of each study: None, or why it failed.
    """

    number: int
    listed: list[Listed]
    films: Iterator[tuple[Study, Films]]
    tell: Callable[[str | None], None]
    written: list[Prediction] = field(default_factory=list)
    context: dict[str, int] = field(default_factory=dict)
    """What has become of the prompts' context since the shard before it was finished."""
    seconds: float = 0.0
    """From the end of the shard that was finished before it."""
    waited: float = 0.0
    """In these, how long the model had no films."""
    error: Exception | None = None
    _done: threading.Event = field(default_factory=threading.Event)

    def end(self, error: Exception | None = None) -> None:
        """Whoever waits in `result` goes on."""
        self.error = error
        self._done.set()

    def result(self) -> None:
        """Wait for the end.

        Raises:
            Exception: what ended the run of the model.
        """
        self._done.wait()
        if self.error is not None:
            raise self.error


class Lane:
    """One run of the model over shards, until there is no further one.

    Args:
        following: called when the films of a shard have all been taken, from another thread than `finished`.
        seen: called with each report.
    """

    def __init__(
        self,
        writer: ReportWriter | ImageTextWriter,
        following: Callable[[], ShardWork | None],
        seen: Callable[[Prediction], None] = lambda prediction: None,
    ):
        self.writer, self.following, self.seen = writer, following, seen
        self.open: dict[int, ShardWork] = {}
        """The shards under way, in their order."""
        self._of: dict[str, ShardWork] = {}

    def finished(self) -> Iterator[ShardWork]:
        """The shards, each when its last report is written."""
        began = time.monotonic()
        self.writer.context_counts.clear()
        self.writer.waited = 0.0
        for prediction in self.writer.write(self._films()):
            work = self._of.pop(prediction.study.study_id)
            work.written.append(prediction)
            work.tell(prediction.error)
            self.seen(prediction)
            if len(work.written) < len(work.listed):
                continue
            work.seconds, work.waited = time.monotonic() - began, self.writer.waited
            work.context = dict(self.writer.context_counts)
            began, self.writer.waited = time.monotonic(), 0.0
            self.writer.context_counts.clear()
            del self.open[work.number]
            yield work

    def _films(self) -> Iterator[tuple[Study, Films]]:
        while (work := self.following()) is not None:
            self.open[work.number] = work
            self._of |= {entry.study.study_id: work for entry in work.listed}
            yield from work.films


class LaneThread:
    """A lane in a thread of its own, for shards that come at any time; it runs as long as there are any."""

    def __init__(self, lane: Callable[[Callable[[], ShardWork | None]], Lane]):
        self._lane, self._waiting = lane, queue.SimpleQueue[ShardWork]()
        threading.Thread(target=self._run, name="lane", daemon=True).start()

    def submit(self, work: ShardWork) -> ShardWork:
        """Have a shard written, behind those that were given before."""
        self._waiting.put(work)
        return work

    def _run(self) -> Any:
        while True:
            first: list[ShardWork] = [self._waiting.get()]
            lane = self._lane(lambda first=first: first.pop() if first else self._next())
            try:
                for work in lane.finished():
                    work.end()
            except BaseException as error:  # also SystemExit: a thread that ends would leave its callers waiting
                known = error if isinstance(error, Exception) else RuntimeError(type(error).__name__)
                for work in (*first, *lane.open.values()):
                    work.end(known)

    def _next(self) -> ShardWork | None:
        try:
            return self._waiting.get_nowait()
        except queue.Empty:
            return None
