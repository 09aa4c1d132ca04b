"""studies/: the Parquet table that every job after `prepare` reads.

    studies/data/split=train/part-00000.parquet   …   one row per study, schema `megpt.study.STUDIES_SCHEMA`

`data/` holds nothing else, not even the temporary file of a writer, so that any reader of Parquet opens it
(docs/outputs.md). Each file is written whole or not at all. Rows are streamed in both directions: a row group is closed
at 64 MiB or 20,000 rows, whichever comes first, so memory does not depend on the size of the table, and a look-up by id
reads one group (megpt/data/parquet.py).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from megpt.data.members import Members
from megpt.data.parquet import RowCursor, open_parquet, read_rows
from megpt.errors import InputError, MegptError
from megpt.films.ahead import fetched_ahead
from megpt.output import write_aside
from megpt.places import place
from megpt.study import SPLITS, STUDIES_SCHEMA, Study

DATA = "data"
ROW_GROUP_ROWS = 20_000
ROW_GROUP_BYTES = 64 * 2**20
COMPRESSION = {"compression": "zstd", "compression_level": 3}


@dataclass(frozen=True, slots=True)
class Listed:
    """A study as an archive lists it. If its films are inside a table, `file` and `row` say where.

    `state` changes with its films (`megpt.data.growth.film_state`); it is empty before anyone has looked at them.
    """

    study: Study
    file: str | None = None
    row: int = 0
    state: bytes = b""


class RowWriter:
    """Writes rows into one Parquet file, a row group at a time; use it on the temporary path of `write_aside`.

    Args:
        group_rows: rows of a row group.
        group_bytes: one that reaches so many bytes of films and texts, 64 MiB by default, is closed earlier.
    """

    def __init__(
        self, path: Path, schema: pa.Schema, *, group_rows: int = ROW_GROUP_ROWS, group_bytes: int | None = None
    ):
        self.schema, self.rows = schema, 0
        self.group_rows, self.group_bytes = group_rows, group_bytes or ROW_GROUP_BYTES
        self._writer = pq.ParquetWriter(path, schema, **COMPRESSION)
        self._pending: list[dict[str, Any]] = []
        self._bytes = 0

    def write(self, row: dict[str, Any]) -> None:
        self._pending.append(row)
        self.rows += 1
        self._bytes += sum(len(v.get("bytes") or b"") for v in row.get("views") or ())
        self._bytes += sum(len(value) for value in row.values() if isinstance(value, str))
        if len(self._pending) >= self.group_rows or self._bytes >= self.group_bytes:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self._writer.write_table(pa.Table.from_pylist(self._pending, schema=self.schema))
            self._pending, self._bytes = [], 0

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        # After an exception the file is short but valid; write_aside then never gives it its name.
        if error_type is None:
            self._flush()
        self._writer.close()


def write_rows(
    path: str | Path,
    rows: Iterable[dict[str, Any]],
    schema: pa.Schema,
    *,
    group_rows: int = ROW_GROUP_ROWS,
    aside: Path | None = None,
    new: bool = False,
) -> int:
    """Stream rows into one Parquet file, whole or absent (see `write_aside`); returns how many there were."""
    with (
        write_aside(path, aside=aside, new=new) as temporary,
        RowWriter(temporary, schema, group_rows=group_rows) as writer,
    ):
        for row in rows:
            writer.write(row)
    return writer.rows


def part_path(folder: str | Path, split: str, part: int) -> Path:
    return place(folder) / DATA / f"split={split}" / f"part-{part:05d}.parquet"


def split_folders(folder: Path) -> list[Path]:
    """The folders of a table's splits, sorted; `folder` may be `data/` itself, or a table written by megpt 0.1."""
    return sorted(folder.glob(f"{DATA}/split=*")) or sorted(folder.glob("split=*"))


def write_studies(folder: str | Path, split: str, studies: Iterable[Study], part: int) -> Path:
    """Write one file of a studies/ table, whole or not at all.

    Args:
        studies: any iterable, streamed.
        part: the number in the file's name.

    Raises:
        MegptError: the disk is full or cannot be written.
    """
    path = part_path(folder, split, part)
    write_rows(path, (study.to_row() for study in studies), STUDIES_SCHEMA, aside=place(folder))
    return path


def study_files(folder: str | Path, split: str = "all") -> list[tuple[str, Path]]:
    """(split, file) of a studies/ table, in reading order.

    Raises:
        InputError: no such folder, or no files of that split in it.
    """
    folder = place(folder)
    if split not in (*SPLITS, "all"):
        raise InputError(f"unknown split {split!r}", next=f"use {', '.join(SPLITS)} or all")
    if not folder.is_dir():
        raise InputError(f"no studies/ table at {folder}", next="run `megpt prepare` first, or set studies=PATH")
    wanted = SPLITS if split == "all" else (split,)
    found = {place.name.removeprefix("split="): sorted(place.glob("*.parquet")) for place in split_folders(folder)}
    files = [(name, path) for name in wanted for path in found.get(name, ())]
    if not files:
        present = [name for name, paths in found.items() if paths]
        raise InputError(
            f"no studies of split {split!r} in {folder}" if present else f"{folder} is not a studies/ table",
            cause=f"it holds: {', '.join(present)}" if present else "it has no data/split=train|val|test/*.parquet",
            next="choose another split" if present else "run `megpt prepare` first, or set studies=PATH",
        )
    return files


def with_films(studies: Iterable[Listed]) -> Iterator[Study]:
    """The studies with the bytes of those films that are inside a table or another file, streamed.

    Films that lie at an address by themselves are fetched ahead of their turn.

    Memory holds a few films. Studies that follow one another in a table share its reading.

    Raises:
        InputError: a table cannot be read.
        MegptError: a table has changed since the studies were listed.
    """
    return fetched_ahead(_with_members(studies))


def _with_members(studies: Iterable[Listed]) -> Iterator[Study]:
    members, opened = Members(), dict[str, RowCursor]()
    with contextlib.ExitStack() as stack:
        for listed in studies:
            if listed.study.error:  # nothing will look at its films
                yield listed.study
                continue
            if listed.file is None:
                yield members.fetched(listed.study)
                continue
            if listed.file not in opened:
                stack.close()
                opened = {listed.file: RowCursor(place(listed.file), ["study_id", "views"])}
                stack.callback(opened[listed.file].close)
            yield members.fetched(_with_stored(listed, opened[listed.file]))


def _with_stored(listed: Listed, table: RowCursor) -> Study:
    try:
        stored = table.row(listed.row)
    except KeyError:
        stored = {}
    films = stored.get("views") or []
    if stored.get("study_id") != listed.study.study_id or len(films) != len(listed.study.views):
        raise MegptError(
            f"{listed.file} does not have the films of study {listed.study.study_id!r}",
            where=f"row {listed.row}",
            cause="the table has changed since this job was started",
            next="choose another output=PATH, which starts over",
        )
    views = zip(listed.study.views, films, strict=True)
    return replace(listed.study, views=tuple(replace(view, data=film["bytes"]) for view, film in views))


def read_studies(
    folder: str | Path, split: str = "all", columns: list[str] | None = None, limit: int | None = None
) -> Iterator[Study]:
    """The studies of a table, streamed, in the order of its files.

    Args:
        split: train, val, test or all.
        columns: read only these and `study_id`; the other fields of the Study are empty.
        limit: the first N of them.

    Raises:
        InputError: no such table or split, or a file that is no Parquet of this schema.
    """
    wanted = None if columns is None else ["study_id", *(c for c in columns if c != "study_id")]
    rows = ((name, path, row) for name, path in study_files(folder, split) for row in read_rows(path, wanted))
    for name, path, row in islice(rows, limit):
        if "study_id" not in row:
            raise InputError(f"{path} has no column study_id", cause="it is not a file of a studies/ table")
        yield Study.from_row({**row, "views": row.get("views") or ()}, split=name)


def fingerprint(folder: str | Path) -> str:
    """16 hex digits that change with the table's content.

    They cover each file's name, size, row count and footer, so that a table of a hundred gigabytes takes milliseconds.
    The same studies, written again by the same version, give the same digits on any machine.
    """
    digest = hashlib.sha256()
    for name, path in study_files(folder):
        with open_parquet(path) as file:
            meta = file.metadata
        with path.open("rb") as raw:
            raw.seek(-min(meta.serialized_size + 8, path.stat().st_size), 2)
            footer = raw.read()
        digest.update(f"{name}/{path.name}:{path.stat().st_size}:{meta.num_rows}:".encode())
        digest.update(footer)
    return digest.hexdigest()[:16]
