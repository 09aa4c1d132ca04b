"""The timetable of a run: its length, its learning rate, and the steps that save or validate.

All of it is a pure function of the step, so resuming needs nothing saved from here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from megpt.config import TrainConfig


@dataclass(frozen=True)
class Schedule:
    """The timetable of a run. Steps count from 0; "after N steps" means that steps 0 … N-1 are done."""

    total_steps: int
    steps_per_epoch: int
    save_every: int
    val_every: int | None
    lr: float
    min_lr: float
    warmup_steps: int

    @classmethod
    def of(cls, train: TrainConfig, steps_per_epoch: int) -> Schedule:
        """The timetable of a config, given the steps of an epoch."""
        total = train.max_steps or max(1, math.ceil(train.epochs * steps_per_epoch - 1e-9))
        val = train.val_every
        if val is not None and val < 1:
            val = max(1, round(val * steps_per_epoch))
        return cls(
            total_steps=total,
            steps_per_epoch=steps_per_epoch,
            save_every=train.save_every or steps_per_epoch,
            val_every=None if val is None else int(val),
            lr=train.lr,
            min_lr=min(train.min_lr, train.lr),
            warmup_steps=train.warmup_steps,
        )

    def learning_rate(self, step: int) -> float:
        """Linear warm-up to `lr`, then half a cosine down to `min_lr` at the last step."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        span = max(1, self.total_steps - 1 - self.warmup_steps)
        part = min(1.0, (step - self.warmup_steps) / span)
        return self.min_lr + (self.lr - self.min_lr) * (1 + math.cos(math.pi * part)) / 2

    def saves_after(self, done: int) -> bool:
        """Whether a checkpoint is due once `done` steps are done (always at the end and before a validation)."""
        return done == self.total_steps or done % self.save_every == 0 or self.validates_after(done)

    def validates_after(self, done: int) -> bool:
        """Whether a validation is due once `done` steps are done."""
        return self.val_every is not None and (done % self.val_every == 0 or done == self.total_steps)
