"""All jobs in a row on drawn films, on any laptop: from an archive to reports and an honest score.

    megpt demo --config configs/phantom.yaml output=runs/demo

OUT/{archive,studies,llm,prompts,checkpoint,predictions,evaluation}. Each stage is a job with its own output folder, so
the same command resumes where an earlier one stopped. It ends with the scores beside those of baselines that have not
seen the film, and with the seconds and the memory that each job took.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from megpt.config import Config
from megpt.demo.costs import PeakMemory, costs_table, measured, read_costs
from megpt.output import SUCCESS, Output
from megpt.progress import console, log
from ray_jobs.demo.draw import Draw
from ray_jobs.demo.language_model import LanguageModel
from ray_jobs.evaluate import HEADLINE, PAGE, Evaluate, read_metrics
from ray_jobs.fit_prompts import FitPrompts
from ray_jobs.generate.job import Generate, held_out
from ray_jobs.job import Job
from ray_jobs.prepare import Prepare
from ray_jobs.train.job import Train, check


class Stage(NamedTuple):
    """One job of the demo: its name, and the folder under OUT it writes."""

    name: str
    folder: str
    job: type[Job]


STAGES = (
    Stage("draw", "archive", Draw),
    Stage("prepare", "studies", Prepare),
    Stage("language model", "llm", LanguageModel),
    Stage("fit-prompts", "prompts", FitPrompts),
    Stage("train", "checkpoint", Train),
    Stage("generate", "predictions", Generate),
    Stage("evaluate", "evaluation", Evaluate),
)


class Demo(Job):
    name = "demo"
    reads = (
        *("seed", "limit", "data", "phantom", "prepare", "language_model", "fit_prompts", "model", "train"),
        *("generate", "evaluate"),
    )

    def open(self) -> None:
        self.config = resolve(self.config)
        check(self.config)

    def preview(self, folder: Path) -> None:
        log(f"demo: would run {', '.join(stage.name for stage in STAGES)} under {folder}")

    def work(self, folder: Path) -> None:
        """Run every stage that is not finished yet."""
        with PeakMemory() as memory:
            for number, stage in enumerate(STAGES, start=1):
                log(f"demo: {stage.name} ({number} of {len(STAGES)})")
                config = config_of(stage, self.config)
                if (folder / stage.folder / SUCCESS).exists():
                    stage.job.run(config)
                else:
                    with measured(folder, stage.name, memory):
                        stage.job.run(config)

    def finish(self, folder: Path) -> dict[str, Any]:
        return {"jobs": {name: cost._asdict() for name, cost in read_costs(folder).items()}}

    def kept(self, folder: Path) -> bool:
        return any(path.is_dir() for path in folder.iterdir())

    def tell(self, folder: Path, summary: dict[str, Any]) -> None:
        console.print(scores_table(read_metrics(folder / "evaluation")))
        console.print(costs_table(read_costs(folder)))
        log(f"demo: open {(folder / 'evaluation' / PAGE).absolute()}")

    def nothing_to_do(self, output: Output) -> None:
        super().nothing_to_do(output)
        self.tell(output.path, output.summary())


def resolve(config: Config) -> Config:
    """The demo's config with every path under its output, whatever paths the file names."""
    root = Path(str(config.output))
    paths = {name: str(root / name) for name in ("studies", "prompts", "checkpoint", "predictions")}
    return config.overridden({**paths, "source": str(root / "archive"), "model.llm": str(root / "llm")})


def config_of(stage: Stage, config: Config) -> Config:
    """The stage's own output; `generate` reads the studies table, not the archive."""
    folder = str(Path(str(config.output)) / stage.folder)
    if stage.job is Generate:
        return held_out(config).updated(output=folder, source=None)
    if stage.job is Evaluate and config.evaluate.dataset is None:
        config = config.overridden({"evaluate.dataset": "drawn phantom films"})
    return config.updated(output=folder)


def scores_table(metrics: dict[str, Any]) -> Table:
    """The scores beside both baselines."""
    table = Table(title=f"{metrics['n']} held-out studies")
    table.add_column("score")
    for name in ("MeGPT", *metrics["baselines"]):
        table.add_column(name, justify="right")
    for name in HEADLINE:
        if name in metrics["scores"]:
            values = [metrics["scores"][name], *(scores.get(name) for scores in metrics["baselines"].values())]
            table.add_row(name, *("–" if value is None else f"{value:.3f}" for value in values))
    return table
