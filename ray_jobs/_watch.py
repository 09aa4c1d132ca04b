"""A running dataset, and whether the cluster can still work on it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator
from typing import Any

import ray.data

from megpt.config import ClusterConfig
from megpt.errors import MegptError
from megpt.progress import log
from ray_jobs.runtime import worker_slots

LOOK_EVERY_S = 5.0


def watched(rows: ray.data.Dataset, config: ClusterConfig) -> Generator[dict[str, Any], None, None]:
    """The rows as they come. Ray waits for ever for a node that can hold a worker; this waits for `cluster.wait_s`.

    Raises:
        MegptError: no living node could hold a worker for that long.
    """
    found: queue.SimpleQueue[dict[str, Any] | BaseException | None] = queue.SimpleQueue()
    left = threading.Event()

    def read() -> None:
        try:
            for row in rows.iter_rows():
                found.put(row)
                if left.is_set():  # the generator's end ends the execution
                    return
            found.put(None)
        except BaseException as error:
            found.put(error)

    threading.Thread(target=read, name="rows", daemon=True).start()
    lost: float | None = None
    try:
        while True:
            try:
                row = found.get(timeout=LOOK_EVERY_S)
            except queue.Empty:
                lost = _look_for_nodes(config, lost)
                continue
            if row is None:
                return
            if isinstance(row, BaseException):
                raise row
            yield row
    finally:
        left.set()


def _look_for_nodes(config: ClusterConfig, lost: float | None) -> float | None:
    """Since when no living node could hold a worker; None when one can."""
    if worker_slots(config):
        return None
    if lost is None:
        log(f"generate: no node is left that can hold a worker; waiting {config.wait_s:g} s for one")
        return time.monotonic()
    if time.monotonic() - lost >= config.wait_s:
        raise MegptError(
            "no node is left that can hold a worker",
            where=f"after {config.wait_s:g} s (cluster.wait_s)",
            cause="the nodes that had the GPUs or CPUs asked for are gone; what was finished is kept",
            next="add a node and run the same command again: it resumes",
        )
    return lost
