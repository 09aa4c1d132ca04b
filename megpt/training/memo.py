"""The prompt of each study, chosen once: it comes from a frozen encoder, so no later epoch can choose another.

Modes delta and deep keep that encoder beside the one that learns, and would run it on every film of every step. One
small memory-mapped file per node, shared by its workers, remembers the choice instead. Not used under ZeRO-3, where a
frozen encoder is gathered by all workers together and none may leave it out alone.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from megpt.config import Config
from megpt.model import PromptBank
from megpt.training.order import Indices


class PromptMemo:
    """Prompt ids of `count` samples, each of `prompts` ones, in a file that starts as unknown."""

    def __init__(self, path: Path, count: int, prompts: int):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._prompts = prompts
        # 0: not chosen yet; k + 1: prompt k.
        self._stored = torch.from_file(str(path), shared=True, size=count, dtype=torch.int32)

    def known(self, piece: Indices) -> Tensor:
        """Prompt ids of a piece (B,) long, -1 where not chosen yet, or where a damaged file names no prompt."""
        ids = self._stored[torch.from_numpy(piece)].long() - 1
        return ids.masked_fill((ids < 0) | (ids >= self._prompts), -1)

    def keep(self, piece: Indices, prompt_id: Tensor, failed: set[int]) -> None:
        """Remember what was chosen (B,), but for studies whose films could not be read this time."""
        for index, prompt in zip(piece.tolist(), prompt_id.tolist(), strict=True):
            if index not in failed:
                self._stored[index] = prompt + 1


def prompt_path(config: Config, bank: PromptBank, folder: Path) -> Path:
    """The file in a node's sample folder: named by all that the choices depend on."""
    assert bank.centroids is not None
    key = json.dumps([config.seed, config.train.precision, config.model.model_dump(mode="json")], sort_keys=True)
    digest = hashlib.sha256(key.encode() + bank.centroids.float().cpu().contiguous().numpy().tobytes())
    return folder / f"prompts-{digest.hexdigest()[:16]}.bin"


def is_of_use(config: Config, bank: PromptBank) -> bool:
    """Whether choosing a prompt costs an encoder's pass of its own."""
    return bank.centroids is not None and config.model.mode != "shallow"
