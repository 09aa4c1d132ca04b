"""Walks a tree of DICOM files and archives of them, and brings the header index up to date.

Only files that are new, or whose size or time has changed, are opened. Eight threads read their first 64 KiB each,
which hides the latency of a network file system; one core parses about 2,000 headers a second.
"""

from __future__ import annotations

import os
import stat
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from megpt.data.sources.base import Inside
from megpt.data.sources.dicom.headers import (
    HEAD_BYTES,
    MOST_BYTES,
    Header,
    UnreadableHeader,
    listed_studies,
    read_header,
)
from megpt.data.sources.dicom.index import HeaderIndex, IndexEntry
from megpt.data.sources.dicom.words import DICOMDIR as DICOMDIR_OBJECT
from megpt.films.kinds import GZIP, HEADER_BYTES, film_type
from megpt.films.members import DAMAGE, Member, archive_type, members
from megpt.films.unreadable import UnreadableFilm
from megpt.places import head_of, is_address, place, walk
from megpt.progress import log

THREADS, FAR_THREADS, AHEAD, COMMIT_FILES, TELL_FILES = 8, 64, 256, 5_000, 25_000
DICOM_SUFFIXES = (b".dcm", b".dicom", b".dic", b".dcm30")
# In a tree that is only looked at, to see whether it holds DICOM, files of these names are not opened.
OTHER_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".csv", ".tsv", ".txt", ".json", ".jsonl"),
    *(".xml", ".html", ".pdf", ".parquet", ".yaml", ".md", ".py", ".npy", ".h5", ".exe", ".dll", ".inf", ".xlsx"),
)
# Of an archive this many members are looked at: more than the viewer that comes before the films of many a disc.
DETECT_MEMBERS = 512

MakeEntry = Callable[[bytes, Header], IndexEntry]
Scanned = tuple[bytes, int, int, list[IndexEntry]]


NO_FOLDER = "folder that cannot be read"


def holds_dicom(path: Path) -> bool:
    """Whether a file, an archive or a tree holds a DICOM file; stops at the first."""
    if path.is_file():
        return _is_dicom(os.fsencode(str(path)))
    return any(
        _is_dicom(path)
        for relative, path, _, aside in _walk(os.fsencode(str(path)))
        if not aside and not os.fsdecode(relative).lower().endswith(OTHER_SUFFIXES)
    )


def _is_dicom(path: bytes) -> bool:
    try:
        if not stat.S_ISREG(_about(path).st_mode):
            return False
        head = head_of(os.fsdecode(path), HEADER_BYTES)
        if not _is_archive(head):
            return film_type(head) == "dicom"
        heads = (
            member.read(HEADER_BYTES)
            for _, member in zip(range(DETECT_MEMBERS), members(os.fsdecode(path)), strict=False)
        )
        return any(film_type(head) == "dicom" for head in heads)
    except Exception:  # whatever is wrong with it is for the scan to say
        return False


def update(index: HeaderIndex, root: Path, make_entry: MakeEntry) -> tuple[int, int]:
    """Bring the index up to date with the tree.

    Args:
        root: the folder, or one file.
        make_entry: from a path and a header to the entry, with identifiers hashed as the settings want.

    Returns:
        How many files the tree has, and how many of them had to be opened.
    """
    folder, opened, total = root if root.is_dir() else root.parent, 0, 0
    inside = Inside(folder)
    waiting: deque[Future[Scanned]] = deque()
    files = (
        _walk(os.fsencode(str(root)))
        if root.is_dir()
        else iter([(os.fsencode(root.name), os.fsencode(str(root)), False, "")])
    )
    with ThreadPoolExecutor(FAR_THREADS if is_address(root) else THREADS) as pool:
        for relative, path, linked, aside in files:
            total += 1
            about = None if aside else _stat(path)
            if about is None:
                aside = aside or "broken link"
            elif linked and inside.resolve(os.fsdecode(relative)) is None:
                aside = "link that leads out"
            if aside or about is None:
                what = "error" if aside == NO_FOLDER else "other"
                index.put(relative, -1, -1, [IndexEntry(relative, what=what, reason=aside)])
                continue
            if index.known(relative, about.st_size, about.st_mtime_ns):
                continue
            opened += 1
            waiting.append(pool.submit(_read, path, relative, about, make_entry))
            if len(waiting) >= AHEAD:
                index.put(*waiting.popleft().result())
            if opened % COMMIT_FILES == 0:
                index.commit()
            if opened % TELL_FILES == 0:
                log(f"dicom: {opened} new headers read")
        while waiting:
            index.put(*waiting.popleft().result())
    index.forget_unseen()
    return total, opened


def _walk(root: bytes) -> Iterator[tuple[bytes, bytes, bool, str]]:
    """(path inside the root, whole path, whether it is a link, why it is not looked at) of every file, in order."""
    if is_address(address := os.fsdecode(root)):
        for folder, folders, names in walk(address):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for path in (f"{folder}/{name}" for name in names):
                hidden = "hidden" if path.rpartition("/")[2].startswith(".") else ""
                yield os.fsencode(path[len(address) + 1 :]), os.fsencode(path), False, hidden
        return
    waiting = [b""]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as found:  # noqa: PTH118 (of a million files)
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError:
            yield folder, os.path.join(root, folder), False, NO_FOLDER  # noqa: PTH118
            continue
        below = []
        for entry in entries:
            relative = folder + b"/" + entry.name if folder else entry.name
            linked = entry.is_symlink()
            if entry.name.startswith(b"."):
                yield relative, entry.path, linked, "hidden"
            elif entry.is_dir(follow_symlinks=False):
                below.append(relative)
            else:
                yield relative, entry.path, linked, "link to a folder" if linked and entry.is_dir() else ""
        waiting += reversed(below)


def _about(path: bytes) -> os.stat_result:
    return place(address).stat() if is_address(address := os.fsdecode(path)) else os.stat(path)  # noqa: PTH116


def _stat(path: bytes) -> os.stat_result | None:
    try:
        return _about(path)
    except OSError:
        return None


def _read(path: bytes, relative: bytes, about: os.stat_result, make_entry: MakeEntry) -> Scanned:
    """What a file holds; errors become entries."""
    entries: list[IndexEntry]
    try:
        if not stat.S_ISREG(about.st_mode):
            entries = [IndexEntry(relative, what="other", reason="not a file")]
        else:
            head = head_of(os.fsdecode(path), HEAD_BYTES)
            if _is_archive(head):
                found = _of_archive(path, relative, make_entry)
            else:
                found = iter(_of_file(relative, relative, head, lambda: _first(path), make_entry))
            entries = [replace(entry, place=place) for place, entry in enumerate(found)]
    except OSError as error:
        entries = [IndexEntry(relative, what="error", reason=f"file that cannot be read ({type(error).__name__})")]
    return relative, about.st_size, about.st_mtime_ns, entries


def _first(path: bytes) -> bytes:
    return head_of(os.fsdecode(path), MOST_BYTES)


def _of_archive(path: bytes, relative: bytes, make_entry: MakeEntry) -> Iterator[IndexEntry]:
    """The entries of an archive, up to where it is damaged."""
    count = 0
    try:
        for member in members(os.fsdecode(path)):
            name = os.fsencode(member.name)
            for entry in _of_member(relative, member, make_entry):
                yield replace(entry, member=name, place=count)
                count += 1
    except UnreadableFilm as error:
        yield IndexEntry(relative, place=count, what="error", reason=error.reason)
        return
    if not count:
        yield IndexEntry(relative, what="other", reason="empty archive")


def _of_member(relative: bytes, member: Member, make_entry: MakeEntry) -> list[IndexEntry]:
    if member.refused:
        return [IndexEntry(relative, what="error", reason=member.refused)]
    try:
        head = member.read(HEAD_BYTES)
        if _is_archive(head):
            return [IndexEntry(relative, what="other", reason="archive inside an archive")]
        return _of_file(relative, os.fsencode(member.name), head, lambda: member.read(MOST_BYTES), make_entry)
    except UnreadableFilm as error:
        return [IndexEntry(relative, what="error", reason=error.reason)]
    except DAMAGE:
        return [IndexEntry(relative, what="error", reason="damaged archive member")]


def _is_archive(head: bytes) -> bool:
    """A zip, tar or packed file; a DICOM file that is gzipped by itself is a film."""
    return archive_type(head[:512]) is not None and film_type(head) != "dicom"


def _unzipped(data: bytes, most: int) -> bytes:
    return zlib.decompressobj(wbits=31).decompress(data, most)


def _of_file(
    relative: bytes, name: bytes, head: bytes, whole: Callable[[], bytes], make_entry: MakeEntry
) -> list[IndexEntry]:
    """One entry; more for a DICOMDIR, which also says whose studies there are."""
    if head.startswith(GZIP):
        packed, cut = whole, len(head) >= HEAD_BYTES
        whole = lambda: _unzipped(packed(), MOST_BYTES)  # noqa: E731
        try:
            head = whole()[:HEAD_BYTES] if cut else _unzipped(head, HEAD_BYTES)
        except zlib.error:
            return [IndexEntry(relative, what="error", reason=UnreadableHeader().reason)]
    try:
        header = read_header(head, whole)
    except UnreadableHeader as error:
        return [IndexEntry(relative, what="error", reason=error.reason)]
    if header is not None and header.object == DICOMDIR_OBJECT:
        listed = [make_entry(relative, Header(patient=who, study=study)) for who, study in listed_studies(whole())]
        return [
            IndexEntry(relative, what="other", reason="DICOMDIR"),
            *(replace(entry, what="listed") for entry in listed),
        ]
    if header is not None:
        return [make_entry(relative, header)]
    kind = film_type(head)
    if kind is None and name.lower().endswith(DICOM_SUFFIXES):
        return [IndexEntry(relative, what="error", reason=UnreadableHeader().reason if head else "empty file")]
    return [IndexEntry(relative, what="other", reason=kind.upper() if kind else "other")]
