"""The one order of samples: a function of (seed, epoch, step) and of nothing else.

    order = GlobalOrder(num_samples=2069, global_batch_size=16, seed=42)
    order.batch(131)            # sample indices of global step 131, the same on 1, 2 or 400 workers
    order.position(131)         # Position(epoch=1, step_in_epoch=1)

Each epoch is one permutation cut into batches; the last batch of an epoch is smaller where the numbers do not
divide, so that an epoch holds every sample exactly once. Resuming needs the global step and nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Position:
    """Where a global step lies: its epoch, and how many steps of that epoch come before it."""

    epoch: int
    step_in_epoch: int


class GlobalOrder:
    """Sample indices of every global step.

    Args:
        num_samples: N > 0.
        global_batch_size: samples of one optimizer step over all workers.
        seed: permutes; two seeds give two orders.
    """

    def __init__(self, num_samples: int, global_batch_size: int, seed: int):
        if num_samples < 1 or global_batch_size < 1:
            raise ValueError(f"num_samples={num_samples} and global_batch_size={global_batch_size} must be positive")
        self.num_samples, self.global_batch_size, self.seed = num_samples, global_batch_size, seed
        self.steps_per_epoch = -(-num_samples // global_batch_size)
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def position(self, step: int) -> Position:
        """The epoch of a global step (from 0), and its place in it."""
        return Position(*divmod(step, self.steps_per_epoch))

    def permutation(self, epoch: int) -> Indices:
        """All N indices in the order of this epoch, (N,).

        Ranks of raw PCG64 words rather than `Generator.permutation`: NumPy keeps only the bit stream the same
        from one version to the next.
        """
        if epoch != self._epoch:
            words = np.random.PCG64(np.random.SeedSequence([self.seed & (2**63 - 1), epoch])).random_raw(
                self.num_samples
            )
            self._epoch, self._permutation = epoch, np.argsort(words, kind="stable").astype(np.int64)
        return self._permutation

    def batch(self, step: int) -> Indices:
        """The indices of one global step, (≤ global_batch_size,)."""
        place = self.position(step)
        begin = place.step_in_epoch * self.global_batch_size
        return self.permutation(place.epoch)[begin : begin + self.global_batch_size]


@dataclass(frozen=True)
class Cutting:
    """How a global batch is shared out: `slots` forward passes for each of `world_size` workers.

    With `micro_batch_size` the pieces themselves do not depend on the number of workers, only who takes them;
    without it each worker takes one even share.
    """

    world_size: int
    micro_batch_size: int | None
    slots: int

    @classmethod
    def of(cls, global_batch_size: int, micro_batch_size: int | None, world_size: int) -> Cutting:
        """With a micro batch, as many forward passes as the busiest worker needs; else one."""
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
