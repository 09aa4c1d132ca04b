"""A reference .pth → checkpoint/: weights of R2GenGPT and of the MeGPT reference.

    megpt import-checkpoint checkpoint_epoch14.pth --config configs/iu_xray_delta.yaml output=runs/imported

What is in the file is never run; only tensors are taken from it. Mode, FEM, DOConv and LoRA follow from the file, so
that the model computes what the reference did; `prompts=FOLDER` gives it fitted prompts in place of the fixed
instruction, `import_checkpoint.merge_lora=true` adds the encoder's LoRA to its weights. Needs no cluster.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from rich.console import Console

from megpt.config import Config
from megpt.errors import InputError
from megpt.places import here
from megpt.progress import log
from ray_jobs.job import Job


class ImportCheckpoint(Job):
    name = "import-checkpoint"
    reads = ("prompts", "seed", "model", "import_checkpoint")
    eventful = False

    def __init__(self, config: Config, file: str):
        super().__init__(config)
        self.file = Path(file)
        if not self.file.is_file():
            raise InputError(f"no checkpoint at {self.file}", next="megpt import-checkpoint FILE.pth output=FOLDER")

    def open(self) -> None:
        from megpt.model.prompts import PromptBank
        from megpt.model.reference.convert import import_reference

        config = self.config
        self.bank = PromptBank.load(here(config.prompts)) if config.prompts else None
        merge = config.import_checkpoint.merge_lora
        self.model, self.processor, self.report = import_reference(
            self.file, config.model, bank=self.bank, seed=config.seed, merge_lora=merge
        )
        Console().print(self.report.render())

    def inputs(self) -> dict[str, Any]:
        with self.file.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()[:16]
        return {"file": digest, "prompts": list(self.bank.texts) if self.bank else None}

    def demand(self) -> None:
        return None

    def estimate(self) -> bool:
        self.open()
        self.preview(Path())
        return True

    def preview(self, folder: Path) -> None:
        log("import-checkpoint: it fits; nothing was written")

    def work(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def finish(self, folder: Path) -> dict[str, Any]:
        return {name: len(getattr(self.report, name)) for name in ("used", "ignored", "missing")}

    def tell(self, folder: Path, summary: dict[str, Any]) -> None:
        log(f"import-checkpoint: {self.file} → {folder}; next: megpt generate checkpoint={folder} source=… output=…")
