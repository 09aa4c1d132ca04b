"""What all archive formats share: a streamed list of studies, and paths that stay inside the archive."""

from __future__ import annotations

import functools
import hashlib
import os
import socket
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from megpt.config import DataConfig
from megpt.data.members import is_member
from megpt.data.sources.columns import split_name
from megpt.data.sources.reading import TextForm
from megpt.data.studies import Listed
from megpt.errors import MegptError
from megpt.places import FarPath, entries, exists, is_address, place
from megpt.settings import Section, identity_of, read_section
from megpt.study import Study, View, utf8_name

__all__ = ["FILM_SUFFIXES", "ImageFolder", "Inside", "Source", "check_mounted", "split_name"]

# A tree of more folders than this holds patients, not splits.
FEW_FOLDERS = 32
FILM_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".dcm", ".dicom", ".dic", ".ima"})


class Source(ABC):
    """An archive. `studies()` streams its list of studies and opens no film, so an absent film is not noticed here.

    A study has `split == ""` if the archive does not assign it to a split.
    """

    format: ClassVar[str]
    """The name of the format, for `data.format`; the same as in the registry."""
    about: ClassVar[str]
    """The layout in one line, for the list of formats in errors."""

    schemes: ClassVar[tuple[str, ...]] = ()
    """The addresses that it reads: `("dicomweb",)` for dicomweb://…; such a format never meets a path."""
    settings: ClassVar[type[Section]] = Section
    """The settings of its own, which a config has under `data.options`."""

    def __init__(self, root: Path | str, data: DataConfig):
        self.place = str(root) if is_address(root) else str(Path(root).absolute())
        """The archive as records, logs and failed.parquet name it: an absolute path, or an address."""
        self.root, self.data = root if isinstance(root, FarPath) else Path(root), data
        self.folder = self.root if self.root.is_dir() else self.root.parent
        """The archive, or the folder of the one file that it is."""
        self.options = read_section(self.settings, data.options, prefix="data.options.")
        self.whole = True
        """Whether a listing holds all that is there: what a part of it lacks does not count as gone."""
        self.form = TextForm(data.encoding, data.delimiter)
        self.rule = ""
        """How studies were told apart, in a few words; for the line that says what was found."""
        self.ignored: Counter[str] = Counter()
        """What the last listing did not read or had to decide, and how often; for the same line."""
        self._inside = Inside(self.folder, data.roots)

    @classmethod
    @abstractmethod
    def detect(cls, path: Path, data: DataConfig) -> bool:
        """Whether `path` has this layout; reads names and, at most, the head of one file."""

    @abstractmethod
    def studies(self) -> Iterator[Study]:
        """The studies in the archive's own order, the same on every call.

        Raises:
            InputError: a table cannot be read; the error names file and column.
        """

    def listed(self) -> Iterator[Listed]:
        """The same studies for a shard list, without the bytes of films that can be fetched from a table later."""
        return map(Listed, self.studies())

    @property
    def origin(self) -> tuple[str, str]:
        """Place and format, which failed.parquet names so that its studies can be read again."""
        return self.place, self.format

    @property
    def identity(self) -> dict[str, Any]:
        """Which archive a job reads, and by which of its format's own settings; not what it holds, since it grows."""
        chosen = identity_of(self.options)
        return {"path": self.place, "format": self.format} | ({"options": chosen} if chosen else {})

    def keep_in(self, folder: Path, *, write: bool = True) -> None:  # noqa: B027 (most sources keep nothing)
        """Name the job's output folder, where a source may keep what its next reading needs.

        Args:
            write: False for a dry run, which may read there and leaves nothing.
        """

    def tables(self) -> Iterable[Path]:
        """The files that list the studies."""
        return ()

    def check(self, *, reports: int, labels: int) -> None:
        """Refuse a listing that threw something away; called with what all studies together hold.

        Raises:
            InputError: there are tables or archives beside the films that nothing has read.
        """
        return None

    def fingerprint(self) -> str:
        """16 hex digits that change with the tables, or with the folder's name if there are no tables.

        They cover the name, the size, and the first and last mebibyte of each table, so a copy of the archive has the
        same digits.
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
        """The view of a film that a table names; it has no `uri` if the path leads out of the archive."""
        return View(utf8_name(image_id or relative), position, uri=self._inside.resolve(relative))


def table_in(path: Path, data: DataConfig, *patterns: str) -> Path | None:
    """The table of an archive: that of `data.annotations`, the archive itself if it is a file, or the first match."""
    if data.annotations:
        return place(data.annotations)
    if path.is_file():
        return path
    return next((table for pattern in patterns for table in sorted(path.glob(pattern))), None)


class Inside:
    """Turns the paths in tables into absolute ones, and refuses those that lead out of the archive.

    Args:
        root: the archive.
        roots: further folders that links and absolute paths may lead into (`data.roots`).
    """

    def __init__(self, root: Path, roots: Sequence[str] = ()):
        self.root = root if is_address(root) else Path(os.path.realpath(root))
        self._allowed = [str(self.root), *map(_real_root, roots)]
        self._folder = functools.lru_cache(maxsize=4096)(self._check_folder)

    def resolve(self, relative: str) -> str | None:
        """The absolute path of a film, or None if `..`, an absolute path or a symbolic link leads out."""
        if is_address(relative) or is_address(self.root):
            return self._far(relative)
        parts = relative.replace("\\", "/").split("/")
        if not relative or "\0" in relative or ".." in parts:
            return None
        folder = self._folder("/".join(parts[:-1]))
        if folder is None:
            return None
        path = self._inside(folder, parts[-1])
        # a name that reads as a place inside another file could lead out by way of that file
        return None if is_member(path) else path

    def _far(self, relative: str) -> str | None:
        """The address of a film; a store has no links, so its text says where it leads."""
        parts = [part for part in relative.replace("\\", "/").split("/") if part not in ("", ".")]
        if not parts or "\0" in relative or ".." in parts:
            return None
        whole = is_address(relative) or relative.startswith("/")
        path = relative if whole else f"{self.root}/{'/'.join(parts)}"
        inside = any(path.startswith(f"{root.rstrip('/')}/") for root in self._allowed)
        return path if inside and not is_member(path) else None

    def _check_folder(self, relative: str) -> str | None:
        """The real path of a folder inside; its parent is in the cache, so this costs one file system call."""
        if relative.startswith("/"):
            return self._real(relative)
        parent, _, name = relative.rpartition("/")
        folder = self._folder(parent) if parent else str(self.root)
        if folder is None or name in ("", "."):
            return folder
        return self._inside(folder, name)

    def _inside(self, folder: str, name: str) -> str | None:
        """The path of an entry of a known folder, or None if it is a link that leads out of the archive."""
        path = os.path.join(folder, name)  # noqa: PTH118 (for each of a million films: Path takes four times as long)
        return self._real(path) if os.path.islink(path) else path  # noqa: PTH114

    def _real(self, path: str) -> str | None:
        real = os.path.realpath(path)
        return real if any(real == root or real.startswith(root.rstrip("/") + "/") for root in self._allowed) else None

    def real_folder(self, path: str) -> str | None:
        """Where a folder of the archive really lies; None if that is outside the allowed roots."""
        return self._real(path)


def _real_root(root: str) -> str:
    return root if is_address(root) else os.path.realpath(Path(root).expanduser())


class ImageFolder:
    """The folder that a list's image paths are relative to, for lists that are used with more than one image tree.

    IU X-Ray's films have two names: R2Gen's `CXR7_IM-2263/0.png`, and Open-i's own `CXR7_IM-2263-1001.png`, all in one
    folder. If a study's folder is absent, its films are looked up by Open-i's names.

    Args:
        root: the archive.
        candidates: folders inside the root that may hold the images, the likeliest first; the root is the last.
        roots: further folders that links may lead into.
    """

    def __init__(self, root: Path, candidates: Sequence[str], roots: Sequence[str] = ()):
        self.root = root
        self.base = next((name for name in candidates if (root / name).is_dir()), "")
        self._inside = Inside(root, roots)

    def views(self, study_id: str, paths: Sequence[str], positions: Sequence[str] = ()) -> tuple[View, ...]:
        """The views of a study; a view whose path leads out of the archive has no uri."""
        if paths and self._by_study and not (self._folder / study_id).is_dir():
            original = self._by_study.get(study_id)
            if original and not any(self._exists(path) for path in paths):
                return tuple(View(Path(name).stem, uri=self._resolve(name)) for name in original)
        known = [*positions, *[""] * len(paths)]
        return tuple(
            View(path, position, uri=self._resolve(path)) for path, position in zip(paths, known, strict=False)
        )

    def _resolve(self, path: str) -> str | None:
        return self._inside.resolve(f"{self.base}/{path}" if self.base and not path.startswith("/") else path)

    def _exists(self, path: str) -> bool:
        uri = self._resolve(path)
        return uri is not None and exists(uri)

    @property
    def _folder(self) -> Path:
        return self.root / self.base

    @functools.cached_property
    def _by_study(self) -> dict[str, list[str]]:
        """Open-i's names by study id; {} if the images are in folders."""
        found = defaultdict(list)
        for name, _, _ in entries(self._folder):
            stem, _, rest = name.rpartition("-")
            if stem and Path(rest).suffix.lower() in FILM_SUFFIXES and stem.startswith("CXR"):
                found[stem].append(name)
        return {study_id: sorted(names) for study_id, names in found.items()}


def near_folders(path: Path) -> list[Path]:
    """A folder and those one and two below it, for a look that must stay quick: large folders are not entered."""
    found = [path]
    for level in (_few_folders(path), [two for one in _few_folders(path) for two in _few_folders(one)]):
        found += level
    return found


def _few_folders(path: Path) -> list[Path]:
    folders = [path / name for name, folder, _ in islice(entries(path), 1000) if folder]
    return sorted(folders) if len(folders) <= FEW_FOLDERS else []


def check_mounted(root: Path) -> None:
    """Tell an archive that is not mounted on this machine from films that are missing in it.

    Without this check, a node without the archive's file system would report every film of its shards as missing. A
    mount point without a mount is an empty folder.

    Raises:
        MegptError: `root` does not exist, or is an empty folder.
    """
    try:
        # the first entry is enough: a folder may hold a million films
        mounted = root.exists() if is_address(root) else root.is_file() or next(entries(root), None) is not None
    except OSError:
        mounted = False
    if not mounted and is_address(root):
        raise MegptError(
            f"the archive {root} cannot be read from node {socket.gethostname()}",
            cause="the credentials in its environment have no right to it, or its objects are gone; "
            "finished shards are kept",
            next="set on every node what docs/addresses.md names, then run the same command again: it resumes",
        )
    if not mounted:
        raise MegptError(
            f"the archive {root} is not visible on node {socket.gethostname()}",
            cause="its file system is not mounted there, or was lost; finished shards are kept",
            next="mount it, or remove the node from the cluster, then run the same command again: it resumes",
        )
