"""Micro-batches, decoded by threads while the steps before them compute.

    with Loader(samples, order, cutting, rank=0, processor=processor, …) as loader:
        for step in range(start, total):
            for batch in loader.step(step): ...

A study whose films cannot be read during training takes part without labels: it adds nothing to the loss on whichever
worker it falls, and the micro-batch names it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from megpt.config import DataConfig
from megpt.films.decode import UnreadableFilm, load_films
from megpt.model.loss import IGNORED_LABEL
from megpt.training.order import Cutting, GlobalOrder, Indices
from megpt.training.samples import Samples

AHEAD = 2
"""Steps that are decoded ahead of the current one."""


@dataclass
class MicroBatch:
    """One forward pass. An idle worker's has no indices and one blank row; rows without labels add no loss."""

    indices: Indices
    pixel_values: Tensor  # (B, V, 3, S, S)
    view_mask: Tensor  # (B, V)
    labels: Tensor  # (B, L)
    observations: Tensor | None = None  # (B, 14) present or not, for the label loss; rows of NaN add nothing
    failed: dict[int, str] = field(default_factory=dict)
    """Sample index → why its films could not be read."""
    context_ids: Tensor | None = None
    """(B, C), where the run's prompts hold context."""
    stored: bool = False
    """The pixels are left out: the encoder's maps of all rows are in the feature cache."""


class Loader:
    """This worker's micro-batches of any step; the next steps decode in the background.

    Args:
        processor: makes pixel_values and view_mask of films, at its `image_size`.
        threads: 0 decodes in the step itself.
        with_context: give `context_ids` too.
        last_step: nothing is decoded ahead from this step on.
        stored_views: see `megpt.training.memo.Memo`.
        observations: (N, 14) of the samples, for the label loss.
    """

    def __init__(
        self,
        samples: Samples,
        order: GlobalOrder,
        cutting: Cutting,
        *,
        rank: int,
        processor: Any,
        data: DataConfig,
        threads: int,
        last_step: int,
        with_context: bool = False,
        stored_views: Callable[[Indices], list[int] | None] = lambda piece: None,
        observations: np.ndarray | None = None,
    ):
        self.samples, self.order, self.cutting, self.rank = samples, order, cutting, rank
        self._processor, self._data, self._last = processor, data, last_step
        self._stored_views, self._observations, self._with_context = stored_views, observations, with_context
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode") if threads else None
        self._pending: dict[int, list[Future[MicroBatch]]] = {}
        self.waited_s = 0.0
        """Seconds that steps have waited for their data."""

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def pieces(self, step: int) -> list[Indices]:
        """The sample indices of this worker's forward passes at a step."""
        return self.cutting.cut(self.order.batch(step))[self.rank]

    def num_tokens(self, step: int) -> int:
        """Label tokens of the whole global batch, known to every worker without asking."""
        return int(self.samples.num_tokens[self.order.batch(step)].sum())

    def step(self, step: int) -> list[MicroBatch]:
        """The micro-batches of a step, in order."""
        began = time.monotonic()
        if self._pool is None:
            batches = [self._load(piece) for piece in self.pieces(step)]
        else:
            for ahead in range(step, min(step + AHEAD + 1, self._last)):
                if ahead not in self._pending:
                    self._pending[ahead] = [self._pool.submit(self._load, piece) for piece in self.pieces(ahead)]
            batches = [future.result() for future in self._pending.pop(step)]
        self.waited_s += time.monotonic() - began
        return batches

    def _load(self, piece: Indices) -> MicroBatch:
        if views := self._stored_views(piece):
            return self._without_films(piece, views)
        films, labels, failed = [], [], {}
        for index in piece.tolist():
            try:
                films.append(self._films(index))
                labels.append(self.samples.labels(index))
            except UnreadableFilm as error:
                films.append([self._blank()])
                labels.append(np.empty(0, np.int64))
                failed[index] = str(error)
        if not films:  # a worker without a share still takes part in the collectives of the step
            films, labels = [[self._blank()]], [np.empty(0, np.int64)]
        pixels = self._processor(images=films, return_tensors="pt")
        context = self._context(piece)
        present = self._present(piece, failed)
        return MicroBatch(piece, pixels["pixel_values"], pixels["view_mask"], pad(labels), present, failed, context)

    def _context(self, piece: Indices) -> Tensor | None:
        if not self._with_context:
            return None
        return pad([self.samples.context(index) for index in piece.tolist()] or [np.empty(0, np.int64)])

    def _films(self, index: int) -> list[Image.Image]:
        return load_films(
            self.samples.study(index),
            size=self._processor.image_size,
            max_views=self._data.max_views,
            max_pixels=self._data.max_pixels,
        )

    def _without_films(self, piece: Indices, views: list[int]) -> MicroBatch:
        size, most = self._processor.image_size, max(views)
        pixels = torch.zeros(1).expand(len(views), most, 3, size, size)
        mask = torch.arange(most) < torch.tensor(views)[:, None]
        labels = pad([self.samples.labels(index) for index in piece.tolist()])
        return MicroBatch(piece, pixels, mask, labels, self._present(piece, {}), {}, self._context(piece), True)

    def _present(self, piece: Indices, failed: dict[int, str]) -> Tensor | None:
        if self._observations is None:
            return None
        rows = torch.from_numpy(self._observations[piece].astype(np.float32))
        rows[[index in failed for index in piece.tolist()]] = torch.nan
        return rows if len(rows) else torch.full((1, self._observations.shape[1]), torch.nan)

    def _blank(self) -> Image.Image:
        return Image.new("L", (self._processor.image_size,) * 2)


def pad(labels: list[np.ndarray]) -> Tensor:
    """Label ids of several samples as (B, L ≥ 1), filled with -100 on the right."""
    longest = max(1, *(len(ids) for ids in labels)) if labels else 1
    table = torch.full((len(labels), longest), IGNORED_LABEL)
    for row, ids in enumerate(labels):
        table[row, : len(ids)] = torch.from_numpy(ids)
    return table
