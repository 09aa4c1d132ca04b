"""All jobs in a row on drawn films, on any laptop: an archive goes in, reports and an honest score come out.

    megpt demo --config configs/phantom.yaml output=runs/demo

OUT/{archive,studies,llm,prompts,checkpoint,predictions,evaluation}. Each stage is a job's own `run` with its own
output folder, so the same command goes on where an earlier one stopped. It ends with the scores beside those of two
baselines that have not seen the film, and the seconds and memory each job took.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ray
from rich.table import Table

from megpt.config import Config
from megpt.data.studies import read_studies
from megpt.demo.phantom import write_films, write_tables
from megpt.errors import MegptError
from megpt.output import SUCCESS, claim, write_aside
from megpt.progress import Progress, console, log
from ray_jobs import evaluate, fit_prompts, generate, prepare, train
from ray_jobs.runtime import cluster

COSTS = "costs.json"
STUDIES_PER_TASK = 100
SCORES = (
    "BLEU_1",
    "BLEU_4",
    "METEOR",
    "ROUGE_L",
    "CIDEr",
    "clinical_micro_f1",
    "clinical_macro_f1",
)


@dataclass(frozen=True)
class Stage:
    """One job of the demo: its name, the folder under OUT it writes, and what runs it."""

    name: str
    folder: str
    run: Callable[..., int]


def write_archive(config: Config, *, dry_run: bool = False) -> int:
    """Draw the archive, its films on all cores."""
    if dry_run:
        log(f"draw: would draw {config.phantom.num_studies} studies into {config.output}")
        return 0
    identity = {"phantom": config.phantom.model_dump(mode="json"), "seed": config.seed}
    with claim(config.output, job="draw", identity=identity, config=config) as output:
        if output.done:
            log(f"draw: {output.path} is finished, nothing to do")
            return 0
        folder, total = str(output.path.absolute()), config.phantom.num_studies
        with cluster(config.cluster), Progress("draw", total) as progress:
            draw: Any = ray.remote(write_films)
            parts = [range(a, min(a + STUDIES_PER_TASK, total)) for a in range(0, total, STUDIES_PER_TASK)]
            waiting = {draw.remote(folder, config.phantom, config.seed, part): len(part) for part in parts}
            films = 0
            while waiting:
                done, _ = ray.wait(list(waiting), num_returns=1)
                films += sum(ray.get(done))
                progress.advance(sum(waiting.pop(one) for one in done))
        write_tables(output.path, config.phantom, config.seed)
        output.finish(studies=total, films=films)
    return 0


def write_language_model(config: Config, *, dry_run: bool = False) -> int:
    """Train the small language model on the training split's text."""
    if dry_run:
        log(f"language model: would train {config.language_model.steps} steps into {config.output}")
        return 0
    from megpt.data.studies import fingerprint

    studies, settings = str(config.studies), config.language_model
    identity = {
        "language_model": settings.model_dump(mode="json"),
        "studies": fingerprint(studies),
        "section": config.data.section,
        "cleaner": config.data.cleaner,
        "seed": config.seed,
    }
    with claim(config.output, job="language-model", identity=identity, config=config) as output:
        if output.done:
            log(f"language model: {output.path} is finished, nothing to do")
            return 0
        reports = training_texts(config)
        with Progress("language model", settings.steps, unit="steps") as progress:
            loss = _teach_apart(reports, config, output.path, progress)
        output.finish(reports=len(reports), loss=round(loss, 4))
    return 0


def _teach_apart(reports: list[str], config: Config, folder: Path, progress: Progress) -> float:
    """Train in a process of its own, whose memory is given back when it ends; returns the last loss.

    Raises:
        MegptError: as `train_language_model`, or the process was killed.
    """
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_teach, args=(there, reports, config, folder), daemon=True)
    process.start()
    there.close()
    try:
        while isinstance(told := here.recv(), int):
            progress.advance()
    except EOFError:
        process.join()
        raise MegptError(
            "the process that trains the language model has ended",
            where=str(folder),
            cause=f"it was killed (exit code {process.exitcode}), perhaps for want of memory",
            next="run the same command again",
        ) from None
    process.join()
    if isinstance(told, MegptError):
        raise told
    return float(told)


def _teach(pipe: Any, reports: list[str], config: Config, folder: Path) -> None:
    """Sends the number of each step, then the loss or the error that ended it."""
    from megpt.demo.language_model import train_language_model

    def tell(step: int, loss: float) -> None:
        pipe.send(step)

    try:
        loss = train_language_model(reports, config.language_model, folder, seed=config.seed, on_step=tell)
        pipe.send(float(loss))
    except MegptError as error:
        pipe.send(error)


def training_texts(config: Config) -> list[str]:
    """The training split's reports, cleaned as they are for training."""
    from megpt.data.cleaning import clean

    section = config.data.section
    columns = ["study_id", "report", "findings", "impression"]
    texts = (getattr(study, section) for study in read_studies(str(config.studies), "train", columns=columns))
    return [clean(text, config.data.cleaner) for text in texts if text]


STAGES = (
    Stage("draw", "archive", write_archive),
    Stage("prepare", "studies", prepare.run),
    Stage("language model", "llm", write_language_model),
    Stage("fit-prompts", "prompts", fit_prompts.run),
    Stage("train", "checkpoint", train.run),
    Stage("generate", "predictions", generate.run),
    Stage("evaluate", "evaluation", evaluate.run),
)


def resolve(config: Config) -> Config:
    """The demo's config with every path under its output, whatever paths the file names."""
    config.require("output")
    root = Path(str(config.output))
    paths = {name: str(root / name) for name in ("studies", "prompts", "checkpoint", "predictions")}
    return config.overridden({**paths, "source": str(root / "archive"), "model.llm": str(root / "llm")})


def run(config: Config, *, dry_run: bool = False) -> int:
    """Run every stage that is not finished yet; returns 0.

    Raises:
        InputError: the output holds something else or was made from another config.
        MegptError: a stage failed; the same command goes on from there.
    """
    config = resolve(config)
    root = Path(str(config.output))
    if dry_run:
        log(f"demo: would run {', '.join(stage.name for stage in STAGES)} under {root}")
        return 0
    identity = config.model_dump(mode="json", exclude={"cluster", "output"})
    with claim(root, job="demo", identity=identity, config=config) as output:
        spent = _read_costs(output.path)
        with PeakMemory() as memory, cluster(config.cluster):
            for number, stage in enumerate(STAGES, start=1):
                log(f"demo: {stage.name} ({number} of {len(STAGES)})")
                finished = (output.path / stage.folder / SUCCESS).exists()
                began = time.monotonic()
                memory.restart()
                try:
                    stage.run(_config_of(stage, config))
                finally:
                    if not finished:
                        before = spent.get(stage.name, Cost(0, 0))
                        spent[stage.name] = Cost(before.seconds + time.monotonic() - began, max(before.gib, memory.gib))
                        _write_costs(output.path, spent)
        metrics = json.loads((output.path / "evaluation" / evaluate.METRICS).read_text(encoding="utf-8"))
        output.finish(jobs={name: cost._asdict() for name, cost in spent.items()})
    console.print(scores_table(metrics))
    console.print(costs_table(spent))
    log(f"demo: open {(root / 'evaluation' / evaluate.PAGE).absolute()}")
    return 0


def _config_of(stage: Stage, config: Config) -> Config:
    """The stage's own output; `generate` reads the studies table, not the archive."""
    folder = str(Path(str(config.output)) / stage.folder)
    if stage.name == "generate":
        return config.updated(output=folder, source=None)
    return config.updated(output=folder)


class Cost(NamedTuple):
    """What a job took, over all its starts that were not killed: seconds, and the most memory at one time in GiB."""

    seconds: float
    gib: float


def _read_costs(folder: Path) -> dict[str, Cost]:
    try:
        return {name: Cost(**cost) for name, cost in json.loads((folder / COSTS).read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write_costs(folder: Path, spent: dict[str, Cost]) -> None:
    rows = {name: {"seconds": round(cost.seconds, 1), "gib": round(cost.gib, 2)} for name, cost in spent.items()}
    with write_aside(folder / COSTS) as temporary:
        temporary.write_text(json.dumps(rows, indent=1) + "\n")


def scores_table(metrics: dict[str, Any]) -> Table:
    """The scores beside both baselines."""
    table = Table(title=f"{metrics['n']} held-out studies")
    table.add_column("score")
    for name in ("MeGPT", *metrics["baselines"]):
        table.add_column(name, justify="right")
    for name in SCORES:
        if name in metrics["scores"]:
            values = [metrics["scores"][name], *(scores.get(name) for scores in metrics["baselines"].values())]
            table.add_row(name, *("–" if value is None else f"{value:.3f}" for value in values))
    return table


def costs_table(spent: dict[str, Cost]) -> Table:
    """Where time and memory went."""
    table = Table(title="what it took", show_footer=True)
    table.add_column("job", footer="all")
    table.add_column("s", justify="right", footer=f"{sum(cost.seconds for cost in spent.values()):.0f}")
    table.add_column("peak GiB", justify="right", footer=f"{max(cost.gib for cost in spent.values()):.1f}")
    for name, cost in spent.items():
        table.add_row(name, f"{cost.seconds:.1f}", f"{cost.gib:.1f}")
    return table


class PeakMemory:
    """The most memory that this process and all processes below it held at one time, sampled every two seconds.

    Proportional set size, where the system tells it: what several processes share is counted once.
    """

    def __init__(self) -> None:
        self._peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def gib(self) -> float:
        return self._peak / 2**30

    def restart(self) -> None:
        """Forget what was held before."""
        self._peak = 0

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        me = psutil.Process(os.getpid())
        while not self._stop.wait(2.0):
            total = 0
            for process in [me, *_children(me)]:
                try:
                    total += getattr(process.memory_full_info(), "pss", 0) or process.memory_info().rss
                except psutil.Error:
                    continue
            self._peak = max(self._peak, total)


def _children(process: Any) -> list[Any]:
    import psutil

    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []
