"""predictions/ → metrics.json, per_study.parquet, index.html.

    megpt evaluate --config configs/phantom.yaml predictions=runs/demo/predictions studies=runs/demo/studies \\
        output=runs/demo/evaluation

Scores, labels and baselines are cut into Ray tasks of a few thousand pairs each, CIDEr into one a set of reports.
Nothing is written before everything is computed, so a killed job starts again from the beginning: minutes at most.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import ray

from megpt.config import Config
from megpt.data.studies import COMPRESSION
from megpt.data.studies import fingerprint as studies_fingerprint
from megpt.errors import InputError
from megpt.evaluation.films import gallery_films
from megpt.evaluation.metrics import Evaluation, Task, evaluate
from megpt.evaluation.page import gallery, write_page
from megpt.evaluation.pairs import fingerprint as predictions_fingerprint
from megpt.evaluation.pairs import read_pairs, training_reports
from megpt.evaluation.table import per_study
from megpt.output import Output, claim, write_aside
from megpt.progress import Progress, log
from ray_jobs.neighbours import find_neighbours
from ray_jobs.runtime import cluster, joined, require_one_cpu

METRICS, TABLE, PAGE = "metrics.json", "per_study.parquet", "index.html"


def run(config: Config, *, dry_run: bool = False) -> int:
    """Score a predictions/ folder; returns the exit code.

    Raises:
        InputError: no finished predictions, no reference for any of them, or an output of another config.
    """
    config.require("output", "predictions")
    pairs = read_pairs(str(config.predictions), studies=config.studies, section=config.data.section, limit=config.limit)
    counts = f"{len(pairs.pairs)} studies, {pairs.failed} of them failed, {pairs.without_reference} without reference"
    if dry_run:
        log(f"evaluate: would score {counts} into {config.output}")
        return 0
    with claim(config.output, job="evaluate", identity=identity(config), config=config) as output:
        if output.done:
            log(f"evaluate: {output.path} is finished; nothing to do")
            return 0
        log(f"evaluate: {counts}")
        training = training_texts(config)
        with cluster(config.cluster):
            require_one_cpu(config.cluster)
            neighbours, notes = find_neighbours(config, {pair.study_id for pair in pairs.pairs})
            evaluation = evaluate(
                pairs,
                training_reports=training,
                cleaner=config.data.cleaner,
                settings=config.evaluate,
                seed=config.seed,
                run=run_on_ray,
                neighbours=neighbours,
                notes=notes,
            )
        write(evaluation, output, config)
        output.finish(n=evaluation.metrics["n"], n_failed=evaluation.metrics["n_failed"])
    for warning in evaluation.metrics["warnings"]:
        log(f"evaluate: {warning}")
    for name, reason in evaluation.metrics["notes"].items():
        log(f"evaluate: {name}: {reason}")
    log(f"evaluate: {output.path / METRICS}, open {output.path / PAGE}")
    return 0


def identity(config: Config) -> dict[str, Any]:
    """What the scores depend on."""
    return {
        "predictions": predictions_fingerprint(str(config.predictions)),
        "studies": studies_fingerprint(config.studies) if config.studies else None,
        "checkpoint": _checkpoint(config),
        "cleaner": config.data.cleaner,
        "section": config.data.section,
        "evaluate": config.evaluate.model_dump(mode="json"),
        "seed": config.seed,
        "limit": config.limit,
    }


def _checkpoint(config: Config) -> str | None:
    """The fingerprint of the checkpoint whose encoder finds neighbours."""
    if not (config.checkpoint and config.studies and config.evaluate.baselines):
        return None
    from megpt.model import fingerprint
    from megpt.model.checkpoint.files import local_folder

    return str(fingerprint(local_folder(config.checkpoint)))


def training_texts(config: Config) -> list[str] | None:
    """Reports of the training split for the constant baseline; None where `studies` does not hold that split."""
    if not (config.studies and config.evaluate.baselines):
        return None
    try:
        return list(training_reports(config.studies, config.data.section))
    except InputError:
        if any(Path(config.studies).glob("split=*/*.parquet")):
            return None
        raise


def write(evaluation: Evaluation, output: Output, config: Config) -> None:
    """The three files, each whole or absent."""
    rows = gallery(evaluation, config.evaluate.films)
    films = gallery_films(config, [evaluation.pairs.pairs[row].study_id for row in rows])
    write_page(output.path / PAGE, evaluation, rows=rows, films=films)
    with write_aside(output.path / TABLE) as temporary:
        pq.write_table(per_study(evaluation), temporary, **COMPRESSION)
    with write_aside(output.path / METRICS) as temporary:
        temporary.write_text(json.dumps(evaluation.metrics, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def run_on_ray(tasks: Sequence[Task]) -> Iterator[Any]:
    """Run tasks on the cluster, a few at a time; their results in order."""
    # A local cluster says it has more CPUs than the machine: more Java programs at once than cores would only swap.
    slots = int(ray.cluster_resources().get("CPU", 1)) if joined() else os.cpu_count() or 1
    call = ray.remote(num_cpus=1)(_call)
    waiting = list(enumerate(tasks))[::-1]
    running: dict[Any, int] = {}
    results: dict[int, Any] = {}
    with Progress("evaluate", total=len(tasks), unit="parts") as progress:
        while waiting or running:
            while waiting and len(running) < slots:
                number, (function, arguments) = waiting.pop()
                running[call.remote(function, arguments)] = number
            done, _ = ray.wait(list(running), num_returns=1)
            for reference in done:
                results[running.pop(reference)] = ray.get(reference)
                progress.advance()
    return iter([results[i] for i in range(len(tasks))])


def _call(function: Any, arguments: tuple[Any, ...]) -> Any:
    return function(*arguments)
