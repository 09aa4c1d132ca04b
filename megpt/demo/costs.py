"""What each stage of the demo took, over all its starts: OUT/costs.json, and a table of it."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from megpt.output import write_json

COSTS = "costs.json"
SAMPLE_EVERY_S = 2.0


class StageCost(NamedTuple):
    """What a stage took, over all its starts that were not killed: seconds, and the most memory at one time in GiB."""

    seconds: float
    gib: float


def read_costs(folder: Path) -> dict[str, StageCost]:
    """The costs so far; none where there is no readable file of them."""
    try:
        return {
            name: StageCost(**cost) for name, cost in json.loads((folder / COSTS).read_text(encoding="utf-8")).items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


@contextlib.contextmanager
def measured(folder: Path, stage: str, memory: PeakMemory) -> Iterator[None]:
    """Add what the block takes to the stage's costs, also when it ends with an error."""
    began = time.monotonic()
    memory.restart()
    try:
        yield
    finally:
        spent = read_costs(folder)
        before = spent.get(stage, StageCost(0, 0))
        spent[stage] = StageCost(before.seconds + time.monotonic() - began, max(before.gib, memory.gib))
        rows = {name: {"seconds": round(cost.seconds, 1), "gib": round(cost.gib, 2)} for name, cost in spent.items()}
        write_json(folder / COSTS, rows)


def costs_table(spent: dict[str, StageCost]) -> Table:
    """Where time and memory went."""
    table = Table(title="what it took", show_footer=True)
    table.add_column("job", footer="all")
    table.add_column("s", justify="right", footer=f"{sum(cost.seconds for cost in spent.values()):.0f}")
    table.add_column("peak GiB", justify="right", footer=f"{max(cost.gib for cost in spent.values()):.1f}")
    for name, cost in spent.items():
        table.add_row(name, f"{cost.seconds:.1f}", f"{cost.gib:.1f}")
    return table


class PeakMemory:
    """The most memory that this process and all processes below it held at one time, sampled every two seconds.

    Proportional set size, where the system tells it: what several processes share is counted once.
    """

    def __init__(self) -> None:
        self._peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def gib(self) -> float:
        return self._peak / 2**30

    def restart(self) -> None:
        """Forget what was held before."""
        self._peak = 0

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        me = psutil.Process(os.getpid())
        while not self._stop.wait(SAMPLE_EVERY_S):
            total = 0
            for process in [me, *_children(me)]:
                try:
                    total += getattr(process.memory_full_info(), "pss", 0) or process.memory_info().rss
                except psutil.Error:
                    continue
            self._peak = max(self._peak, total)


def _children(process: Any) -> list[Any]:
    import psutil

    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []
