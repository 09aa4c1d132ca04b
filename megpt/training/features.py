"""The frozen encoder's maps of each study, kept after their first computation (`train.cache_features`, mode shallow).

One sparse memory-mapped file per node, shared by its workers: whoever computes a study's maps writes them, the same
values whoever it is. A micro-batch whose studies are all there needs neither its films nor the encoder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megpt.config import Config
from megpt.errors import InputError
from megpt.training.order import Indices


class FeatureCache:
    """Maps (V, C, h, w) of each sample.

    Args:
        vision: the frozen encoder; its `forward` is replaced by one that looks here first.
        num_views: films of each sample, (N,).
        dtype: of the maps, as the encoder returns them.
    """

    def __init__(self, path: Path, vision: Any, num_views: np.ndarray, *, dtype: torch.dtype):
        self._shape = (int(vision.layout["channels"]), *map(int, vision.layout["grid"]))
        self._begin = np.concatenate(([0], np.cumsum(num_views)))
        count = int(self._begin[-1]) * int(np.prod(self._shape))
        path.parent.mkdir(parents=True, exist_ok=True)
        self._maps = torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(-1, *self._shape)
        # Views that were readable and are stored, per sample; 0: not yet.
        self._held = torch.from_file(f"{path}.held", shared=True, size=len(num_views), dtype=torch.int32)
        self._given: Tensor | None = None
        self._computed: Tensor | None = None
        self._forward = vision.forward
        vision.forward = self._look

    def views(self, piece: Indices) -> list[int] | None:
        """Stored views of each sample of a piece; None unless all of them are stored."""
        held: list[int] = self._held[torch.from_numpy(piece)].tolist()
        return held if held and all(held) else None

    @contextmanager
    def around(self, piece: Indices, view_mask: Tensor, *, failed: set[int], stored: bool) -> Iterator[None]:
        """Around the forward pass of a piece: give its maps, or keep those that the encoder computes."""
        if stored:
            rows = [self._maps[self._begin[i] : self._begin[i] + int(self._held[i])] for i in piece.tolist()]
            self._given = torch.cat(rows).to(view_mask.device)
        try:
            yield
            if not stored and self._computed is not None and len(piece):
                self._keep(piece, self._computed.split(view_mask.sum(1).tolist()), failed)
        finally:
            self._given = self._computed = None

    def _keep(self, piece: Indices, maps: tuple[Tensor, ...], failed: set[int]) -> None:
        for index, mine in zip(piece.tolist(), maps, strict=True):
            if index not in failed:
                begin = int(self._begin[index])
                self._maps[begin : begin + len(mine)] = mine.detach().cpu()
                self._held[index] = len(mine)

    def _look(self, films: Tensor) -> Tensor:
        if self._given is not None:
            return self._given
        self._computed = self._forward(films)
        return self._computed


def feature_path(config: Config, folder: Path) -> Path:
    """The file in a node's sample folder: named by all that the maps depend on."""
    key = json.dumps([config.seed, config.train.precision, config.model.model_dump(mode="json")], sort_keys=True)
    return folder / f"features-{hashlib.sha256(key.encode()).hexdigest()[:16]}.bin"


def check_cache(config: Config) -> None:
    """Raise InputError where the encoder's maps change during training."""
    if config.train.cache_features and config.model.mode != "shallow":
        raise InputError(
            f"train.cache_features needs model.mode = shallow, not {config.model.mode}",
            cause="the encoder is trained in this mode, so its features change with every step",
            next="set train.cache_features=false",
        )
