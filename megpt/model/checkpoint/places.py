"""Where the parts are that a checkpoint names instead of holding: a hub id, or a path relative to its folder.

In memory a local part has an absolute path. In config.json it has a path relative to the checkpoint (`./llm`,
`../llm`), so that a folder moves together with what lies beside it, and no checkpoint names a person's directories.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megpt.config.model import divided
from megpt.errors import InputError
from megpt.model.checkpoint.fingerprint import DAMAGE, damaged
from megpt.model.configuration import FORMAT, MeGPTConfig
from megpt.places.whole import is_staged

RELATIVE = (".", "..")
"""The first component of a path in config.json that is relative to the checkpoint."""


def read_config(folder: Path) -> MeGPTConfig:
    """config.json of a checkpoint folder. Raises InputError if it cannot be read."""
    try:
        return MeGPTConfig.from_pretrained(folder)
    except DAMAGE as error:
        raise damaged(str(folder / "config.json"), error) from error


def to_relative(place: str, folder: Path) -> str:
    """A local path as it is written into `folder`'s config.json; a hub id or a word (`pretrained`) is unchanged."""
    if not Path(place).is_absolute() or is_staged.get():
        return place
    path = os.path.relpath(Path(place).resolve(), folder.resolve())
    return path if path.split("/")[0] in RELATIVE else f"./{path}"


def to_absolute(place: str, folder: Path) -> str:
    """The inverse of `to_relative`."""
    return str((folder.resolve() / place).resolve()) if place.split("/")[0] in RELATIVE else place


def locate(config: MeGPTConfig, folder: Path) -> None:
    """Make the relative paths of a config that was read from `folder` absolute, in place."""
    config.llm = to_absolute(config.llm, folder)
    kind, place = divided(config.vision)
    config.vision = kind + to_absolute(place, folder)
    config.vision_weights = to_absolute(config.vision_weights, folder)
    frozen = {part: {**e, "source": to_absolute(e["source"], folder)} for part, e in (config.frozen or {}).items()}
    config.frozen = frozen or config.frozen


@contextlib.contextmanager
def portable(config: MeGPTConfig, folder: Path) -> Iterator[None]:
    """Inside the block the config names its parts as `folder`'s config.json should.

    A checkpoint that holds all weights keeps the last component of a path only: it needs nothing from there.
    """

    def name(place: str) -> str:
        if config.complete and Path(place).is_absolute():
            return Path(place).name
        return to_relative(place, folder)

    text: Any = config.text_config
    before = config.llm, config.vision_weights, config.frozen, getattr(text, "_name_or_path", ""), config.vision
    kind, place = divided(config.vision)
    config.vision = kind + to_relative(place, folder)  # its architecture is read there, also where weights are held
    config.llm, config.vision_weights = name(config.llm), name(config.vision_weights)
    if config.frozen:
        config.frozen = {part: {**entry, "source": name(entry["source"])} for part, entry in config.frozen.items()}
    if text is not None:
        text._name_or_path = ""
    try:
        yield
    finally:
        config.llm, config.vision_weights, config.frozen = before[:3]
        config.vision = before[4]
        if text is not None:
            text._name_or_path = before[3]


def check_format(config: MeGPTConfig, folder: Path) -> None:
    """Raise InputError for a checkpoint that a newer megpt has written."""
    if config.checkpoint_format > FORMAT:
        from megpt import __version__

        raise InputError(
            f"the checkpoint {folder} was written by a newer megpt",
            where=f"config.json: checkpoint_format = {config.checkpoint_format}",
            cause=f"megpt {__version__} reads formats up to {FORMAT}",
            next="pip install --upgrade megpt",
        )
