"""Jobs in a row, each with its own folder under one output: the frame of `run` and `demo`.

Each stage is an ordinary job, so the same command resumes where an earlier one stopped. A flow ends with the scores
beside those of baselines that have not seen the film, and with the seconds and the memory that each job took.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from rich.table import Table

from megpt.config import Config
from megpt.demo.costs import PeakMemory, costs_table, measured, read_costs
from megpt.output import SUCCESS, Output
from megpt.progress import console, log
from ray_jobs.evaluate import HEADLINE, PAGE, Evaluate, read_metrics
from ray_jobs.fit_prompts import FitPrompts
from ray_jobs.generate.job import Generate, held_out
from ray_jobs.job import Job
from ray_jobs.prepare import Prepare
from ray_jobs.train.job import Train, check


class Stage(NamedTuple):
    """One job of a flow: its name, and the folder under OUT it writes."""

    name: str
    folder: str
    job: type[Job]


PREPARE = Stage("prepare", "studies", Prepare)
FIT_PROMPTS = Stage("fit-prompts", "prompts", FitPrompts)
TRAIN_TO_SCORE = (
    Stage("train", "checkpoint", Train),
    Stage("generate", "predictions", Generate),
    Stage("evaluate", "evaluation", Evaluate),
)


class Flow(Job):
    """Stages in a row. A subclass says which, and where those find what is not theirs."""

    reads = (
        *("seed", "limit", "data", "prepare", "language_model", "fit_prompts", "model", "train"),
        *("generate", "evaluate"),
    )
    dataset: ClassVar[str | None] = None
    """The data's name in the model card, where the config has none."""

    def stages(self) -> tuple[Stage, ...]:
        """The jobs, in order."""
        raise NotImplementedError

    def paths(self, root: Path) -> dict[str, str]:
        """Keys of the config that name what a stage writes, beside those that every flow has."""
        return {}

    def open(self) -> None:
        root = Path(str(self.config.output))
        paths: dict[str, Any] = {name: str(root / name) for name in ("studies", "checkpoint", "predictions")}
        paths["prompts"] = str(root / "prompts") if self.config.model.dynamic_prompt else None
        self.config = self.config.overridden({**paths, **self.paths(root)})
        check(self.config)

    def preview(self, folder: Path) -> None:
        log(f"{self.name}: would run {', '.join(stage.name for stage in self.stages())} under {folder}")

    def work(self, folder: Path) -> None:
        """Run every stage that is not finished yet."""
        stages = self.stages()
        with PeakMemory() as memory:
            for number, stage in enumerate(stages, start=1):
                log(f"{self.name}: {stage.name} ({number} of {len(stages)})")
                config = self.config_of(stage)
                if (folder / stage.folder / SUCCESS).exists():
                    stage.job.run(config)
                else:
                    with measured(folder, stage.name, memory):
                        stage.job.run(config)

    def config_of(self, stage: Stage) -> Config:
        """The stage's own output; `prepare` alone reads the archive, and reports are written for the test split."""
        config = self.config.updated(output=str(Path(str(self.config.output)) / stage.folder))
        if stage.job is not Prepare:
            config = config.updated(source=None)
        if stage.job is Evaluate and self.dataset and config.evaluate.dataset is None:
            config = config.overridden({"evaluate.dataset": self.dataset})
        return held_out(config) if stage.job is Generate else config

    def finish(self, folder: Path) -> dict[str, Any]:
        return {"jobs": {name: cost._asdict() for name, cost in read_costs(folder).items()}}

    def kept(self, folder: Path) -> bool:
        return any(path.is_dir() for path in folder.iterdir())

    def tell(self, folder: Path, summary: dict[str, Any]) -> None:
        console.print(scores_table(read_metrics(folder / "evaluation")))
        console.print(costs_table(read_costs(folder)))
        log(f"{self.name}: open {(folder / 'evaluation' / PAGE).absolute()}")

    def nothing_to_do(self, output: Output) -> None:
        super().nothing_to_do(output)
        self.tell(output.path, output.summary())


def scores_table(metrics: dict[str, Any]) -> Table:
    """The scores beside those of the baselines."""
    table = Table(title=f"{metrics['n']} held-out studies")
    table.add_column("score")
    for name in ("MeGPT", *metrics["baselines"]):
        table.add_column(name, justify="right")
    for name in HEADLINE:
        if name in metrics["scores"]:
            values = [metrics["scores"][name], *((scores or {}).get(name) for scores in metrics["baselines"].values())]
            table.add_row(name, *("–" if value is None else f"{value:.3f}" for value in values))
    return table
