"""A checkpoint's vision encoder alone: for work on films that needs no language model."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from megpt.model import lora
from megpt.model.checkpoint.fetch import local_folder
from megpt.model.checkpoint.fingerprint import DAMAGE, damaged, weight_files
from megpt.model.checkpoint.load import restored_encoder
from megpt.model.configuration import MeGPTConfig
from megpt.model.vision import VisionEncoder


def load_encoder(name: str, *, weights: str | None = None) -> VisionEncoder:
    """The encoder as the checkpoint trained it, LoRA included, in evaluation mode and float32.

    Args:
        name: a checkpoint folder or hub id.
        weights: where a frozen encoder's weights lie now, when that is not where they lay.

    Raises:
        InputError: no checkpoint, a file is missing or damaged, or the frozen encoder is not the one it names.
    """
    folder = local_folder(name)
    config = MeGPTConfig.from_pretrained(folder)
    encoder = restored_encoder("vision", config, _vision_tensors(folder), weights, folder)
    if config.mode == "delta":
        rank, alpha = config.lora_rank, config.lora_alpha
        lora.add_adapters(encoder.trunk, config.vision, rank=rank, alpha=alpha, dropout=0.0)
        lora.load_adapters(encoder.trunk, folder / lora.VISION_ADAPTER)
    encoder.requires_grad_(False).eval().float()
    return encoder


class SideBySide(nn.Module):
    """Two encoders of one kind as one: films (R, 3, S, S) → the maps of both (R, 2 · C, h, w), in this order."""

    def __init__(self, first: VisionEncoder, second: VisionEncoder):
        super().__init__()
        self.first, self.second = first, second
        self.trunk = first.trunk
        self.image_size, self.channels = first.image_size, first.channels + second.channels

    def forward(self, films: Tensor) -> Tensor:
        return torch.cat([self.first(films), self.second(films)], dim=1)


def _vision_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors named `vision.…`; those of a language model of many gigabytes stay unread."""
    tensors: dict[str, Tensor] = {}
    try:
        for file in weight_files(folder):
            with safe_open(file, framework="pt") as held:
                tensors |= {k: held.get_tensor(k) for k in held.keys() if k.startswith("vision.")}  # noqa: SIM118
    except DAMAGE as error:
        raise damaged(f"the weights in {folder}", error) from error
    return tensors
