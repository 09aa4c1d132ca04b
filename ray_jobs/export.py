"""checkpoint/ → a folder to share: what a user of the model needs, and nothing of the run that made it.

    megpt export checkpoint=runs/checkpoint output=runs/shared                       # frozen parts stay named
    megpt export checkpoint=runs/checkpoint output=runs/shared full=true merge=true dtype=bf16

`full` holds the language model and the encoder too, so that the folder needs no other files; `merge` adds LoRA to the
weights and folds DOConv; `dtype` is the number format of all that is written. Weights are safetensors, in shards of
`export.max_shard_size`. Needs no cluster.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megpt.errors import InputError
from megpt.model.checkpoint.decoding import carried
from megpt.model.checkpoint.fetch import is_hub_id, local_folder
from megpt.model.checkpoint.fingerprint import fingerprint
from megpt.places import place
from megpt.progress import log
from ray_jobs.job import Job


class Export(Job):
    name = "export"
    reads = ("checkpoint", "export", "model.llm")
    needs = ("checkpoint",)
    eventful = False

    def open(self) -> None:
        name = str(self.config.checkpoint)
        if is_hub_id(name) is False and not (place(name) / "config.json").is_file():
            raise InputError(
                f"no checkpoint at {name}",
                cause="it has no config.json",
                next="set checkpoint=PATH to an output of `megpt train` or `megpt import-checkpoint`",
            )
        self.folder = local_folder(name)
        self.mark = fingerprint(self.folder)
        self.llm = self.config.model.llm if "model.llm" in self.config.named else None

    def identity(self) -> dict[str, Any]:
        # The language model is checked against the checkpoint's hash, so its place does not count.
        return self.config.identity("export") | self.inputs()

    def inputs(self) -> dict[str, Any]:
        return {"checkpoint": self.mark}

    def demand(self) -> None:
        return None

    def preview(self, folder: Path) -> None:
        settings = self.config.export
        parts = "all weights" if settings.full else "what was trained"
        log(f"export: would write {parts} of {self.folder} as {settings.dtype or 'they are'} to {folder}")

    def work(self, folder: Path) -> None:
        import torch

        from megpt.model import MeGPTForConditionalGeneration, MeGPTProcessor
        from megpt.model.checkpoint.card import keep_scores

        settings = self.config.export
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, None: None}[settings.dtype]
        model = MeGPTForConditionalGeneration.from_pretrained(self.folder, dtype=dtype, llm=self.llm)
        if settings.merge:
            model.merge().fold()
        model.save_pretrained(folder, full=settings.full, max_shard_size=settings.max_shard_size)
        MeGPTProcessor.from_pretrained(self.folder).save_pretrained(folder)
        if fingerprint(folder) == self.mark:
            keep_scores(self.folder, folder)
        else:
            log("export: the weights are not those that were scored, so the card has no scores: run `megpt evaluate`")

    def finish(self, folder: Path) -> dict[str, Any]:
        weights = sorted(folder.glob("model*.safetensors"))
        return {
            "fingerprint": fingerprint(folder),
            "origin": self.mark,
            "shards": len(weights),
            "bytes": sum(path.stat().st_size for path in (*weights, *folder.glob("adapter_*/*.safetensors"))),
            "decoding": carried(folder),
        }

    def tell(self, folder: Path, summary: dict[str, Any]) -> None:
        size = f"{summary['bytes'] / 2**20:.1f} MiB in {summary['shards']} files"
        log(f"export: {folder}: {size}, fingerprint {summary['fingerprint']}")
