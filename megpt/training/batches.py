"""Micro-batches, decoded ahead of the step by threads.

    with Loader(samples, processor, order, rank=0, world_size=2, …) as loader:
        for step in range(start, total):
            for batch in loader.step(step): ...

A study whose films cannot be read while training goes on takes part with no labels: it adds nothing to the loss,
whoever meets it, and is remembered by name.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from megpt.config import DataConfig
from megpt.films.decode import UnreadableFilm, load_films
from megpt.training.order import Cutting, GlobalOrder, Indices
from megpt.training.samples import Samples

IGNORED = -100
AHEAD = 2


@dataclass
class MicroBatch:
    """One forward pass. Rows without labels (`study_ids` of an idle worker are empty) add nothing to the loss."""

    indices: Indices
    pixel_values: Tensor  # (B, V, 3, S, S)
    view_mask: Tensor  # (B, V)
    labels: Tensor  # (B, L)
    failed: dict[int, str] = field(default_factory=dict)
    stored: bool = False
    """The pixels are left out: the encoder's maps of all rows are in the feature cache."""


class Loader:
    """This worker's micro-batches of any step; the next steps decode in the background.

    Args:
        process: films of some studies → pixel_values and view_mask, the model's processor.
        threads: 0 decodes in the step itself.
    """

    def __init__(
        self,
        samples: Samples,
        order: GlobalOrder,
        cutting: Cutting,
        *,
        rank: int,
        process: Callable[[list[list[Image.Image]]], Any],
        image_size: int,
        data: DataConfig,
        threads: int,
        last_step: int,
        stored_views: Callable[[Indices], list[int] | None] = lambda piece: None,
    ):
        self.samples, self.order, self.cutting, self.rank = samples, order, cutting, rank
        self._process, self._size, self._data, self._last = process, image_size, data, last_step
        self._stored_views = stored_views
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode") if threads else None
        self._pending: OrderedDict[int, list[Future[MicroBatch]]] = OrderedDict()
        self.waited_s = 0.0
        """Seconds that steps have waited for their data."""

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
                films.append(
                    load_films(
                        self.samples.study(index),
                        size=self._size,
                        max_views=self._data.max_views,
                        max_pixels=self._data.max_pixels,
                    )
                )
                labels.append(self.samples.labels(index))
            except UnreadableFilm as error:
                films.append([self._blank()])
                labels.append(np.empty(0, np.int64))
                failed[index] = str(error)
        if not films:  # a worker with no share still takes part in the collectives of the step
            films, labels = [[self._blank()]], [np.empty(0, np.int64)]
        pixels = self._process(films)
        return MicroBatch(piece, pixels["pixel_values"], pixels["view_mask"], pad(labels), failed)

    def _without_films(self, piece: Indices, views: list[int]) -> MicroBatch:
        most = max(views)
        pixels = torch.zeros(1).expand(len(views), most, 3, self._size, self._size)
        mask = torch.arange(most) < torch.tensor(views)[:, None]
        labels = pad([self.samples.labels(index) for index in piece.tolist()])
        return MicroBatch(piece, pixels, mask, labels, stored=True)

    def _blank(self) -> Image.Image:
        return Image.new("L", (self._size, self._size))


def pad(labels: list[np.ndarray]) -> Tensor:
    """Label ids of several samples as (B, L ≥ 1), filled with -100 on the right."""
    longest = max(1, *(len(ids) for ids in labels)) if labels else 1
    table = torch.full((len(labels), longest), IGNORED)
    for row, ids in enumerate(labels):
        table[row, : len(ids)] = torch.from_numpy(ids)
    return table
