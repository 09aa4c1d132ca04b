"""Train the demo's small language model on the text of the training split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megpt.config import Config
from megpt.data.cleaning import clean
from megpt.data.studies import fingerprint, read_studies
from megpt.demo.language_model_process import train_apart
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
            self.loss = train_apart(
                self.reports, self.config.language_model, folder, seed=self.config.seed, on_step=progress.advance
            )

    def finish(self, folder: Path) -> dict[str, Any]:
        return {"reports": len(self.reports), "loss": round(self.loss, 4)}


def training_texts(config: Config) -> list[str]:
    """The training split's reports, cleaned as they are for training."""
    section = config.data.section
    columns = ["study_id", "report", "findings", "impression"]
    texts = (getattr(study, section) for study in read_studies(str(config.studies), "train", columns=columns))
    return [clean(text, config.data.cleaner) for text in texts if text]
