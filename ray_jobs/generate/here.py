"""The generate job in its command's own process, where one worker of this machine is all that is asked for.

The same shards, rules and files as on Ray. The main thread has the model, so Ctrl-C and SIGTERM stop it at once; films
are decoded by helper processes (ray_jobs/helpers.py), one shard ahead. A kill at any moment is as harmless as on Ray,
since a shard's file appears whole or not at all; a shortage of memory ends the command, not an actor of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from typing import Any

from megpt.config import Config
from megpt.data.studies import Listed
from megpt.generation.predictions import Predictions
from megpt.progress import PieceCounts
from ray_jobs.counting import Count
from ray_jobs.generate.lane import ShardWork
from ray_jobs.generate.worker import Pixels, ShardWorker, decode
from ray_jobs.helpers import HelperDied, Helpers
from ray_jobs.imports import uncollected
from ray_jobs.runtime import cores, worker_environment
from ray_jobs.telling import Teller


def written_here(
    config: Config,
    predictions: Predictions,
    shards: list[int],
    count: Count,
    *,
    archive: str,
    fingerprint: str,
    llm: str | None,
) -> Generator[dict[str, Any], None, None]:
    """Have shards written; a row of counts each, as `ShardWorker` gives it.

    Args:
        config: with absolute paths.
        count: shows how far a shard has come.
    """
    os.environ.update(worker_environment(config.cluster))
    with Helpers(decode, min(cores(), 1 + config.generate.decode_workers)) as helpers:
        helpers.warm()  # while torch is imported and the model read
        with uncollected():
            import torch
        threads = torch.get_num_threads()
        try:
            worker = LocalWorker(config, predictions, shards, archive, fingerprint, llm, helpers, count)
            yield from worker.written()
        finally:
            torch.set_num_threads(threads)
            count.progress.in_flight({})


class _Here(Teller):
    """Tells the count itself: both are in this process, in which nobody else would look."""

    def __init__(self, count: Count, piece: str, under_way: dict[str, PieceCounts]):
        super().__init__(count.run, piece)
        self.count, self.under_way = count, under_way

    def tell(self) -> None:
        self.under_way[self.piece] = self.counts
        self.count.progress.in_flight(self.under_way)
        self.count.check()


class _Unmeasured:
    """In the place of `ray_jobs.metrics.WriterMetrics`: Prometheus asks Ray, and there is none."""

    def wrote(self, tokens: int, *, used: int | None, slots: int) -> None: ...

    def waited(self, seconds: float) -> None: ...


class LocalWorker(ShardWorker):
    """Writes shards one after another, in the order in which it is given them.

    Args:
        helpers: of `decode`.
        count: of the command itself, which is asked for nothing.
    """

    def __init__(
        self,
        config: Config,
        predictions: Predictions,
        shards: list[int],
        archive: str,
        fingerprint: str,
        llm: str | None,
        helpers: Helpers,
        count: Count,
    ):
        import torch

        # A worker that asks for no GPU gets none from Ray either, and the same number of threads: the texts are equal.
        self.device = None if config.cluster.gpus_per_worker else "cpu"
        self.helpers, self.count, self.under_way = helpers, count, dict[str, PieceCounts]()
        self.shards = shards
        torch.set_num_threads(max(1, int(config.cluster.cpus_per_worker)))
        super().__init__(config.to_yaml(), predictions, archive, fingerprint, {}, count.run, llm)

    def written(self) -> Iterator[dict[str, Any]]:
        """The shards, one after another; a row of counts each, or the error that ended them."""
        left = [shard for shard in self.shards if not self.predictions.path(shard).is_file()]
        yield from (self._counts(shard) for shard in self.shards if shard not in left)
        lane = self._lane(self._following(left))
        try:
            for work in lane.finished():
                self.under_way.pop(str(work.number), None)
                yield self._kept(work)
        except Exception as error:
            yield self._unfinished(next(iter(lane.open), -1), error)

    def _following(self, left: list[int]) -> Callable[[], ShardWork | None]:
        """Gives the shards in turn; the films of the next one are begun behind those of the one that is given."""
        numbers = iter(left)

        def begun() -> ShardWork | None:
            number = next(numbers, None)
            return None if number is None else self._work(number)

        ahead = [begun()]

        def following() -> ShardWork | None:
            work = ahead.pop()
            ahead.append(begun())
            return work

        return following

    def _started(self) -> Any:
        """No thread: the command's own has the model."""

    def _metrics(self) -> Any:
        return _Unmeasured()

    def _teller(self, number: int) -> Teller:
        return _Here(self.count, str(number), self.under_way)

    def _decoder(self, options: dict[str, Any]) -> Helpers:
        return self.helpers

    def _start(self, chunk: list[Listed]) -> Future[list[Pixels]]:
        return self.helpers.start(chunk, **self._how())

    def _result(self, task: Future[list[Pixels]]) -> list[Pixels] | None:
        try:
            return task.result()
        except HelperDied:
            return None
