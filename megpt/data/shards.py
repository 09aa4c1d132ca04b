"""The shard list of a job: the studies it works on, cut into shards, on disk before the first film is opened.

    FOLDER/part-000000.parquet …     the studies in the archive's order, without pixels (`generate`: OUT/plan)
    FOLDER/train-00000.parquet …     the same, in a sequence of files per split (`prepare`: OUT/.work/plan)
    FOLDER/plan.json                 the record, written last: without it there is no list

A shard is `shard_size` consecutive studies of one split. A file holds about 5,000 rows and a row group about 500, and
neither cuts a shard, so a small shard costs neither a file of its own nor the reading of many others.

Order of writes: each file appears whole, by a rename, and the record after all of them. A job that is killed before the
record finds no list and starts over; a job that is killed after it finds the whole list and never writes it again. So
a job that resumes works on the studies and the shards of its first start, even if the archive has changed since. The
list depends on the archive and the shard size, never on the number of workers.

The record holds the number of studies of each segment. A list only ever grows at its end: a further segment begins new
files and new shards and leaves the earlier ones untouched, and the record is replaced after its files are written.

Memory does not depend on the archive: rows are streamed, shards are computed from the record, and the ids that have
been seen are kept in a temporary database on disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from megpt.data.studies import Listed, RowWriter, open_parquet, read_slice
from megpt.errors import InputError, MegptError
from megpt.output import write_aside
from megpt.study import SPLITS, STUDIES_SCHEMA, Study

RECORD = "plan.json"
FILE_ROWS, GROUP_ROWS = 5_000, 500

# A study's row; if its films are inside a studies/ table, `file` and `row` say where.
LIST_SCHEMA = (
    STUDIES_SCHEMA.append(pa.field("split", pa.string()))
    .append(pa.field("file", pa.string()))
    .append(pa.field("row", pa.int64()))
    .append(pa.field("error", pa.string()))
)


@dataclass(frozen=True, slots=True)
class Shard:
    """The studies of one task and one output file: `studies` rows of the list's `file`, from `row` on.

    `number` counts the shards of a split; a list that is not divided by split has one, named "".
    """

    split: str
    number: int
    studies: int
    file: str
    row: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05d}" if self.split else f"part-{self.number:06d}"


@dataclass(frozen=True)
class ShardList:
    """A complete list on disk; a sequence of shards, which are computed and not held."""

    folder: Path
    shard_size: int
    segments: tuple[tuple[str, int], ...]
    """Split and number of studies of each run of files, in the order in which the shards are counted."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What the job recorded with the list."""

    @classmethod
    def load(cls, folder: Path) -> ShardList | None:
        """The list in `folder`; None if there is none, or only one that was cut off.

        Raises:
            MegptError: the record is damaged.
        """
        record = folder / RECORD
        try:
            values = json.loads(record.read_text())
            studies, size = int(values.pop("studies")), int(values.pop("shard_size"))
            segments = values.pop("segments", [["", studies]])
            return cls(folder, size, tuple((str(split), int(count)) for split, count in segments), values)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise MegptError(
                f"{record} is damaged",
                cause=type(error).__name__,
                next="delete the output folder and run the command again",
            ) from None

    @property
    def studies(self) -> int:
        return sum(count for _, count in self.segments)

    @property
    def group_rows(self) -> int:
        return self.shard_size * max(1, GROUP_ROWS // self.shard_size)

    @property
    def file_rows(self) -> int:
        return self.group_rows * max(1, FILE_ROWS // self.group_rows)

    def __len__(self) -> int:
        return sum(-(-count // self.shard_size) for _, count in self.segments)

    def __iter__(self) -> Iterator[Shard]:
        return (self[position] for position in range(len(self)))

    def __getitem__(self, position: int) -> Shard:
        shards, files = Counter[str](), Counter[str]()
        for split, count in self.segments:
            here = -(-count // self.shard_size)
            if 0 <= position < here:
                first = position * self.shard_size
                file, row = divmod(first, self.file_rows)
                studies = min(self.shard_size, count - first)
                return Shard(split, shards[split] + position, studies, file_name(split, files[split] + file), row)
            position -= here
            shards[split] += here
            files[split] += -(-count // self.file_rows)
        raise IndexError(position)

    def read(self, shard: Shard) -> list[Listed]:
        """The studies of one shard, in order, without the films that are inside a table."""
        rows = read_slice(self.folder / shard.file, shard.row, shard.studies)
        return [from_row(row, split=shard.split) for row in rows]

    def study_ids(self) -> Iterator[list[str]]:
        """The ids of each shard's studies, shard by shard; each file is opened once."""
        for file, shards in groupby(self, key=lambda shard: shard.file):
            with open_parquet(self.folder / file) as table:
                ids = table.read(columns=["study_id"]).column("study_id").to_pylist()
            yield from (ids[shard.row : shard.row + shard.studies] for shard in shards)


def to_row(listed: Listed) -> dict[str, Any]:
    """A row of `LIST_SCHEMA`."""
    study = listed.study
    return {
        **study.to_row(),
        "split": study.split,
        "file": listed.file,
        "row": listed.row,
        "error": study.error or None,
    }


def from_row(row: dict[str, Any], *, split: str) -> Listed:
    """The inverse of `to_row`; `split` is that of a study whose row has none."""
    study = replace(Study.from_row(row, split=split), error=row.get("error") or "")
    return Listed(study, row["file"], row["row"] or 0)


def file_name(split: str, number: int) -> str:
    return f"{split}-{number:05d}.parquet" if split else f"part-{number:06d}.parquet"


class ShardListWriter(contextlib.AbstractContextManager["ShardListWriter"]):
    """Streams studies into a new list, in place of any that was cut off; `finish` makes it complete."""

    def __init__(self, folder: Path, shard_size: int):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._shape = ShardList(folder, shard_size, ())
        self._open = contextlib.ExitStack()
        self._files: dict[str, _Files] = {}

    def add(self, listed: Listed, split: str = "") -> None:
        """Append a study to the shards of `split`."""
        if split not in self._files:
            self._files[split] = self._open.enter_context(_Files(self._shape, split))
        self._files[split].write(to_row(listed))

    @property
    def studies(self) -> int:
        return sum(files.rows for files in self._files.values())

    def finish(self, **notes: Any) -> ShardList:
        """Close the files, then write the record; `notes` go into it."""
        self._open.close()
        order = [split for split in ("", *SPLITS) if split in self._files]
        segments = tuple((split, self._files[split].rows) for split in order)
        complete = ShardList(self._shape.folder, self._shape.shard_size, segments, notes)
        tree = {"studies": complete.studies, "shard_size": complete.shard_size, **notes}
        if order != [""]:
            tree["segments"] = [list(segment) for segment in segments]
        with write_aside(complete.folder / RECORD) as temporary:
            temporary.write_text(json.dumps(tree) + "\n")
        return complete

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)


class _Files(contextlib.AbstractContextManager["_Files"]):
    """The rows of one split, in files of `file_rows`; a file that an error cuts off never gets its name."""

    def __init__(self, shape: ShardList, split: str):
        self.shape, self.split, self.rows = shape, split, 0
        self._open = contextlib.ExitStack()
        self._writer: RowWriter

    def write(self, row: dict[str, Any]) -> None:
        number, place = divmod(self.rows, self.shape.file_rows)
        if place == 0:
            self._open.close()
            path = self._open.enter_context(write_aside(self.shape.folder / file_name(self.split, number)))
            self._writer = self._open.enter_context(RowWriter(path, LIST_SCHEMA, group_rows=self.shape.group_rows))
        self._writer.write(row)
        self.rows += 1

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)


def unique(studies: Iterable[Listed], *, where: str | None = None) -> Iterator[Listed]:
    """The same studies, once it is known that no earlier one has the same id.

    Raises:
        InputError: two studies with one id, or a study without an id.
    """
    with contextlib.closing(scratch("CREATE TABLE ids (id BLOB PRIMARY KEY) WITHOUT ROWID")) as seen:
        for listed in studies:
            name = listed.study.study_id
            if not name:
                raise InputError("the archive has a study without an id", where=where)
            try:
                seen.execute("INSERT INTO ids VALUES (?)", (digest(name),))
            except sqlite3.IntegrityError:
                raise InputError(
                    f"two studies have the id {name!r}",
                    where=where,
                    cause="rows of one study must follow one another, and each id must name one study",
                    next="merge or rename them in the archive's table",
                ) from None
            yield listed


def scratch(schema: str) -> sqlite3.Connection:
    """A temporary database: it is private to this process, moves to disk as it grows, and is deleted when closed."""
    database = sqlite3.connect("")
    database.execute("PRAGMA journal_mode = OFF")
    database.execute(schema)
    return database


def digest(text: str) -> bytes:
    """16 bytes in place of an id."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
