"""A running dataset: how far its studies have come, why some failed, and whether the cluster can still work on it.

count = Count(progress, config.generate)
for row in watched(dataset, config.cluster, count):
    count.finished("train-00003", studies=500, reasons={"missing file": 2})
"""

from __future__ import annotations

import functools
import time
from collections.abc import Generator
from typing import Any

import ray.data

from megpt.config import ClusterConfig
from megpt.errors import MegptError
from megpt.progress import log
from ray_jobs import ray_private
from ray_jobs.counting import Count
from ray_jobs.metrics import StudyGauges
from ray_jobs.placement import LOOK_EVERY_S, worker_slots

LOOK_SHARE = 20
"""Looking takes a twentieth of the time at most."""
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


class _Watch(ray_private.ExecutionCallback):
    """Looks for nodes, and at the counts, each second, in Ray Data's scheduling loop."""

    def __init__(self, config: ClusterConfig, run: str):
        self._config, self._count = config, _running[run]
        self._gauges = StudyGauges(self._count.progress.job)
        self._next_look = 0.0
        self._lost: float | None = None
        """Since when no living node could hold a worker."""

    def on_execution_step(self, executor: Any) -> None:
        now = time.monotonic()
        if now < self._next_look:
            return
        self._count.look()
        self._gauges(self._count.progress)
        # a question per worker: hundreds of them must not hold up Ray Data
        self._next_look = now + max(LOOK_EVERY_S, LOOK_SHARE * (time.monotonic() - now))
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
