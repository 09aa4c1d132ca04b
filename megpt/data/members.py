"""Films inside other files, read in place: a member of a tar archive, or a cell of a Parquet table.

    /data/shard-000000.tar#offset=512&size=207        207 bytes of a tar, from byte 512 on
    /data/train-00000.parquet#column=image&row=12     the film in that cell; &item=1 for the second of a list

Such a `View.uri` stays in the shard list and in failed.parquet, so a film is fetched when its study's turn comes, and
memory holds the films of one study (of a row group, for Parquet).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, unquote

import pyarrow as pa

from megpt.data.parquet import RowCursor
from megpt.errors import InputError
from megpt.places import part_of, place
from megpt.study import Study, View

# No film is larger; a member that claims more is not one.
MAX_MEMBER_BYTES = 1 << 30
_TAR = re.compile(r"(?P<file>(?:/|\w+://).+)#offset=(?P<offset>\d{1,18})&size=(?P<size>\d{1,18})", re.DOTALL)
_CELL = re.compile(
    r"(?P<file>(?:/|\w+://).+)#column=(?P<column>[^#&]+)&row=(?P<row>\d{1,12})(?:&item=(?P<item>\d{1,6}))?", re.DOTALL
)


def tar_uri(file: Path, offset: int, size: int) -> str:
    return f"{file.absolute()}#offset={offset}&size={size}"


def cell_uri(file: Path, column: str, row: int, item: int | None = None) -> str:
    return f"{file.absolute()}#column={quote(column, safe='')}&row={row}" + ("" if item is None else f"&item={item}")


def is_member(uri: str | None) -> bool:
    """Whether a uri names a film inside another file."""
    return uri is not None and "#" in uri and (_TAR.fullmatch(uri) or _CELL.fullmatch(uri)) is not None


class Members:
    """Fetches films that lie inside other files; it keeps a few rows of one column of a table."""

    def __init__(self) -> None:
        self._opened: tuple[str, str, RowCursor] | None = None

    def fetched(self, study: Study) -> Study:
        """The study with the bytes of such films; they keep their uris. What cannot be read stays without bytes."""
        if not any(view.data is None and is_member(view.uri) for view in study.views):
            return study
        return replace(study, views=tuple(map(self._view, study.views)))

    def _view(self, view: View) -> View:
        if view.data is not None or view.uri is None:
            return view
        try:
            if found := _TAR.fullmatch(view.uri):
                return replace(view, data=_bytes_of(found["file"], int(found["offset"]), int(found["size"])))
            if found := _CELL.fullmatch(view.uri):
                item = None if found["item"] is None else int(found["item"])
                return replace(view, data=self._cell(found["file"], unquote(found["column"]), int(found["row"]), item))
        except (OSError, pa.ArrowException, KeyError, ValueError, InputError):
            pass  # the film's own reader then says that the file is missing
        return view

    def _cell(self, path: str, column: str, row: int, item: int | None) -> bytes | None:
        if self._opened is None or self._opened[:2] != (path, column):
            if self._opened is not None:
                self._opened[2].close()
            self._opened = path, column, RowCursor(place(path), [column])
        value = self._opened[2].row(row)[column]
        if item is not None:
            value = value[item] if value and item < len(value) else None
        data = value.get("bytes") if isinstance(value, dict) else value
        return data if data is not None else b""


def with_members(studies: Iterable[Study]) -> Iterator[Study]:
    """The studies with the bytes of films that lie inside other files, streamed."""
    members = Members()
    return (members.fetched(study) for study in studies)


def _bytes_of(path: str, offset: int, size: int) -> bytes:
    if size > MAX_MEMBER_BYTES:
        raise ValueError(size)
    return part_of(path, offset, size)
