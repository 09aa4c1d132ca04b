"""predictions → metrics.json, per_study.parquet, index.html.

    megpt evaluate --config phantom predictions=runs/demo/predictions studies=runs/demo/studies output=runs/evaluation
    megpt evaluate predictions=results.csv references=annotation.json data.cleaner=r2gen-iu output=runs/evaluation

Scores, labels and marks are cut into tasks, for Ray or for helper processes (ray_jobs/helpers.py). Nothing is written
before everything is computed, so a killed job starts again from the beginning: minutes at most.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from megpt.config import ClusterConfig, Config
from megpt.data.studies import COMPRESSION
from megpt.data.studies import fingerprint as studies_fingerprint
from megpt.evaluation.further_scores import check_scores
from megpt.evaluation.metrics import Evaluation, Runner, Task, evaluate
from megpt.evaluation.page import Extras, System, write_page
from megpt.evaluation.page.curves import training_curves
from megpt.evaluation.page.films import page_films, spread
from megpt.evaluation.pairs import fingerprint, read_pairs
from megpt.evaluation.reading.training import find_training
from megpt.evaluation.rexrank import write_rexrank
from megpt.evaluation.scoring import ON_GPU, run_here
from megpt.evaluation.table import per_study
from megpt.evaluation.texts import Cleaning
from megpt.evaluation.unscored import without_scores
from megpt.output import write_aside, write_json
from megpt.progress import Progress, log
from ray_jobs.helpers import Helpers
from ray_jobs.job import Job
from ray_jobs.model_card import into_card
from ray_jobs.neighbours import find_neighbours
from ray_jobs.placement import elsewhere, one_cpu
from ray_jobs.runtime import cores, joined

METRICS, TABLE, PAGE, REXRANK = "metrics.json", "per_study.parquet", "index.html", "rexrank.json"
HEADLINE = ("BLEU_1", "BLEU_4", "METEOR", "ROUGE_L", "CIDEr", "clinical_micro_f1", "clinical_macro_f1")
"""The scores of a short table."""


class Evaluate(Job):
    """Score a predictions/ folder, or a file of anyone's reports."""

    name = "evaluate"
    reads = (
        *("predictions", "references", "training", "studies", "source", "checkpoint", "limit", "seed", "evaluate"),
        *("data.section", "data.cleaner"),
        # how films are found, for the page and for the nearest neighbours
        *("data.format", "data.reports", "data.annotations", "data.columns", "data.encoding", "data.delimiter"),
        *(
            "data.roots",
            "data.max_pixels",
            "data.max_views",
            "data.options",
            "fit_prompts.max_studies",
            "model.vision_weights",
        ),
    )
    needs = ("predictions",)

    def open(self) -> None:
        config = self.config
        check_scores(config.evaluate.scores)
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
        found = {name: fingerprint(path) for name, path in files.items() if path is not None}
        if config.studies:
            found["studies"] = studies_fingerprint(config.studies)
        if config.checkpoint:
            found["checkpoint"] = checkpoint_fingerprint(config)
        return found

    def demand(self) -> ClusterConfig | None:
        if not self.pairs.pairs:
            return None
        return self.config.cluster if self._encodes() else one_cpu(self.config.cluster)

    def _encodes(self) -> bool:
        config = self.config
        return bool(config.checkpoint and config.studies and config.evaluate.baselines is True)

    def needs_ray(self) -> bool:
        return self._encodes() or bool(self.config.cluster.gpus_per_worker)

    def preview(self, folder: Path) -> None:
        self._tell_inputs()
        log(f"evaluate: would score {self.counts} into {folder}")

    def plan(self, folder: Path) -> bool:
        self._tell_inputs()
        log(f"evaluate: {self.counts}")
        return True

    def work(self, folder: Path) -> None:
        config, settings = self.config, self.config.evaluate
        if not self.pairs.pairs:
            self.evaluation = without_scores(self.pairs, cleaner=self.cleaning, settings=settings, seed=config.seed)
            self.evaluation.metrics["inputs"] = self.taken
            write(self.evaluation, folder, config, run_here)
            return
        with runner(self) as run:
            neighbours, notes = find_neighbours(config, {pair.study_id for pair in self.pairs.pairs})
            self.evaluation = evaluate(
                self.pairs,
                training_reports=self.training,
                cleaner=self.cleaning,
                settings=settings,
                seed=config.seed,
                run=run,
                neighbours=neighbours,
                notes=notes,
            )
            self.evaluation.metrics["inputs"] = self.taken
            write(self.evaluation, folder, config, run)

    def finish(self, folder: Path) -> dict[str, Any]:
        write_json(folder / METRICS, self.evaluation.metrics)
        if self.config.checkpoint:
            log(f"evaluate: {into_card(self.config, self.pairs.models, self.evaluation.metrics)}")
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


def write(evaluation: Evaluation, folder: Path, config: Config, run: Runner) -> None:
    """The page and the table, each whole or absent."""
    write_page(folder / PAGE, [System("MeGPT", evaluation)], extras(config, [evaluation]), run=run)
    with write_aside(folder / TABLE) as temporary:
        pq.write_table(per_study(evaluation), temporary, **COMPRESSION)
    if config.evaluate.rexrank:
        log(f"evaluate: {write_rexrank(folder / REXRANK, evaluation.pairs, config)}")


def extras(config: Config, evaluations: Sequence[Evaluation], differences: Sequence[dict[str, Any]] = ()) -> Extras:
    """Films of up to `evaluate.films` studies, from the worst to the best; prompts and curves of the checkpoint."""
    first = evaluations[0]
    scores = first.statistics.per_study()
    worth = np.full(len(first.pairs.every), np.nan)
    worth[: len(first.statistics)] = scores["clinical_f1"] + scores["ROUGE_L"]
    shown = [first.pairs.every[row].study_id for row in spread(worth, config.evaluate.films)]
    prompts, curves = {}, {}
    if config.checkpoint:
        from megpt.model.checkpoint.fetch import local_folder
        from megpt.model.prompts import PROMPTS, read_prompts

        checkpoint = local_folder(config.checkpoint)
        curves = training_curves(checkpoint)
        if (checkpoint / PROMPTS).exists():
            prompts = dict(enumerate(read_prompts(checkpoint)["texts"]))
    return Extras(page_films(config, shown), prompts, curves, differences)


def checkpoint_fingerprint(config: Config) -> str:
    """The fingerprint of the checkpoint whose encoder finds neighbours."""
    from megpt.model import fingerprint

    return str(fingerprint(str(config.checkpoint)))


def read_metrics(folder: Path) -> dict[str, Any]:
    """What the job wrote."""
    return dict(json.loads((folder / METRICS).read_text(encoding="utf-8")))


@contextlib.contextmanager
def runner(job: Job) -> Iterator[Runner]:
    """What runs the tasks of a job: Ray, or the helper processes of a job that does without."""
    if not job.in_process:
        yield functools.partial(run_on_ray, gpus=job.config.cluster.gpus_per_worker)
        return
    with Helpers(_call, cores()) as helpers:
        yield functools.partial(_run_in, helpers)


def _run_in(helpers: Helpers, tasks: Sequence[Task]) -> Iterator[Any]:
    """`run_on_ray`, without Ray."""
    started = [helpers.start(*task) for task in tasks]
    with Progress("evaluate", total=len(tasks), unit="parts") as progress:
        for task in started:
            while not task.done():
                concurrent.futures.wait([task], timeout=1)
                progress.advance(sum(other.done() for other in started) - progress.done)
            yield task.result()


def run_on_ray(tasks: Sequence[Task], *, gpus: float = 0) -> Iterator[Any]:
    """Run tasks on the cluster, a few at a time; their results in order, each as soon as it is asked for and there.

    Args:
        gpus: GPUs of a task that one helps.
    """
    import ray

    # A local cluster says it has more CPUs than the machine: more Java programs at once than cores would only swap.
    slots = int(ray.cluster_resources().get("CPU", 1)) if joined() else cores()
    call = ray.remote(num_cpus=1)(_call)
    waiting = list(enumerate(tasks))[::-1]
    running: dict[Any, int] = {}
    results: dict[int, Any] = {}
    with Progress("evaluate", total=len(tasks), unit="parts") as progress:
        for number in range(len(tasks)):
            while number not in results:
                while waiting and len(running) < slots:
                    later, (function, arguments) = waiting.pop()
                    wanted = gpus if function in ON_GPU else 0
                    running[call.options(num_gpus=wanted, **elsewhere()).remote(function, arguments)] = later
                done, _ = ray.wait(list(running), num_returns=1)
                for reference in done:
                    results[running.pop(reference)] = ray.get(reference)
                    progress.advance()
            yield results.pop(number)


def _call(function: Any, arguments: tuple[Any, ...]) -> Any:
    return function(*arguments)
