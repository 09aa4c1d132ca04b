"""Making a run longer: the same command with more `train.epochs` or a larger `train.max_steps`, on the same output.

It goes on from its newest checkpoint, so its losses up to there stay. From there on its learning rate is that of a run
of the new length: a cosine towards the new end. At the old end the rate was small, so it rises there.
Were the record rewritten before `_SUCCESS` is gone, a kill would leave a finished longer run; see `lengthen`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megpt.config import Config
from megpt.errors import InputError
from megpt.output import recorded, reopen, write_record
from megpt.places import place
from megpt.progress import log
from megpt.settings import difference
from megpt.training.schedule import Schedule

LENGTH = ("epochs", "max_steps")
"""Settings of `train` that a longer run may change."""


@dataclass(frozen=True)
class Longer:
    """Another length than the one on record, if nothing else has changed."""

    record: dict[str, Any]
    """The identity on record."""
    old: Schedule
    new: Schedule
    done: int
    """Steps of the newest checkpoint."""

    @classmethod
    def of(cls, config: Config, identity: dict[str, Any]) -> Longer | None:
        """None where the output has the same length, no checkpoint, or other settings, which the claim refuses.

        Raises:
            InputError: the run would be shorter.
        """
        folder, train = place(str(config.output)), config.train
        record = recorded(folder, job="train") or {}
        lengths = {name: record.get("train", {}).get(name) for name in LENGTH}
        asked = {name: identity["train"][name] for name in LENGTH}
        same = {**identity, "train": identity["train"] | lengths}
        if not record or lengths == asked or difference(record, same):
            return None
        from megpt.training.checkpoints import CheckpointStore

        newest = CheckpointStore(folder / "steps", keep=train.keep).newest()
        if newest is None:
            return None
        steps_per_epoch = -(-newest.meta["num_samples"] // newest.meta["global_batch_size"])
        old, new = (Schedule.of(t, steps_per_epoch) for t in (train.model_copy(update=lengths), train))
        if new.total_steps < old.total_steps:
            raise InputError(
                f"{folder} has {old.total_steps} steps, and this would be {new.total_steps}",
                where="; ".join(f"train.{line}" for line in difference(lengths, asked)),
                cause="a run can be made longer, not shorter: its last steps are in its weights",
                next=f"train.max_steps={old.total_steps} or more; or choose another output=PATH for a shorter run",
            )
        return cls(record, old, new, newest.step)

    @property
    def grows(self) -> bool:
        return self.new.total_steps > self.old.total_steps

    def sentence(self) -> str:
        """What the change does, for the screen."""
        before, after = self.old.learning_rate(max(0, self.done - 1)), self.new.learning_rate(self.done)
        return (
            f"{self.new.total_steps} steps instead of {self.old.total_steps}, from step {self.done} on; the learning "
            f"rate goes on at {after:.2e} after {before:.2e}, as in a run of {self.new.total_steps} steps"
        )

    def lengthen(self, folder: Path, identity: dict[str, Any], config: Config) -> None:
        """Make the output unfinished, and its record that of the longer run."""
        log(f"train: {self.sentence()}")
        reopen(folder)
        write_record(folder, job="train", identity=identity, config=config)
