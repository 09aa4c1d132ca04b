"""The shard list of a job: the studies it works on, cut into shards, on disk before the first film is opened.

    FOLDER/part-000000.parquet …     the studies in the archive's order, without pixels (`generate`: OUT/plan)
    FOLDER/train-00000.parquet …     the same, in a sequence of files per split (`prepare`: OUT/.work/plan)
    FOLDER/plan.json                 the record, written last: without it there is no list

A shard is `shard_size` consecutive studies of one split. A file holds about 5,000 rows and a row group about 500, and
neither cuts a shard, so a small shard costs neither a file of its own nor the reading of many others.

Order of writes: each file appears whole, by a rename, and the record after all of them. A job that is killed before the
record finds no list and starts over; a job that is killed after it finds the whole list. The list depends on the
archive and the shard size, never on the number of workers.

The record holds the number of rows of each segment. A list only ever grows at its end (megpt/data/growth.py): a
further segment begins new files and new shards and leaves the earlier ones untouched, and the record is replaced after
its files are written. A study that is listed again supersedes its earlier row; the record names those rows, and they
count no more.

Memory does not depend on the archive: rows are streamed, and shards are computed from the record.
"""

from __future__ import annotations

import contextlib
import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from megpt.data.parquet import open_parquet, read_slice
from megpt.data.studies import Listed, RowWriter
from megpt.errors import MegptError
from megpt.output import write_aside
from megpt.study import SPLITS, STUDIES_SCHEMA, Study

RECORD = "plan.json"
FILE_ROWS, GROUP_ROWS, GROUP_BYTES = 5_000, 500, 8 << 20

# A study's row; if its films are inside a studies/ table, `file` and `row` say where.
LIST_SCHEMA = (
    STUDIES_SCHEMA.append(pa.field("prior_report", pa.string()))
    .append(pa.field("split", pa.string()))
    .append(pa.field("file", pa.string()))
    .append(pa.field("row", pa.int64()))
    .append(pa.field("state", pa.binary()))
    .append(pa.field("error", pa.string()))
)


@dataclass(frozen=True, slots=True)
class Shard:
    """The studies of one task and one output file: `rows` rows of the list's `file`, from `row` on.

    `studies` of them count; the others are superseded. `number` counts the shards of a split; a list that is not
    divided by split has one, named "".
    """

    split: str
    number: int
    studies: int
    file: str
    row: int
    rows: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05d}" if self.split else f"part-{self.number:06d}"


@dataclass(frozen=True)
class ShardList:
    """A complete list on disk; a sequence of shards, which are computed and not held."""

    folder: Path
    shard_size: int
    segments: tuple[tuple[str, int], ...]
    """Split and number of rows of each run of files, in the order in which the shards are counted."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What the job recorded with the list."""
    superseded: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """File → its rows, in order, whose studies are listed again later."""

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
            gone = {str(file): tuple(map(int, rows)) for file, rows in values.pop("superseded", {}).items()}
            return cls(folder, size, tuple((str(split), int(count)) for split, count in segments), values, gone)
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
        return sum(count for _, count in self.segments) - sum(map(len, self.superseded.values()))

    @property
    def group_rows(self) -> int:
        return self.shard_size * max(1, GROUP_ROWS // self.shard_size)

    @property
    def file_rows(self) -> int:
        return self.group_rows * max(1, FILE_ROWS // self.group_rows)

    def __len__(self) -> int:
        return sum(-(-count // self.shard_size) for _, count in self.segments)

    def __iter__(self) -> Iterator[Shard]:
        for segment in self._placed():
            yield from (self._shard(*segment, place) for place in range(-(-segment[1] // self.shard_size)))

    def __getitem__(self, position: int) -> Shard:
        for segment in self._placed():
            here = -(-segment[1] // self.shard_size)
            if 0 <= position < here:
                return self._shard(*segment, position)
            position -= here
        raise IndexError(position)

    def _placed(self) -> Iterator[tuple[str, int, int, int]]:
        """Split and rows of each segment, and the numbers of its first shard and file among those of its split."""
        shards, files = Counter[str](), Counter[str]()
        for split, count in self.segments:
            yield split, count, shards[split], files[split]
            shards[split] += -(-count // self.shard_size)
            files[split] += -(-count // self.file_rows)

    def _shard(self, split: str, count: int, first_shard: int, first_file: int, place: int) -> Shard:
        first = place * self.shard_size
        file, row = divmod(first, self.file_rows)
        rows, name = min(self.shard_size, count - first), file_name(split, first_file + file)
        gone = self.superseded.get(name, ())
        studies = rows - (bisect_left(gone, row + rows) - bisect_left(gone, row))
        return Shard(split, first_shard + place, studies, name, row, rows)

    def splits(self) -> Counter[str]:
        """The number of studies of each split."""
        counts = Counter[str]()
        for shard in self:
            counts[shard.split] += shard.studies
        return counts

    def files(self) -> list[str]:
        """The names of the list's files."""
        return [
            file_name(split, first + n)
            for split, count, _, first in self._placed()
            for n in range(-(-count // self.file_rows))
        ]

    def read(self, shard: Shard, columns: Sequence[str] = ()) -> list[Listed]:
        """The studies of one shard, in order, without the films that are inside a table.

        Args:
            columns: read only these; the other fields of a study are empty then.
        """
        rows = enumerate(read_slice(self.folder / shard.file, shard.row, shard.rows, columns), shard.row)
        gone = self.superseded.get(shard.file, ())
        return [from_row(row, split=shard.split) for number, row in rows if number not in gone]

    def study_ids(self) -> Iterator[list[str]]:
        """The ids of each shard's studies, shard by shard; each file is opened once."""
        for file, shards in groupby(self, key=lambda shard: shard.file):
            with open_parquet(self.folder / file) as table:
                ids = table.read(columns=["study_id"]).column("study_id").to_pylist()
            for row in self.superseded.get(file, ()):
                ids[row] = None
            for shard in shards:
                yield [name for name in ids[shard.row : shard.row + shard.rows] if name is not None]


def to_row(listed: Listed) -> dict[str, Any]:
    """A row of `LIST_SCHEMA`."""
    study = listed.study
    place = {"file": listed.file, "row": listed.row, "state": listed.state}
    return {**study.to_row(), "split": study.split, **place, "error": study.error or None}


def from_row(row: dict[str, Any], *, split: str) -> Listed:
    """The inverse of `to_row`; `split` is that of a study whose row has none."""
    study = replace(Study.from_row(row, split=split), error=row.get("error") or "")
    return Listed(study, row.get("file"), row.get("row") or 0, row.get("state") or b"")


def file_name(split: str, number: int) -> str:
    return f"{split}-{number:05d}.parquet" if split else f"part-{number:06d}.parquet"


class ShardListWriter(contextlib.AbstractContextManager["ShardListWriter"]):
    """Streams studies into a new list, or to the end of `base`; `finish` makes it complete.

    What an earlier writer left that was cut off is deleted.
    """

    def __init__(self, folder: Path, shard_size: int, base: ShardList | None = None):
        self._base = base or ShardList(folder, shard_size, ())
        folder.mkdir(parents=True, exist_ok=True)
        keep = {RECORD, *base.files()} if base else set()
        for path in (folder / RECORD, *folder.glob("*.parquet"), *folder.glob(".*.tmp")):
            if path.name not in keep:
                path.unlink(missing_ok=True)
        self._taken = Counter(name.rpartition("-")[0] for name in self._base.files())
        self._open = contextlib.ExitStack()
        self._files: dict[str, _Files] = {}

    def add(self, listed: Listed, split: str = "") -> None:
        """Append a study to the shards of `split`."""
        if split not in self._files:
            first = self._taken[split or "part"]
            self._files[split] = self._open.enter_context(_Files(self._base, split, first))
        self._files[split].write(to_row(listed))

    @property
    def studies(self) -> int:
        """The number of studies added."""
        return sum(files.rows for files in self._files.values())

    def finish(self, *, superseded: Mapping[str, Sequence[int]] | None = None, **notes: Any) -> ShardList:
        """Close the files, then write the record.

        Args:
            superseded: file → rows of the base whose studies have been added again.
            notes: go into the record.
        """
        self._open.close()
        base, order = self._base, [split for split in ("", *SPLITS) if split in self._files]
        segments = (*base.segments, *((split, self._files[split].rows) for split in order))
        gone = dict(base.superseded)
        for file, rows in (superseded or {}).items():
            gone[file] = tuple(sorted({*gone.get(file, ()), *rows}))
        complete = ShardList(base.folder, base.shard_size, segments, base.notes | notes, gone)
        tree = {"studies": complete.studies, "shard_size": complete.shard_size, **complete.notes}
        if [split for split, _ in segments] != [""]:
            tree["segments"] = [list(segment) for segment in segments]
        if gone:
            tree["superseded"] = gone
        with write_aside(complete.folder / RECORD) as temporary:
            temporary.write_text(json.dumps(tree) + "\n")
        return complete

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)


class _Files(contextlib.AbstractContextManager["_Files"]):
    """The rows of one split, in files of `file_rows`; a file that an error cuts off never gets its name."""

    def __init__(self, shape: ShardList, split: str, first: int):
        self.shape, self.split, self.first, self.rows = shape, split, first, 0
        self._open = contextlib.ExitStack()
        self._writer: RowWriter

    def write(self, row: dict[str, Any]) -> None:
        number, place = divmod(self.rows, self.shape.file_rows)
        if place == 0:
            self._open.close()
            name = file_name(self.split, self.first + number)
            path = self._open.enter_context(write_aside(self.shape.folder / name))
            self._writer = self._open.enter_context(
                RowWriter(path, LIST_SCHEMA, group_rows=self.shape.group_rows, group_bytes=GROUP_BYTES)
            )
        self._writer.write(row)
        self.rows += 1

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)
