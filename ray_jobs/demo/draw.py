"""Draw the demo's archive, its films on all cores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray

from megpt.config import ClusterConfig
from megpt.demo.phantom import write_films, write_tables
from megpt.progress import Progress, log
from ray_jobs.job import Job
from ray_jobs.placement import one_cpu

STUDIES_PER_TASK = 100


class Draw(Job):
    name = "draw"
    reads = ("phantom", "seed")

    def demand(self) -> ClusterConfig:
        return one_cpu(self.config.cluster)

    def preview(self, folder: Path) -> None:
        log(f"draw: would draw {self.config.phantom.num_studies} studies into {folder}")

    def work(self, folder: Path) -> None:
        config, total = self.config, self.config.phantom.num_studies
        draw: Any = ray.remote(write_films)
        parts = [range(first, min(first + STUDIES_PER_TASK, total)) for first in range(0, total, STUDIES_PER_TASK)]
        place = str(folder.absolute())
        waiting = {draw.remote(place, config.phantom, config.seed, part): len(part) for part in parts}
        self.films = 0
        with Progress("draw", total) as progress:
            while waiting:
                done, _ = ray.wait(list(waiting), num_returns=1)
                self.films += sum(ray.get(done))
                progress.advance(sum(waiting.pop(task) for task in done))

    def finish(self, folder: Path) -> dict[str, Any]:
        write_tables(folder, self.config.phantom, self.config.seed)
        return {"studies": self.config.phantom.num_studies, "films": self.films}
