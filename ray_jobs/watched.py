"""A running dataset: how far its studies have come, why some failed, and whether the cluster can still work on it.

count = Count(progress, config.generate)
for row in watched(dataset, config.cluster, count):
    count.finished("train-00003", studies=500, reasons={"missing file": 2})
"""

from __future__ import annotations

import functools
import time
import uuid
from collections import Counter
from collections.abc import Generator, Mapping
from typing import Any

import ray.data

from megpt.config import ClusterConfig, GenerateConfig, PrepareConfig
from megpt.errors import MegptError
from megpt.progress import Progress, log
from ray_jobs import ray_private
from ray_jobs.metrics import StudyGauges
from ray_jobs.placement import LOOK_EVERY_S, worker_slots
from ray_jobs.telling import forget, plain_reason, told

_running: dict[str, Count] = {}
"""The counts of executions by name: what is in a dataset's context is sent to workers, and a count stays here."""


def watched(rows: ray.data.Dataset, config: ClusterConfig, count: Count) -> Generator[dict[str, Any], None, None]:
    """The rows as they arrive. Ray waits without limit for a node that can hold a worker; this waits `cluster.wait_s`.

    Close it when done with it, or Ray Data's threads may outlive the connection to the cluster.

    Raises:
        MegptError: no living node could hold a worker for that long, or too many studies have failed already.
    """
    context = rows.context
    # Ray Data calls it to make a callback of each execution; what a callback raises ends the execution.
    watch: Any = functools.partial(_Watch, config, count.run)
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, watch]
    _running[count.run] = count
    try:
        yield from rows.iter_rows()
    finally:
        del _running[count.run]
        count.forget()


class Count:
    """The studies of one execution, counted while they are worked on.

    Args:
        settings: of the job; `fail_fast` and `max_failed_fraction` are read.
    """

    def __init__(self, progress: Progress, settings: PrepareConfig | GenerateConfig):
        self.progress, self.settings = progress, settings
        self._gauges = StudyGauges(progress.job)
        self.run = uuid.uuid4().hex

    def look(self) -> None:
        """Ask how far the pieces have come that are not finished.

        Raises:
            MegptError: too many studies have failed.
        """
        if (counts := told(self.run)) is not None:
            self.progress.in_flight(counts)
        self._gauges(self.progress)
        self.check()

    def finished(self, piece: str, studies: int, reasons: Mapping[str, int]) -> None:
        """A piece is finished, with the numbers of its file.

        Raises:
            MegptError: too many studies have failed.
        """
        failed = Counter[str]()
        for reason, times in reasons.items():
            failed[plain_reason(reason)] += times
        self.progress.advance(studies, failed, piece=piece)
        self.check()

    def check(self) -> None:
        """End the job where its failures exceed what is allowed already (`fail_fast`).

        Raises:
            MegptError: they do.
        """
        job, failed, total = self.progress.job, self.progress.failed, self.progress.total or 0
        most = self.settings.max_failed_fraction
        if self.settings.fail_fast and failed > most * total:
            reasons = self.progress.reasons.most_common(3)
            raise MegptError(
                f"{failed} of {total} studies have failed after {self.progress.seen}, "
                f"so {job}.max_failed_fraction={most:g} cannot be met any more",
                where=", ".join(f"{times} × {reason}" for reason, times in reasons),
                cause=f"{job}.fail_fast ends the job here; finished files stay",
                next=f"mend these films and run the same command again with retry=failed, "
                f"or with a larger {job}.max_failed_fraction",
            )

    def forget(self) -> None:
        """Remove what was told: workers that are lost would tell no more."""
        self.progress.in_flight({})
        forget(self.run)


class _Watch(ray_private.ExecutionCallback):
    """Looks for nodes, and at the counts, each second, in Ray Data's scheduling loop."""

    def __init__(self, config: ClusterConfig, run: str):
        self._config, self._count = config, _running[run]
        self._next_look = 0.0
        self._lost: float | None = None
        """Since when no living node could hold a worker."""

    def on_execution_step(self, executor: Any) -> None:
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_EVERY_S
        self._count.look()
        if worker_slots(self._config):
            self._lost = None
        elif self._lost is None:
            log(
                f"{self._count.progress.job}: no node is left that can hold a worker; "
                f"waiting {self._config.wait_s:g} s for one"
            )
            self._lost = now
        elif now - self._lost >= self._config.wait_s:
            raise MegptError(
                "no node is left that can hold a worker",
                where=f"after {self._config.wait_s:g} s (cluster.wait_s)",
                cause="the nodes that had the GPUs or CPUs asked for are gone; what was finished is kept",
                next="add a node and run the same command again: it resumes",
            )
