"""The order of samples: a function of (seed, epoch, step) and of nothing else.

    order = GlobalOrder(num_samples=2069, global_batch_size=16, seed=42)
    order.batch(131)            # sample indices of global step 131, the same on 1, 2 or 400 workers
    order.position(131)         # Position(epoch=1, step_in_epoch=1)

Each epoch is one permutation cut into batches; the last batch of an epoch is smaller where the numbers do not
divide, so that an epoch holds every sample exactly once. With weights, an epoch is as long but holds each sample in
proportion to its weight, rounded up or down. Resuming needs only the global step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Position:
    """The position of a global step: its epoch, and how many steps of that epoch precede it."""

    epoch: int
    step_in_epoch: int


class GlobalOrder:
    """Sample indices of every global step.

    Args:
        num_samples: N > 0.
        global_batch_size: samples of one optimizer step over all workers.
        seed: of the permutations; two seeds give two orders.
        weights: how often each sample is drawn, relative to the others, (N,) > 0; all alike by default.
    """

    def __init__(
        self, num_samples: int, global_batch_size: int, seed: int, weights: npt.NDArray[np.float64] | None = None
    ):
        if num_samples < 1 or global_batch_size < 1:
            raise ValueError(f"num_samples={num_samples} and global_batch_size={global_batch_size} must be positive")
        self.num_samples, self.global_batch_size, self.seed = num_samples, global_batch_size, seed
        self.steps_per_epoch = -(-num_samples // global_batch_size)
        self._until = None if weights is None else np.cumsum(weights) / np.sum(weights) * num_samples
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def position(self, step: int) -> Position:
        """The epoch of a global step (from 0), and its position in that epoch."""
        return Position(*divmod(step, self.steps_per_epoch))

    def permutation(self, epoch: int) -> Indices:
        """N indices in the order of this epoch, (N,): all of them, or those drawn by weight.

        It ranks raw PCG64 words rather than calling `Generator.permutation`, because only the bit stream stays the
        same from one version of NumPy to the next.
        """
        if epoch != self._epoch:
            words = np.random.PCG64(np.random.SeedSequence([self.seed & (2**63 - 1), epoch])).random_raw(
                self.num_samples
            )
            ranks = np.argsort(words, kind="stable").astype(np.int64)
            self._epoch, self._permutation = epoch, ranks if self._until is None else self._drawn(words)[ranks]
        return self._permutation

    def _drawn(self, words: npt.NDArray[np.uint64]) -> Indices:
        """Systematic resampling: N equally spaced places on the line of all weights, from a start that is drawn."""
        assert self._until is not None
        places = np.arange(self.num_samples) + int(words[0] >> np.uint64(11)) / 2**53
        return np.minimum(np.searchsorted(self._until, places, side="right"), self.num_samples - 1).astype(np.int64)

    def batch(self, step: int) -> Indices:
        """The indices of one global step, (≤ global_batch_size,)."""
        place = self.position(step)
        begin = place.step_in_epoch * self.global_batch_size
        return self.permutation(place.epoch)[begin : begin + self.global_batch_size]


@dataclass(frozen=True)
class Cutting:
    """How a global batch is divided: `slots` forward passes for each of `world_size` workers.

    With `micro_batch_size` the pieces do not depend on the number of workers, only who takes them does; without it,
    each worker takes one even share.
    """

    world_size: int
    micro_batch_size: int | None
    slots: int

    @classmethod
    def of(cls, global_batch_size: int, micro_batch_size: int | None, world_size: int) -> Cutting:
        """With a micro batch, as many forward passes as the busiest worker needs; otherwise one."""
        if micro_batch_size is None:
            return cls(world_size, None, 1)
        pieces = -(-global_batch_size // micro_batch_size)
        return cls(world_size, micro_batch_size, -(-pieces // world_size))

    def cut(self, batch: Indices) -> list[list[Indices]]:
        """The pieces of each worker, some of them empty; every sample is in exactly one.

        Raises:
            ValueError: the batch does not fit into world_size × slots pieces.
        """
        size = self.micro_batch_size
        pieces: Sequence[Indices]
        if size is None:
            pieces = np.array_split(batch, self.world_size)
        else:
            pieces = [batch[i : i + size] for i in range(0, len(batch), size)]
        if len(pieces) > self.world_size * self.slots:
            raise ValueError(f"{len(pieces)} pieces do not fit {self.world_size} workers × {self.slots}")
        pieces = [*pieces, *[np.empty(0, np.int64)] * (self.world_size * self.slots - len(pieces))]
        return [
            [pieces[slot * self.world_size + rank] for slot in range(self.slots)] for rank in range(self.world_size)
        ]
