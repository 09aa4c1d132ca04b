"""Films inside zip and tar archives, read in place: nothing is unpacked to disk, and no member is trusted.

    for member in members(Path("export.zip")):       # names and sizes, in the archive's order
        if not member.refused:
            head = member.read(65_536)
    file = open_uri("/data/export.zip!DICOM/IM0001")  # what a View's uri names

A uri is a plain path, or `PATH!MEMBER`. A path that is not UTF-8, or that has a `!` itself, is written percent-encoded
as `file:///…`, so every file name of the archive's disk can be kept in a table.

Bounds: a member that unfolds to more than `MAX_MEMBER` bytes, or to more than `MAX_RATIO` times its packed size, is
refused by what it declares and again while it is read; a packed stream may not unfold to more than `MAX_RATIO` times
its size as a whole. A member's path is a name and never a place on disk.
"""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast
from urllib.parse import quote, unquote_to_bytes

from megpt import places
from megpt.films.unfolded import BOMB, BoundedFile, UnfoldedFile
from megpt.films.unreadable import UnreadableFilm

MAX_MEMBER = 1 << 30
MAX_RATIO = 200
# Small files may be packed as densely as they like.
RATIO_FROM = 64 << 20
MAX_MEMBERS = 1_000_000
OPEN_ARCHIVES = 2
LEADS_OUT = "archive member whose path leads out of the archive"
DAMAGED = "damaged archive"
ENCRYPTED = "encrypted archive member"
NAMELESS = "archive member without a name"
PACKERS: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file, mode="rb"),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
DAMAGE = (
    *(OSError, EOFError, ValueError, RuntimeError, NotImplementedError, OverflowError, MemoryError),
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
)


@dataclass(frozen=True)
class Member:
    """A file in an archive; `refused` is the reason if it may not be read, `place` its order."""

    name: str
    size: int
    place: int
    refused: str
    read: Callable[[int], bytes]
    """The first bytes, at most so many."""


def to_uri(path: str, member: str | None = None) -> str:
    """The uri of a file, or of a member of an archive."""
    try:
        f"{path}{member or ''}".encode()
        plain = "!" not in path and "\0" not in path
    except UnicodeEncodeError:
        plain = False
    if plain:
        return path if member is None else f"{path}!{member}"
    encoded = "file://" + quote(os.fsencode(path))
    return encoded if member is None else f"{encoded}!{quote(member.encode('utf-8', 'surrogateescape'))}"


def from_uri(uri: str) -> tuple[str, str | None]:
    """The inverse of `to_uri`: a path, and the name of a member of the archive there."""
    if uri.startswith("file://"):
        path, found, member = uri.removeprefix("file://").partition("!")
        name = unquote_to_bytes(member).decode("utf-8", "surrogateescape") if found else None
        return os.fsdecode(unquote_to_bytes(path)), name
    if "!" not in uri or (places.exists(uri) if places.is_address(uri) else os.path.lexists(uri)):
        return uri, None
    path, _, member = uri.partition("!")
    return path, member


def archive_type(head: bytes) -> str | None:
    """`zip`, `tar` or `packed` (gzip, bzip2 or xz) from a file's first 512 bytes; None for anything else."""
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head[257:262] == b"ustar":
        return "tar"
    return "packed" if head.startswith(tuple(PACKERS)) else None


def members(path: str) -> Iterator[Member]:
    """The regular files of an archive; of several with one name only the first.

    Raises:
        UnreadableFilm: the archive is damaged, or unfolds to too many bytes.
    """
    try:
        archive = _Archive(path)
        try:
            yield from archive.members()
        finally:
            archive.close()
    except UnreadableFilm:
        raise
    except DAMAGE:
        raise UnreadableFilm(DAMAGED) from None


def open_member(path: str, name: str) -> BinaryIO:
    """One member of an archive, in memory. The archive stays open for the films that follow.

    Raises:
        UnreadableFilm: no such member, one that is refused, or a damaged archive. FileNotFoundError and other OSErrors
            of the archive's own file pass through.
    """
    found = places.place(path).stat()
    if not stat.S_ISREG(found.st_mode):
        raise UnreadableFilm("not a file")
    try:
        member = _kept(path, found.st_size, found.st_mtime_ns, os.getpid()).find(name)
        if member is None:
            raise UnreadableFilm("no such member in the archive")
        if member.refused:
            raise UnreadableFilm(member.refused)
        data = member.read(MAX_MEMBER + 1)
    except UnreadableFilm:
        raise
    except DAMAGE:
        raise UnreadableFilm(DAMAGED) from None
    if len(data) > MAX_MEMBER:
        raise UnreadableFilm(BOMB)
    return io.BytesIO(data)


@functools.lru_cache(maxsize=OPEN_ARCHIVES)
def _kept(path: str, size: int, mtime: int, process: int) -> _Archive:
    return _Archive(path)


class _Archive:
    """An open zip, tar or packed file. Members that were passed on the way to another are remembered."""

    def __init__(self, path: str):
        self._file: BinaryIO = places.place(path).open("rb")  # closed by close, or with this object
        self._seen: dict[str, Member] = {}
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        head = self._file.read(512)
        self._file.seek(0)
        kind = archive_type(head)
        if kind == "zip":
            self._rest = self._zip(zipfile.ZipFile(self._file))
            return
        stream: Any = self._file
        if kind == "packed":
            opened = next(opener for magic, opener in PACKERS.items() if head.startswith(magic))
            stream = UnfoldedFile(opened(self._file), max(RATIO_FROM, MAX_RATIO * size))
            head = stream.read(512)
            stream.seek(0)
            if archive_type(head) != "tar":
                self._rest = iter([Member(_inner_name(path), 0, 0, "", functools.partial(_read_at, stream, 0, None))])
                return
        else:
            stream = BoundedFile(self._file)
        self._rest = self._tar(tarfile.open(fileobj=cast(Any, stream), mode="r:"), stream)  # noqa: SIM115

    def close(self) -> None:
        self._file.close()

    def members(self) -> Iterator[Member]:
        for member in self._rest:
            if member.name in self._seen:
                continue
            if len(self._seen) >= MAX_MEMBERS:
                raise UnreadableFilm("archive of too many members")
            self._seen[member.name] = member
            yield member

    def find(self, name: str) -> Member | None:
        return self._seen.get(name) or next((member for member in self.members() if member.name == name), None)

    def _zip(self, archive: zipfile.ZipFile) -> Iterator[Member]:
        for place, info in enumerate(archive.infolist()):
            if not info.filename:  # damage, or a name that begins with NUL: the others are still read
                yield Member(f"member {place + 1}", 0, place, NAMELESS, functools.partial(_read_zip, archive, info))
                continue
            if info.is_dir() or stat.S_ISLNK(info.external_attr >> 16):
                continue
            refused = _refused(info.filename, info.file_size, info.compress_size)
            if info.flag_bits & 1:
                refused = refused or ENCRYPTED
            yield Member(info.filename, info.file_size, place, refused, functools.partial(_read_zip, archive, info))

    def _tar(self, archive: tarfile.TarFile, stream: Any) -> Iterator[Member]:
        place = 0
        while (info := archive.next()) is not None:
            cast(Any, archive).members = []  # tarfile would keep them all
            if info.isreg() and not info.issparse():
                refused = _refused(info.name, info.size, info.size)
                read = functools.partial(_read_at, stream, info.offset_data, info.size)
                yield Member(info.name, info.size, place, refused, read)
            place += 1


def _read_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo, count: int) -> bytes:
    with archive.open(info) as file:
        return file.read(min(count, info.file_size))


def _read_at(stream: Any, offset: int, size: int | None, count: int) -> bytes:
    """Bytes of a tar or a packed file; going backwards in a packed one means to unfold it again from its start."""
    stream.seek(offset)
    wanted = count if size is None else min(count, size)
    return b"".join(iter(lambda: stream.read(min(1 << 20, wanted - stream.tell() + offset)), b""))


def _refused(name: str, size: int, packed: int) -> str:
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or name.startswith(("/", "\\")) or parts[0].endswith(":"):
        return LEADS_OUT
    return BOMB if size > MAX_MEMBER or (size > RATIO_FROM and size > MAX_RATIO * max(packed, 1)) else ""


def _inner_name(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]  # noqa: PTH119, PTH122 (a name that may not be UTF-8)
