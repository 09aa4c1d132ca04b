"""studies/ → llm/: a small Llama and its tokenizer, fitted to the training split's reports, for `model.llm`.

    megpt language-model studies=runs/studies output=runs/llm language_model.val_every=50

An ordinary Hugging Face folder that learns to write reports from vectors, before any film is seen, and is frozen after
that: for runs without a hub, and for many runs on a small machine. With `language_model.val_every` the weights with the
lowest loss on the val split's reports are kept. Needs no cluster; minutes, so a killed job starts again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megpt.config import Config
from megpt.data.cleaning import clean
from megpt.data.studies import fingerprint, read_studies, study_files
from megpt.demo.language_model_process import train_apart
from megpt.errors import InputError
from megpt.progress import Progress, log
from ray_jobs.job import Job


class LanguageModel(Job):
    name = "language-model"
    reads = ("studies", "seed", "language_model", "data.section", "data.cleaner")
    needs = ("studies",)
    eventful = False

    def open(self) -> None:
        study_files(str(self.config.studies), "train")
        settings = self.config.language_model
        if settings.hidden_size % settings.num_heads:
            raise InputError(
                f"language_model.hidden_size = {settings.hidden_size} cannot be divided among "
                f"{settings.num_heads} heads",
                next="set language_model.num_heads to a divisor of it",
            )
        if settings.val_every and not report_texts(self.config, "val"):
            raise InputError(
                "language_model.val_every is set, but no study of the val split has a report",
                where=self.config.studies,
                next="leave language_model.val_every out, or give a table with split=val",
            )

    def inputs(self) -> dict[str, Any]:
        return {"studies": fingerprint(str(self.config.studies))}

    def demand(self) -> None:
        return None

    def preview(self, folder: Path) -> None:
        log(f"language-model: would train {self.config.language_model.steps} steps into {folder}")

    def work(self, folder: Path) -> None:
        config = self.config
        self.reports = report_texts(config, "train")
        held_out = report_texts(config, "val") if config.language_model.val_every else []
        with Progress("language model", config.language_model.steps, unit="steps") as progress:
            self.fit = train_apart(
                *(self.reports, held_out, config.language_model, folder), seed=config.seed, on_step=progress.advance
            )

    def finish(self, folder: Path) -> dict[str, Any]:
        fit = self.fit
        losses = {str(step): round(loss, 4) for step, loss in fit.val_losses.items()}
        return {
            "reports": len(self.reports),
            "loss": round(fit.loss, 4),
            **({"steps": fit.steps, "kept_step": fit.kept, "val_losses": losses} if losses else {}),
        }

    def tell(self, folder: Path, summary: dict[str, Any]) -> None:
        kept = f", step {summary['kept_step']} kept of {summary['steps']}" if "kept_step" in summary else ""
        log(f"language-model: {folder}: loss {summary['loss']} nats a token on {summary['reports']} reports{kept}")


def report_texts(config: Config, split: str) -> list[str]:
    """A split's reports, cleaned as they are for training."""
    section = config.data.section
    columns = ["study_id", "report", "findings", "impression"]
    texts = (getattr(study, section) for study in read_studies(str(config.studies), split, columns=columns))
    return [clean(text, config.data.cleaner) for text in texts if text]
