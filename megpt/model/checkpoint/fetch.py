"""Where a checkpoint is: a folder, a hub id or an address, and its files on this machine."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from megpt.errors import InputError
from megpt.places import is_address
from megpt.places.cache import local_folder as local_copy

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")
NOT_OF_A_CHECKPOINT = ["steps/*", "*.pt", "*.pth", "*.bin", "*.pkl"]
"""Patterns of files that no checkpoint needs, and that are not downloaded."""


def local_folder(name: str, revision: str | None = None) -> Path:
    """The folder of a checkpoint, downloaded when `name` is a hub id (`org/name`, or `org/name@revision`).

    Raises:
        InputError: there is none, or it cannot be downloaded.
    """
    if is_address(name):
        return _fetched(name)
    if (Path(name) / "config.json").exists():
        return Path(name)
    if not is_hub_id(name):
        raise InputError(
            f"no checkpoint at {name!r}", cause="it has no config.json", next="run `megpt train`, or check the path"
        )
    from huggingface_hub import snapshot_download

    repository, _, pinned = name.partition("@")
    revision = revision or pinned or None
    try:
        return Path(snapshot_download(repository, revision=revision, ignore_patterns=NOT_OF_A_CHECKPOINT))
    except Exception as error:
        wanted = repository + (f" --revision {revision}" if revision else "")
        raise InputError(
            f"no checkpoint at {name!r}",
            cause=f"no such folder, and {type(error).__name__} from the hub: no network, no such repository, or no "
            "access to it",
            next=f"run `hf download {wanted}` on a machine with a network, copy the folder that it prints here, and "
            "give its path",
        ) from error


def _fetched(address: str) -> Path:
    """A checkpoint at an address, on this machine; what only its training needs stays there."""
    with contextlib.suppress(FileNotFoundError):
        folder = local_copy(address, skip=("steps", "tensorboard"))
        if (folder / "config.json").exists():
            return folder
    raise InputError(
        f"no checkpoint at {address!r}",
        cause="no object config.json lies below it",
        next="run `megpt train`, or check the address",
    )


def is_hub_id(name: str) -> bool:
    """Whether a name is no folder and has the form of a hub id, with or without a revision."""
    return not is_address(name) and not Path(name).exists() and bool(HUB_ID.fullmatch(name))


def pinned(name: str) -> str:
    """A hub id with the revision that it means now, so that every worker reads the same one; a folder is unchanged."""
    return f"{name.partition('@')[0]}@{local_folder(name).name}" if is_hub_id(name) else name
