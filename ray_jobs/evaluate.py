"""predictions → metrics.json, per_study.parquet, index.html.

    megpt evaluate --config phantom predictions=runs/demo/predictions studies=runs/demo/studies output=runs/evaluation
    megpt evaluate predictions=results.csv references=annotation.json data.cleaner=r2gen-iu output=runs/evaluation

Scores, labels and baselines are cut into Ray tasks of a few thousand pairs each. Nothing is written before everything
is computed, so a killed job starts again from the beginning: minutes at most.
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
from megpt.evaluation.metrics import Evaluation, Task, evaluate
from megpt.evaluation.page import Extras, System, write_page
from megpt.evaluation.page.films import page_films, spread
from megpt.evaluation.pairs import fingerprint, read_pairs
from megpt.evaluation.reading.training import find_training
from megpt.evaluation.rexrank import write_rexrank
from megpt.evaluation.table import per_study
from megpt.evaluation.texts import Cleaning
from megpt.evaluation.unscored import without_scores
from megpt.output import write_aside, write_json
from megpt.progress import Progress, log
from ray_jobs.job import Job
from ray_jobs.placement import one_cpu
from ray_jobs.runtime import joined

METRICS, TABLE, PAGE, REXRANK = "metrics.json", "per_study.parquet", "index.html", "rexrank.json"
HEADLINE = ("BLEU_1", "BLEU_4", "METEOR", "ROUGE_L", "CIDEr", "clinical_micro_f1", "clinical_macro_f1")
"""The scores of a short table."""


class Evaluate(Job):
    """Score a predictions/ folder, or a file of anyone's reports."""

    name = "evaluate"
    reads = (
        *("predictions", "references", "training", "studies", "source", "limit", "seed", "evaluate"),
        *("data.section", "data.cleaner"),
        # how the films of the page are found
        *("data.format", "data.reports", "data.annotations", "data.columns", "data.encoding", "data.delimiter"),
        *("data.roots", "data.max_pixels"),
    )
    needs = ("predictions",)

    def open(self) -> None:
        config = self.config
        self.pairs = read_pairs(
            str(config.predictions),
            studies=config.studies,
            references=config.references,
            section=config.data.section,
            limit=config.limit,
            settings=config.evaluate,
        )
        self.training, taken = find_training(config)
        self.cleaning = Cleaning.of(config.data.cleaner, training=self.training)
        self.taken = [*self.pairs.said, *taken]
        counts = f"{len(self.pairs.pairs)} studies, {self.pairs.failed} of them failed"
        self.counts = f"{counts}, {self.pairs.without_reference} without reference"

    def inputs(self) -> dict[str, Any]:
        config = self.config
        files = {name: getattr(config, name) for name in ("predictions", "references", "training")}
        studies = {"studies": studies_fingerprint(config.studies)} if config.studies else {}
        return studies | {name: fingerprint(path) for name, path in files.items() if path is not None}

    def demand(self) -> ClusterConfig | None:
        return one_cpu(self.config.cluster) if self.pairs.pairs else None

    def preview(self, folder: Path) -> None:
        self._tell_inputs()
        log(f"evaluate: would score {self.counts} into {folder}")

    def plan(self, folder: Path) -> bool:
        self._tell_inputs()
        log(f"evaluate: {self.counts}")
        return True

    def work(self, folder: Path) -> None:
        config = self.config
        if not self.pairs.pairs:
            settings, seed = config.evaluate, config.seed
            self.evaluation = without_scores(self.pairs, cleaning=self.cleaning, settings=settings, seed=seed)
            return
        self.evaluation = evaluate(
            self.pairs,
            training_reports=self.training,
            cleaner=self.cleaning,
            settings=config.evaluate,
            seed=config.seed,
            run=run_on_ray,
        )

    def finish(self, folder: Path) -> dict[str, Any]:
        self.evaluation.metrics["inputs"] = self.taken
        write(self.evaluation, folder, self.config)
        return {name: self.evaluation.metrics[name] for name in ("n", "n_failed")}

    def tell(self, folder: Path, summary: dict[str, Any]) -> None:
        metrics = self.evaluation.metrics
        for warning in metrics["warnings"]:
            log(f"evaluate: {warning}")
        for name, reason in metrics["notes"].items():
            log(f"evaluate: {name}: {reason}")
        log(f"evaluate: {metrics['signature']}")
        log(f"evaluate: {folder / METRICS}, open {folder / PAGE}")

    def _tell_inputs(self) -> None:
        for line in self.taken:
            log(f"evaluate: {line}")


def write(evaluation: Evaluation, folder: Path, config: Config) -> None:
    """The files of the output, each whole or absent."""
    scores = evaluation.statistics.per_study()
    shown = spread(scores["clinical_f1"] + scores["ROUGE_L"], config.evaluate.films)
    films = page_films(config, [evaluation.pairs.pairs[row].study_id for row in shown])
    write_page(folder / PAGE, [System("MeGPT", evaluation)], Extras(films=films))
    with write_aside(folder / TABLE) as temporary:
        pq.write_table(per_study(evaluation), temporary, **COMPRESSION)
    if config.evaluate.rexrank:
        log(f"evaluate: {write_rexrank(folder / REXRANK, evaluation.pairs, config)}")
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
