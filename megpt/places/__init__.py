"""Where files lie: on this machine, or at an address (`s3://`, `gs://`, `az://`; `hf://`, `https://` to read).

    folder = place(config.studies)          # a Path, or what has a Path's methods and stands for an address
    with (folder / "part-0.parquet").open("rb") as file: ...
    local_folder(config.checkpoint)         # the same files on this machine, fetched once

Every path that a user names comes through here. What a source keeps as text (a View's uri) is asked for with
`exists`, `is_file`, `size_of`, `stamp`, `walk` and `entries`, which cost one system call on this machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from megpt.errors import InputError
from megpt.places import snapshot, stores
from megpt.places.addresses import Changed, check, screen
from megpt.places.path import FarPath

if TYPE_CHECKING:
    import pyarrow.parquet as pq

__all__ = [
    "Changed",
    "FarPath",
    "absolute",
    "check",
    "entries",
    "exists",
    "head_of",
    "here",
    "is_address",
    "is_dir",
    "is_file",
    "parquet_file",
    "part_of",
    "place",
    "screen",
    "size_of",
    "stamp",
    "take_listing",
    "walk",
]


def is_address(path: object) -> bool:
    """Whether a path is an address. `file:///…` is a path of this machine."""
    return isinstance(path, FarPath) or (isinstance(path, str) and "://" in path and not path.startswith("file://"))


def place(path: str | Path) -> Path:
    """A path of this machine, or the place that an address names.

    Raises:
        InputError: an address that holds a secret, of an unknown kind, or whose package is missing.
    """
    if isinstance(path, str) and is_address(path):
        check(path)
        return cast(Path, FarPath(path))
    return path if is_address(path) else Path(path)  # type: ignore[return-value]


def here(folder: str | Path) -> Path:
    """A folder as one of this machine; at an address, a copy that is fetched once.

    Raises:
        InputError: there is nothing at the address.
    """
    if not is_address(folder):
        return Path(folder)
    check(str(folder))
    from megpt.places.cache import local_folder  # after `megpt --help`, which needs no thread pools

    try:
        return local_folder(str(folder))
    except FileNotFoundError:
        raise InputError(f"nothing at {folder}", next="check the address") from None


def absolute(path: str | Path) -> str:
    """The path as workers may use it, which start in folders of their own."""
    return str(path) if is_address(path) else str(Path(path).absolute())


def take_listing(root: Path) -> None:
    """List an archive at an address once, for all questions that a source will ask about it.

    The films of a list lie beside it, so of a list its folder is listed. A web server lists nothing.
    """
    if is_address(root) and not str(root).startswith("http"):
        snapshot.with_listing(str(root.parent if root.is_file() else root))


def exists(path: str | Path) -> bool:
    return place(path).exists() if is_address(path) else os.path.exists(path)  # noqa: PTH110 (of a million films)


def is_file(path: str | Path) -> bool:
    return place(path).is_file() if is_address(path) else os.path.isfile(path)  # noqa: PTH113


def is_dir(path: str | Path) -> bool:
    return place(path).is_dir() if is_address(path) else os.path.isdir(path)  # noqa: PTH112


def size_of(path: str | Path) -> int:
    return int(place(path).stat().st_size) if is_address(path) else os.path.getsize(path)  # noqa: PTH202


def stamp(path: str) -> bytes:
    """A text that changes with a file's content: size and time of change, of an object size and version.

    Raises:
        OSError: there is none.
    """
    if is_address(path):
        about = cast(Any, place(path).stat())
        return f"{about.st_size}:{about.version}".encode()
    found = os.stat(path)  # noqa: PTH116 (for each of a million films: Path takes twice as long)
    return f"{found.st_size}:{found.st_mtime_ns}".encode()


def part_of(path: str | Path, start: int, size: int) -> bytes:
    """So many bytes of a file, from `start` on; of an object no others are fetched.

    Raises:
        OSError: there is none, or it cannot be read.
    """
    if is_address(path):
        about = cast(FarPath, place(path)).found()
        return stores.fetch(about, start, min(start + size, about.size)) if start < about.size else b""
    with open(path, "rb") as file:  # noqa: PTH123 (of a million films)
        file.seek(start)
        return file.read(size)


def head_of(path: str | Path, size: int) -> bytes:
    """The first bytes of a file."""
    return part_of(path, 0, size)


def entries(folder: str | Path) -> Iterator[tuple[str, bool, bool]]:
    """(name, whether it is a folder, whether it is a link) of what is in a folder."""
    if is_address(folder):
        yield from ((name, is_folder, False) for name, is_folder in cast(FarPath, place(folder)).children())
        return
    with os.scandir(folder) as found:
        yield from ((entry.name, entry.is_dir(follow_symlinks=False), entry.is_symlink()) for entry in found)


def walk(root: str | Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """As os.walk, links followed."""
    if not is_address(root):
        yield from os.walk(root, followlinks=True)
        return
    found = list(entries(root))
    folders = [name for name, is_folder, _ in found if is_folder]
    yield str(root), folders, [name for name, is_folder, _ in found if not is_folder]
    for name in folders:  # the caller may have taken some out
        yield from walk(place(root) / name)


def parquet_file(path: str | Path, **options: Any) -> pq.ParquetFile:
    """A Parquet file, wherever it lies; close it after use. `options` are those of `pyarrow.parquet.ParquetFile`."""
    import pyarrow.parquet as pq  # takes half a second, which `megpt --help` need not wait for

    if not is_address(path):
        return pq.ParquetFile(path, **options)
    # A column chunk is fetched with those beside it: a request takes longer than the bytes between them.
    return pq.ParquetFile(place(path).open("rb"), pre_buffer=True, **options)
