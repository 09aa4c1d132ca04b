"""Two or more predictions → compare.json, per_study.parquet, index.html: which is better, and may that be chance?

    megpt compare runs/base/predictions runs/ours/predictions output=runs/base-or-ours

Each path is what `evaluate` takes as `predictions`: a folder, or a file of anyone's reports. Differences have intervals
over patients, and p values by paired randomisation. Nothing is written before everything is computed, so a killed job
starts again from the beginning.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from megpt.config import ClusterConfig, Config
from megpt.data.studies import COMPRESSION
from megpt.data.studies import fingerprint as studies_fingerprint
from megpt.errors import InputError
from megpt.evaluation.compare import compare
from megpt.evaluation.further_scores import check_scores
from megpt.evaluation.page import System, write_page
from megpt.evaluation.pairs import fingerprint, read_pairs
from megpt.evaluation.reading.training import find_training
from megpt.evaluation.texts import Cleaning
from megpt.output import write_aside, write_json
from megpt.progress import log
from ray_jobs.evaluate import PAGE, TABLE, Evaluate, extras, runner
from ray_jobs.job import Job
from ray_jobs.placement import one_cpu

RESULT = "compare.json"


class Compare(Job):
    """Compare predictions/ folders, or files of anyone's reports."""

    name = "compare"
    reads = tuple(key for key in Evaluate.reads if key not in ("predictions", "fit_prompts.max_studies"))

    def __init__(self, config: Config, *paths: str):
        super().__init__(config)
        self.paths = paths

    def open(self) -> None:
        config, paths = self.config, self.paths
        if len(paths) < 2:
            raise InputError("compare needs two predictions/ folders or more", next="megpt compare A B output=PATH")
        check_scores(config.evaluate.scores)
        names = [f"{path} ({paths[:k].count(path) + 1})" if path in paths[:k] else path for k, path in enumerate(paths)]
        self.systems = {
            name: read_pairs(
                path,
                studies=config.studies,
                references=config.references,
                section=config.data.section,
                limit=config.limit,
                settings=config.evaluate,
            )
            for name, path in zip(names, paths, strict=True)
        }
        training, _ = find_training(config)
        self.cleaning = Cleaning.of(config.data.cleaner, training=training)

    def inputs(self) -> dict[str, Any]:
        config = self.config
        files = {name: getattr(config, name) for name in ("references", "training")}
        found: dict[str, Any] = {name: fingerprint(path) for name, path in files.items() if path is not None}
        if config.studies:
            found["studies"] = studies_fingerprint(config.studies)
        return found | {"predictions": [fingerprint(path) for path in self.paths]}

    def demand(self) -> ClusterConfig:
        return one_cpu(self.config.cluster)

    def needs_ray(self) -> bool:
        return bool(self.config.cluster.gpus_per_worker)

    def preview(self, folder: Path) -> None:
        counts = (f"{name} ({len(pairs.pairs)} studies)" for name, pairs in self.systems.items())
        log(f"compare: would compare {', '.join(counts)}")

    def plan(self, folder: Path) -> bool:
        for name, pairs in self.systems.items():
            for line in pairs.said:
                log(f"compare: {name}: {line}")
        return True

    def work(self, folder: Path) -> None:
        config = self.config
        with runner(self) as run:
            self.found = compare(
                self.systems, cleaner=self.cleaning, settings=config.evaluate, seed=config.seed, run=run
            )
            evaluations = self.found.evaluations
            systems = [System(name, evaluation) for name, evaluation in evaluations.items()]
            more = extras(config, [*evaluations.values()], self.found.result["comparisons"])
            write_page(folder / PAGE, systems, more, run=run)
        with write_aside(folder / TABLE) as temporary:
            pq.write_table(self.found.table(), temporary, **COMPRESSION)

    def finish(self, folder: Path) -> dict[str, Any]:
        write_json(folder / RESULT, self.found.result)
        return {"n": self.found.result["n"]}

    def tell(self, folder: Path, summary: dict[str, Any]) -> None:
        for line in self.found.lines():
            log(f"compare: {line}")
        log(f"compare: {folder / RESULT}, open {folder / PAGE}")
