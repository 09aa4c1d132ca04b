"""What a frozen encoder yields for each study, computed once and shared by the workers of a node.

    memo = open_memo(config, model, samples, folder, zero_stage=2)
    memo.stored_views(piece)                    # None, or: these studies need no film and no encoder
    out = memo.forward(engine, batch, inputs)

Each memo is one sparse memory-mapped file per node. Whoever computes a value writes it, and the values do not depend
on who that is, so the workers need no lock.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch
from torch import Tensor

from megpt.config import Config
from megpt.data.growth import film_state
from megpt.data.studies import Listed
from megpt.model.checkpoint.fingerprint import fingerprint_of
from megpt.training.order import Indices
from megpt.training.samples import Samples, input_fingerprint

if TYPE_CHECKING:
    from megpt.training.batches import MicroBatch


class Memo:
    """Remembers nothing: each forward pass computes everything."""

    def stored_views(self, piece: Indices) -> list[int] | None:
        """Number of stored views of each sample of a piece; None unless all of them are stored."""
        return None

    def forward(self, engine: Any, batch: MicroBatch, inputs: dict[str, Any]) -> Any:
        """The model's output for a micro-batch."""
        return engine(**inputs)


class FeatureCache(Memo):
    """The encoder's maps (V, C, h, w) of each sample (`train.cache_features`, mode shallow).

    Args:
        vision: the frozen encoder; its `forward` is replaced by one that looks here first.
        num_views: films of each sample, (N,).
        dtype: of the maps, as the encoder returns them.
    """

    def __init__(self, path: Path, vision: Any, num_views: np.ndarray, *, dtype: torch.dtype):
        self._shape = (int(vision.layout["channels"]), *map(int, vision.layout["grid"]))
        self._begin = np.concatenate(([0], np.cumsum(num_views)))
        count = int(self._begin[-1]) * int(np.prod(self._shape))
        self._maps = torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(-1, *self._shape)
        # Views that were readable and are stored, per sample; 0: not yet.
        self._held = torch.from_file(f"{path}.held", shared=True, size=len(num_views), dtype=torch.int32)
        self._given: Tensor | None = None
        self._computed: Tensor | None = None
        self._encode = vision.forward
        vision.forward = self._recall_or_encode

    def stored_views(self, piece: Indices) -> list[int] | None:
        held: list[int] = self._held[torch.from_numpy(piece)].tolist()
        return held if held and all(held) else None

    def forward(self, engine: Any, batch: MicroBatch, inputs: dict[str, Any]) -> Any:
        """Gives the encoder's maps where the batch came without films, else keeps those that it computes."""
        if batch.stored:
            rows = [self._maps[self._begin[i] : self._begin[i] + int(self._held[i])] for i in batch.indices.tolist()]
            self._given = torch.cat(rows).to(inputs["view_mask"].device)
        try:
            out = engine(**inputs)
            if self._computed is not None:
                self._keep(batch, self._computed)
            return out
        finally:
            self._given = self._computed = None

    def _keep(self, batch: MicroBatch, maps: Tensor) -> None:
        # An idle worker has one blank row and no sample.
        for index, own in zip(batch.indices.tolist(), maps.split(batch.view_mask.sum(1).tolist()), strict=False):
            if index not in batch.failed:
                begin = int(self._begin[index])
                self._maps[begin : begin + len(own)] = own.detach().cpu()
                self._held[index] = len(own)

    def _recall_or_encode(self, films: Tensor) -> Tensor:
        if self._given is not None:
            return self._given
        self._computed = self._encode(films)
        return self._computed


class PromptMemo(Memo):
    """The prompt of each sample, chosen by a frozen encoder and so the same in every epoch.

    Modes delta and deep keep that encoder beside the one that learns, and would run it on every film of every step.

    Args:
        count: samples. prompts: how many there are to choose from.
    """

    def __init__(self, path: Path, count: int, prompts: int):
        self._prompts = prompts
        # 0: not chosen yet; k + 1: prompt k.
        self._stored = torch.from_file(str(path), shared=True, size=count, dtype=torch.int32)

    def known(self, piece: Indices) -> Tensor:
        """Prompt ids of a piece (B,) long, -1 where none was chosen yet, or where a damaged file names no prompt."""
        ids = self._stored[torch.from_numpy(piece)].long() - 1
        return ids.masked_fill((ids < 0) | (ids >= self._prompts), -1)

    def keep(self, batch: MicroBatch, prompt_id: Tensor) -> None:
        """Remember the choices (B,), except for studies whose films could not be read this time."""
        for index, prompt in zip(batch.indices.tolist(), prompt_id.tolist(), strict=True):
            if index not in batch.failed:
                self._stored[index] = prompt + 1

    def forward(self, engine: Any, batch: MicroBatch, inputs: dict[str, Any]) -> Any:
        if not len(batch.indices):  # an idle worker's blank row
            return engine(**inputs)
        out = engine(**inputs, prompt_id=self.known(batch.indices).to(inputs["labels"].device))
        self.keep(batch, out.prompt_id)
        return out


def open_memo(config: Config, model: Any, samples: Samples, folder: Path, *, zero_stage: int) -> Memo:
    """The memo that a config allows, kept in this node's sample folder under a name of all that its values depend on;
    features in `train.cache_folder`, where that is set.

    Call it before DeepSpeed takes the model over. Under ZeRO-3 prompts are not remembered: all workers gather a
    frozen encoder together, so none may skip it alone.
    """
    key = json.dumps([config.seed, config.train.precision, config.model.model_dump(mode="json")], sort_keys=True)
    digest = hashlib.sha256(key.encode())
    folder.mkdir(parents=True, exist_ok=True)
    if config.train.cache_features:
        if config.train.cache_folder is not None:
            folder, digest = Path(config.train.cache_folder), _films_and_encoder(config, model, samples)
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / f"features-{digest.hexdigest()[:16]}.bin"
        dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
        return FeatureCache(path, model.vision, samples.num_views, dtype=dtype)
    centroids = model.bank.centroids
    if centroids is None or config.model.mode == "shallow" or zero_stage == 3:
        return Memo()
    digest.update(centroids.float().cpu().contiguous().numpy().tobytes())
    return PromptMemo(folder / f"prompts-{digest.hexdigest()[:16]}.bin", len(samples), len(model.bank.texts))


def _films_and_encoder(config: Config, model: Any, samples: Samples) -> Any:
    """A hash over what the features of films depend on, whatever else differs between two runs."""
    encoder = [fingerprint_of(model.vision.state_dict()), model.config.vision, model.config.image_size]
    films = [input_fingerprint(config), samples.fingerprint, config.data.model_dump(mode="json")]
    # After a crash of the machine, marks may be on disk whose maps are not.
    key = json.dumps([*encoder, *films, config.train.precision, psutil.boot_time()], sort_keys=True, default=str)
    digest = hashlib.sha256(key.encode())
    with ThreadPoolExecutor(16) as pool:  # films that are linked may change behind the table
        for state in pool.map(lambda n: film_state(Listed(samples.study(n))), range(len(samples))):
            digest.update(state)
    return digest
