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

from megpt.config import ClusterConfig, Config
from megpt.data.studies import COMPRESSION
from megpt.data.studies import fingerprint as studies_fingerprint
from megpt.errors import InputError
from megpt.evaluation.metrics import Evaluation, Task, evaluate
from megpt.evaluation.page import Extras, System, write_page
from megpt.evaluation.page.films import page_films, spread
from megpt.evaluation.pairs import fingerprint, read_pairs, training_reports
from megpt.evaluation.table import per_study
from megpt.output import write_aside, write_json
from megpt.progress import Progress, log
from ray_jobs.job import Job
from ray_jobs.placement import one_cpu
from ray_jobs.runtime import joined

METRICS, TABLE, PAGE = "metrics.json", "per_study.parquet", "index.html"
HEADLINE = ("BLEU_1", "BLEU_4", "METEOR", "ROUGE_L", "CIDEr", "clinical_micro_f1", "clinical_macro_f1")
"""The scores of a short table."""


class Evaluate(Job):
    name = "evaluate"
    reads = (
        *("predictions", "studies", "source", "limit", "seed", "evaluate", "data.section", "data.cleaner"),
        # how the films of the page are found
        *("data.format", "data.reports", "data.annotations", "data.max_pixels"),
    )
    needs = ("predictions",)

    def open(self) -> None:
        config = self.config
        self.pairs = read_pairs(
            str(config.predictions), studies=config.studies, section=config.data.section, limit=config.limit
        )
        counts = f"{len(self.pairs.pairs)} studies, {self.pairs.failed} of them failed"
        self.counts = f"{counts}, {self.pairs.without_reference} without reference"

    def inputs(self) -> dict[str, Any]:
        studies = self.config.studies
        return {
            "predictions": fingerprint(str(self.config.predictions)),
            "studies": studies_fingerprint(studies) if studies else None,
        }

    def demand(self) -> ClusterConfig:
        return one_cpu(self.config.cluster)

    def preview(self, folder: Path) -> None:
        training_texts(self.config)
        log(f"evaluate: would score {self.counts} into {folder}")

    def plan(self, folder: Path) -> bool:
        log(f"evaluate: {self.counts}")
        self.training = training_texts(self.config)
        return True

    def work(self, folder: Path) -> None:
        self.evaluation = evaluate(
            self.pairs,
            training_reports=self.training,
            cleaner=self.config.data.cleaner,
            settings=self.config.evaluate,
            seed=self.config.seed,
            run=run_on_ray,
        )

    def finish(self, folder: Path) -> dict[str, Any]:
        write(self.evaluation, folder, self.config)
        return {name: self.evaluation.metrics[name] for name in ("n", "n_failed")}

    def tell(self, folder: Path, summary: dict[str, Any]) -> None:
        for warning in self.evaluation.metrics["warnings"]:
            log(f"evaluate: {warning}")
        for name, reason in self.evaluation.metrics["notes"].items():
            log(f"evaluate: no {name}: {reason}")
        log(f"evaluate: {folder / METRICS}, open {folder / PAGE}")


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


def write(evaluation: Evaluation, folder: Path, config: Config) -> None:
    """The three files, each whole or absent."""
    scores = evaluation.statistics.per_study()
    shown = spread(scores["clinical_f1"] + scores["ROUGE_L"], config.evaluate.films)
    films = page_films(config, [evaluation.pairs.pairs[row].study_id for row in shown])
    write_page(folder / PAGE, [System("MeGPT", evaluation)], Extras(films=films))
    with write_aside(folder / TABLE) as temporary:
        pq.write_table(per_study(evaluation), temporary, **COMPRESSION)
    write_json(folder / METRICS, evaluation.metrics)


def read_metrics(folder: Path) -> dict[str, Any]:
    """What the job wrote."""
    return dict(json.loads((folder / METRICS).read_text(encoding="utf-8")))


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
