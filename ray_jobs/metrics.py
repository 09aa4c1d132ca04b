"""What Ray exports to Prometheus of a job, and from there to its own dashboard and to Grafana (deploy/grafana.json).

    gauges = StudyGauges("prepare")           # in the command: gauges(progress)
    measured = WriterMetrics("generate")      # in a worker: measured.wrote(prediction), measured.waited(seconds)

Ray puts `ray_` before each name, and `_total` behind that of a counter. `train` exports its figures as
`megpt_train_NAME` (ray_jobs/train/worker.py).
"""

from __future__ import annotations

from typing import Any

import psutil
from ray.util.metrics import Counter, Gauge

from megpt.progress import Progress

# ASCII: Ray describes its metrics in nothing else.
STUDIES = {
    "studies": "studies of the job, those of earlier starts included",
    "studies_done": "studies that are done, those of unfinished shards included",
    "studies_failed": "studies that failed, by reason",
    "studies_per_s": "studies a second over the last two minutes",
    "seconds_left": "seconds left at that pace; -1 before there is one",
}
"""Gauges of `prepare` and `generate`, set by the command: `megpt_JOB_NAME`."""
WRITING = {
    "tokens": "report tokens written",
    "film_wait_s": "seconds in which a worker waited for its films",
    "slots_used": "studies in flight in a worker's engine",
    "slots": "studies that it can hold in flight",
    "memory_gib": "highest memory of a worker: the GPU's, or the process's where there is none",
}
"""Of `generate`, set by each worker; the first two are counters."""
COUNTERS = ("tokens", "film_wait_s")


class StudyGauges:
    """How far a job has come."""

    def __init__(self, job: str):
        tags = {"studies_failed": ("reason",)}
        self._gauges = {
            name: Gauge(f"megpt_{job.replace('-', '_')}_{name}", description=text, tag_keys=tags.get(name, ()))
            for name, text in STUDIES.items()
        }

    def __call__(self, progress: Progress) -> None:
        left = progress.seconds_left
        for name, value in {
            "studies": progress.total or 0,
            "studies_done": progress.seen,
            "studies_per_s": progress.rate,
            "seconds_left": -1.0 if left is None else left,
        }.items():
            self._gauges[name].set(value)
        for reason, count in progress.reasons.items():
            self._gauges["studies_failed"].set(count, tags={"reason": reason})


class WriterMetrics:
    """What a generating worker does with its time and memory."""

    def __init__(self, job: str = "generate"):
        self._made: dict[str, Any] = {
            name: (Counter if name in COUNTERS else Gauge)(f"megpt_{job}_{name}", description=text)
            for name, text in WRITING.items()
        }

    def wrote(self, tokens: int, *, used: int | None, slots: int) -> None:
        """A report is written.

        Args:
            used: studies in flight; None where the backend does not say.
        """
        if tokens:
            self._made["tokens"].inc(tokens)
        if used is not None:
            self._made["slots_used"].set(used)
        self._made["slots"].set(slots)
        self._made["memory_gib"].set(memory() / 2**30)

    def waited(self, seconds: float) -> None:
        """The worker had no films for so long."""
        if seconds > 0:
            self._made["film_wait_s"].inc(seconds)


def memory() -> float:
    """Highest bytes of GPU memory in this process, or its resident bytes where it has no GPU."""
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    return float(psutil.Process().memory_info().rss)


def declared() -> set[str]:
    """The names of all metrics, as a scrape of Ray's endpoint has them."""
    from megpt.training.log import FIGURES

    names = {f"ray_megpt_{job}_{name}" for job in ("prepare", "generate") for name in STUDIES}
    names |= {f"ray_megpt_generate_{name}{'_total' if name in COUNTERS else ''}" for name in WRITING}
    return names | {f"ray_megpt_train_{name}" for name in FIGURES}
