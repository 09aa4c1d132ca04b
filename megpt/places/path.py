"""An address with the methods of `pathlib.Path`, so that the code that reads and lists files reads and lists objects.

A store has keys and no folders: `is_dir` means that a key lies below, `mkdir` and `rmdir` do nothing. It is no
`os.PathLike`: a call that needs a file on this machine fails aloud.
"""

from __future__ import annotations

import fnmatch
import functools
import io
import stat
from collections.abc import Iterator
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import IO, Any

from megpt.places import snapshot, stores
from megpt.places.addresses import split
from megpt.places.stores import Found


@functools.total_ordering
class FarPath:
    """`scheme://bucket/key`."""

    __slots__ = ("_address", "_pure")

    def __init__(self, address: str):
        scheme, bucket, key = split(address)
        self._pure = PurePosixPath("/", bucket, key)
        self._address = f"{scheme}://{bucket}/{key}".rstrip("/")

    def __reduce__(self) -> tuple[Any, ...]:
        return FarPath, (self._address,)

    def __str__(self) -> str:
        return self._address

    def __repr__(self) -> str:
        return f"FarPath({self._address!r})"

    def __hash__(self) -> int:
        return hash(self._address)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FarPath) and self._address == other._address

    def __lt__(self, other: FarPath) -> bool:
        return self._pure < other._pure

    # ---- names

    def __truediv__(self, name: object) -> FarPath:
        return FarPath(f"{self._address}/{name}") if str(name) not in ("", ".") else self

    def joinpath(self, *names: str) -> FarPath:
        return functools.reduce(lambda path, name: path / name, names, self)

    @property
    def name(self) -> str:
        return self._pure.name

    @property
    def stem(self) -> str:
        return self._pure.stem

    @property
    def suffix(self) -> str:
        return self._pure.suffix

    @property
    def suffixes(self) -> list[str]:
        return self._pure.suffixes

    @property
    def parts(self) -> tuple[str, ...]:
        return self._pure.parts

    @property
    def parent(self) -> FarPath:
        return self._with(self._pure.parent)

    @property
    def parents(self) -> list[FarPath]:
        return [self._with(pure) for pure in self._pure.parents[:-1]]

    def with_name(self, name: str) -> FarPath:
        return self._with(self._pure.with_name(name))

    def with_suffix(self, suffix: str) -> FarPath:
        return self._with(self._pure.with_suffix(suffix))

    def relative_to(self, other: FarPath) -> PurePosixPath:
        return self._pure.relative_to(other._pure)

    def is_relative_to(self, other: FarPath) -> bool:
        return isinstance(other, FarPath) and self._pure.is_relative_to(other._pure)

    def match(self, pattern: str) -> bool:
        return self._pure.match(pattern)

    def _with(self, pure: PurePosixPath) -> FarPath:
        return FarPath(f"{split(self._address)[0]}:/{pure}") if pure.name else self

    def as_posix(self) -> str:
        return self._address

    def is_absolute(self) -> bool:
        return True

    def absolute(self) -> FarPath:
        return self

    def resolve(self, strict: bool = False) -> FarPath:
        return self

    def expanduser(self) -> FarPath:
        return self

    # ---- what is there

    def stat(self) -> Any:
        """Size, time and mode; `version` changes with the content.

        Raises:
            FileNotFoundError: nothing is there.
        """
        if (found := self._found()) is not None:
            nanoseconds = int(found.modified * 1e9)
            return SimpleNamespace(
                st_size=found.size,
                st_mtime=found.modified,
                st_mtime_ns=nanoseconds,
                st_mode=stat.S_IFREG,
                version=found.version,
            )
        if self.is_dir():
            return SimpleNamespace(st_size=0, st_mtime=0.0, st_mtime_ns=0, st_mode=stat.S_IFDIR, version="")
        raise FileNotFoundError(2, "No such file or directory", self._address)

    def _found(self) -> Found | None:
        if (held := snapshot.covering(self._address)) is not None:
            return held.file(self._address)
        try:
            return stores.head(self._address) if len(self.parts) > 2 else None
        except FileNotFoundError:
            return None

    def found(self) -> Found:
        """What is known of the object.

        Raises:
            FileNotFoundError: there is none.
        """
        if (found := self._found()) is None:
            raise FileNotFoundError(2, "No such file or directory", self._address)
        return found

    def is_file(self) -> bool:
        return self._found() is not None

    def is_dir(self) -> bool:
        if (held := snapshot.covering(self._address)) is not None:
            return held.is_folder(self._address)
        return next(stores.everything(self._address), None) is not None

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def is_symlink(self) -> bool:
        return False

    def children(self) -> list[tuple[str, bool]]:
        """(name, whether it is a folder) of what is in a folder, by name."""
        if (held := snapshot.covering(self._address)) is not None:
            return held.children(self._address)
        folders, files = stores.children(self._address)
        names = [found.address.rpartition("/")[2] for found in files]
        return sorted([*((name, True) for name in folders), *((name, False) for name in names)])

    def iterdir(self) -> Iterator[FarPath]:
        return (self / name for name, _ in self.children())

    def glob(self, pattern: str) -> Iterator[FarPath]:
        """As Path.glob: `*`, `?`, `[…]`, and `**` for any number of folders."""
        first, _, rest = pattern.partition("/")
        if first == "**":
            yield from self.rglob(rest)
        elif not set("*?[") & set(first):
            below = self / first
            if rest:
                yield from below.glob(rest)
            elif below.exists():
                yield below
        else:
            for name, folder in self.children():
                if fnmatch.fnmatchcase(name, first) and (folder or not pattern.partition("/")[1]):
                    yield from (self / name).glob(rest) if rest else [self / name]

    def rglob(self, pattern: str) -> Iterator[FarPath]:
        """The objects, at any depth, whose last names match."""
        held = snapshot.covering(self._address)
        found = held.everything(self._address) if held is not None else stores.everything(self._address)
        depth = len(self.parts)
        for path in (FarPath(one.address) for one in found):
            if PurePosixPath(*path.parts[depth:]).match(pattern):
                yield path

    # ---- contents

    def open(
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """The object as a file, for reading alone."""
        if set(mode) - set("rbt"):
            raise io.UnsupportedOperation(f"{self} can only be put whole: megpt.output.write_aside does it")
        file = stores.open_object(self._address)
        return file if "b" in mode else io.TextIOWrapper(file, encoding or "utf-8", errors, newline)

    def read_bytes(self) -> bytes:
        with self.open("rb") as file:
            return bytes(file.read())

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        with self.open("r", encoding=encoding, errors=errors) as file:
            return str(file.read())

    def unlink(self, missing_ok: bool = False) -> None:
        if not missing_ok and not self.is_file():
            raise FileNotFoundError(2, "No such file or directory", self._address)
        stores.delete(self._address)

    def touch(self, exist_ok: bool = True) -> None:
        stores.put(self._address, b"", new=not exist_ok)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a folder is there when an object is."""

    def rmdir(self) -> None:
        """Nothing: a folder is gone when its last object is."""
