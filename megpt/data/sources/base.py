"""What every archive format has in common: a streamed list of studies, and paths that stay inside the archive."""

from __future__ import annotations

import functools
import hashlib
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

from megpt.config import DataConfig
from megpt.errors import InputError, MegptError
from megpt.study import Study, View

# What radiology tables call the splits.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "": "",
}


class Source(ABC):
    """An archive. `studies()` streams its manifest: no film is opened, and a film that is absent is not found out here.

    A study whose split the archive does not say has `split == ""`.
    """

    format: ClassVar[str]
    about: ClassVar[str]
    """One line for the list of formats: what the layout looks like."""

    def __init__(self, root: Path, data: DataConfig):
        self.root, self.data = root, data
        self._inside = Inside(root if root.is_dir() else root.parent)

    @classmethod
    @abstractmethod
    def detect(cls, path: Path, data: DataConfig) -> bool:
        """Whether `path` has this layout; looks at names and, at most, at the head of one file."""

    @abstractmethod
    def studies(self) -> Iterator[Study]:
        """The studies in the archive's own order, the same on every call.

        Raises:
            InputError: a table that cannot be read, naming file and column.
        """

    def tables(self) -> Iterable[Path]:
        """The files that list the studies."""
        return ()

    def fingerprint(self) -> str:
        """16 hex digits that change when the tables do (or the folder's name, where there are none).

        Of each table its name, size, first and last mebibyte: the same on a copy of the archive.
        """
        digest = hashlib.sha256(f"{self.format}:{self.root.name}".encode())
        for path in self.tables():
            size = path.stat().st_size
            digest.update(f"{path.name}:{size}".encode())
            with path.open("rb") as file:
                digest.update(file.read(1 << 20))
                file.seek(max(0, size - (1 << 20)))
                digest.update(file.read(1 << 20))
        return digest.hexdigest()[:16]

    def view(self, relative: str, *, image_id: str | None = None, position: str = "") -> View:
        """The view of a film that a table names; without a `uri` where the path would leave the archive."""
        return View(image_id or relative, position, uri=self._inside.resolve(relative))


class Inside:
    """Turns the paths in tables into absolute ones, and refuses those that lead out of the archive."""

    def __init__(self, root: Path):
        self.root = Path(os.path.realpath(root))
        self._folder = functools.lru_cache(maxsize=4096)(self._check_folder)

    def resolve(self, relative: str) -> str | None:
        """The absolute path of a film, or None where `..`, an absolute path or a symbolic link leads out."""
        parts = relative.replace("\\", "/").split("/")
        if not relative or "\0" in relative or ".." in parts:
            return None
        folder = self._folder("/".join(parts[:-1]))
        if folder is None:
            return None
        path = os.path.join(folder, parts[-1])  # noqa: PTH118 (a million of these: pathlib takes four times as long)
        if os.path.islink(path):  # noqa: PTH114
            real = os.path.realpath(path)
            return real if self._holds(real) else None
        return path

    def _check_folder(self, relative: str) -> str | None:
        """The real path of a folder inside; its parent is known already, so that it costs one question to the disk."""
        if relative.startswith("/"):
            real = os.path.realpath(relative)
            return real if self._holds(real) else None
        parent, _, name = relative.rpartition("/")
        folder = self._folder(parent) if parent else str(self.root)
        if folder is None or name in ("", "."):
            return folder
        path = os.path.join(folder, name)  # noqa: PTH118
        if os.path.islink(path):  # noqa: PTH114
            real = os.path.realpath(path)
            return real if self._holds(real) else None
        return path

    def _holds(self, real: str) -> bool:
        return real == str(self.root) or real.startswith(str(self.root).rstrip("/") + "/")


def check_mounted(root: Path) -> None:
    """Tell an archive that this machine does not see from films that are not in it.

    Without this a node that lacks the archive's file system would call each film of its shards missing. A mount point
    on which nothing is mounted is an empty folder.

    Raises:
        MegptError: `root` is not there, or is an empty folder.
    """
    try:
        if not (here := root.is_file()):
            with os.scandir(root) as entries:  # not a list of them: a heap may hold a million films
                here = next(entries, None) is not None
    except OSError:
        here = False
    if not here:
        raise MegptError(
            f"the archive {root} cannot be seen from node {socket.gethostname()}",
            cause="its file system is not mounted there, or was lost; what was finished is kept",
            next="mount it, or take the node out of the cluster, and run the same command again: it resumes",
        )


def split_name(value: str | None, *, where: str) -> str:
    """train, val, test, or "" for an unknown one, from the names that tables use.

    Raises:
        InputError: a name that is none of them.
    """
    name = SPLIT_NAMES.get((value or "").strip().lower())
    if name is None:
        raise InputError(
            f"unknown split {value!r}", where=where, next=f"use one of {', '.join(k for k in SPLIT_NAMES if k)}"
        )
    return name
