"""Train the demo's small language model on the text of the training split."""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path
from typing import Any

from megpt.config import Config
from megpt.data.cleaning import clean
from megpt.data.studies import fingerprint, read_studies
from megpt.errors import MegptError
from megpt.progress import Progress, log
from ray_jobs.job import Job


class LanguageModel(Job):
    name = "language-model"
    reads = ("studies", "seed", "language_model", "data.section", "data.cleaner")
    needs = ("studies",)

    def inputs(self) -> dict[str, Any]:
        return {"studies": fingerprint(str(self.config.studies))}

    def demand(self) -> None:
        return None

    def preview(self, folder: Path) -> None:
        log(f"language-model: would train {self.config.language_model.steps} steps into {folder}")

    def work(self, folder: Path) -> None:
        self.reports = training_texts(self.config)
        with Progress("language model", self.config.language_model.steps, unit="steps") as progress:
            self.loss = _train_apart(self.reports, self.config, folder, progress)

    def finish(self, folder: Path) -> dict[str, Any]:
        return {"reports": len(self.reports), "loss": round(self.loss, 4)}


def training_texts(config: Config) -> list[str]:
    """The training split's reports, cleaned as they are for training."""
    section = config.data.section
    columns = ["study_id", "report", "findings", "impression"]
    texts = (getattr(study, section) for study in read_studies(str(config.studies), "train", columns=columns))
    return [clean(text, config.data.cleaner) for text in texts if text]


def _train_apart(reports: list[str], config: Config, folder: Path, progress: Progress) -> float:
    """Train in a process of its own, whose memory is given back when it ends; returns the last loss.

    Raises:
        MegptError: as `train_language_model`, or the process was killed.
    """
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_train, args=(there, reports, config, folder), daemon=True)
    process.start()
    there.close()
    try:
        while isinstance(message := here.recv(), int):
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
    if isinstance(message, MegptError):
        raise message
    return float(message)


def _train(pipe: Any, reports: list[str], config: Config, folder: Path) -> None:
    """Sends the number of each step, then the loss or the error that ended it."""
    from megpt.demo.language_model import train_language_model

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both processes: the command ends this one

    def send_step(step: int, loss: float) -> None:
        pipe.send(step)

    try:
        loss = train_language_model(reports, config.language_model, folder, seed=config.seed, on_step=send_step)
        pipe.send(float(loss))
    except MegptError as error:
        pipe.send(error)
