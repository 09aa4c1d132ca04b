"""One training worker on Ray Train: the library's loop, with what the cluster adds."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megpt.config import Config
from megpt.errors import InputError, MegptError, from_json, to_json
from megpt.output import write_json, write_text
from megpt.places import place
from megpt.training.log import FIGURES
from ray_jobs import ray_private
from ray_jobs.imports import uncollected
from ray_jobs.runtime import require_gpu

if TYPE_CHECKING:
    from ray.util.metrics import Gauge

ERROR = Path("steps") / "error.json"
SUMMARY = "summary.json"


def worker(arguments: dict[str, Any]) -> None:
    """Train as one rank of the group that Ray Train has made.

    An error that a restart cannot mend (NaN, a bad input, a full disk) is written down, and the group ends: the
    command that watches raises it. Anything else is left to Ray Train's restarts.
    """
    import ray.train

    config = Config.model_validate(arguments["config"])
    output = place(str(config.output))
    if (output / ERROR).exists():
        return  # another worker raised it, and the controller did not see the file yet
    with uncollected():
        from megpt.training.loop import Hooks, make_parts, train_loop
        from megpt.training.samples import drop_samples
        from ray_jobs.train.threshold import threshold_setter
        from ray_jobs.train.validate import best_score, validator

    logging.getLogger(ray_private.report_logger()).setLevel(logging.WARNING)
    context = ray.train.get_context()
    hooks = Hooks(
        preempted=lambda: ray.train.get_preemption_info() is not None,
        report=lambda figures: ray.train.report(dict(figures)),
        row=gauges(),
        validate=validator(config) if config.train.val_every is not None else None,
        best=lambda scores: best_score(scores, config.train.best_metric),
        exported=threshold_setter(config, observe),
    )
    try:
        require_gpu(config.cluster)
        summary = train_loop(config, lambda: make_parts(config, observe), output=output, hooks=hooks)
    except MegptError as error:
        if isinstance(error, InputError):
            drop_samples(config)  # what was made of an input that is to be mended
        tell_error(output, error)
        raise
    if context.get_world_rank() == 0:
        write_json(output / "steps" / SUMMARY, summary)
    if context.get_local_rank() == 0:
        drop_samples(config)


def observe(reports: list[str]) -> Any:
    """(N, 14) bool: the observations that N reports call present. The labeller is loaded when it is first asked."""
    from megpt.evaluation.clinical import label_reports

    return label_reports(reports)


def gauges() -> Callable[[dict[str, float]], None]:
    """Sets `megpt_train_NAME` for each figure of a log row: Ray exports them to Prometheus and its dashboard."""
    from ray.util.metrics import Gauge

    made: dict[str, Gauge] = {}

    def show(row: dict[str, float]) -> None:
        for name, value in row.items():
            if name not in made:
                made[name] = Gauge(f"megpt_train_{name}", description=FIGURES.get(name, "a validation score"))
            made[name].set(value)

    return show


def tell_error(output: Path, error: MegptError) -> None:
    """Leave an error for the command that watches."""
    write_text(output / ERROR, to_json(error))


def take_error(output: Path) -> MegptError | None:
    """The error that a worker has left, once."""
    path = output / ERROR
    if not path.exists():
        return None
    error = from_json(path.read_text(encoding="utf-8"))
    path.unlink()
    return error
