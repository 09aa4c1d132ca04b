"""The checkpoint that a training run starts from, where the command line names one."""

from __future__ import annotations

from megpt.config import Config
from megpt.errors import InputError
from megpt.places import place


def named_start(config: Config) -> str | None:
    """The checkpoint that a run starts from: one that the command line names.

    In a file `checkpoint` is the output of `train`, which `generate` reads; a run must not start from itself.
    """
    return config.checkpoint if "checkpoint" in config.named else None


def checkpoint_fingerprint(config: Config) -> str:
    from megpt.model import fingerprint

    return str(fingerprint(str(config.checkpoint)))


def started(config: Config) -> Config:
    """The config with what a checkpoint to start from gives it; without one, `checkpoint` is unset.

    Raises:
        InputError: the checkpoint cannot be read, or is the folder that the run would write.
    """
    name = named_start(config)
    if name is None:
        return config.updated(checkpoint=None)
    from megpt.model.checkpoint.fetch import is_hub_id, local_folder, pinned
    from megpt.model.checkpoint.start import inherited

    if not is_hub_id(name) and config.output and place(name).resolve() == place(config.output).resolve():
        raise InputError(
            f"checkpoint and output are the same folder, {name}",
            cause="a run cannot start from what it writes; an unfinished run resumes without checkpoint=",
            next="leave checkpoint= out; a larger train.max_steps or train.epochs makes a finished run longer",
        )
    return inherited(config.updated(checkpoint=pinned(name)), local_folder(name))
