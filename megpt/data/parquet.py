"""Rows of Parquet files, streamed in bounded memory, whoever wrote them.

    with open_rows(path) as table:
        for number, row in table.rows(["study_id", "report"]): ...

A text that is repeated is in the file once: a hundred kilobytes may hold gigabytes of rows. So texts and films are read
as dictionaries, which take as much memory as they take in the file, and become rows a batch at a time, or one at a time
where a batch is large. What no table of studies holds is refused by name: a text over `MAX_TEXT`, a row over `MAX_ROW`,
a column that is packed more than a thousandfold.

All Parquet files of `megpt.data` and `megpt.generation` are read here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from megpt.data.unfolding import longest_text, plain, size_of, weight_of
from megpt.errors import InputError
from megpt.places import parquet_file, screen

MAX_TEXT = 1 << 24
"""Bytes of one text; the same as of a field in CSV."""
MAX_ROW = 1 << 30
"""Bytes of one row with its films."""
BATCH_BYTES, BATCH_ROWS = 1 << 24, 2_000
_BUFFER = 1 << 20
_UNPACKED, _TIMES = 1 << 28, 1_000
"""A column of a row group that takes more bytes than this, and so many times more than in the file, is a bomb."""
_MOST_VALUES = 10_000_000
"""Values of a column in a row group, beyond 16 a row."""


@contextlib.contextmanager
def open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """A Parquet file; pyarrow's errors about a damaged one become InputError."""
    with _readable(path), parquet_file(path) as file:
        yield file


def check_columns(part: Path, schema: pa.Schema, table: Path) -> None:
    """Raise InputError if `part`, a file of an output that is to grow, has other columns than this version writes."""
    with open_parquet(part) as file:
        known = file.schema_arrow.names
    if known != schema.names:
        raise InputError(
            f"{table} was begun by another version of megpt",
            where=f"{part}: its columns are {', '.join(known)}",
            cause="one table cannot have files of different columns",
            next="finish it with that version, or set output= to a new folder",
        )


@contextlib.contextmanager
def open_rows(path: Path) -> Iterator[RowFile]:
    """A Parquet file to read rows from.

    Raises:
        InputError: no such file, a damaged one, or one that unfolds to what no table of studies holds.
    """
    with _readable(path):
        with parquet_file(path) as file:
            about = file.metadata
        columns = [about.schema.column(n) for n in range(about.num_columns)]
        texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
        with parquet_file(path, metadata=about, read_dictionary=texts, buffer_size=_BUFFER) as file:
            yield RowFile(path, file)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"no file at {path}") from None
    except (pa.ArrowInvalid, OSError) as error:
        if (refused := screen(error)) is not None:
            raise refused from None
        raise InputError(
            f"{path} cannot be read as Parquet",
            cause=type(error).__name__,
            next="delete the folder it is in and run the job that wrote it again",
        ) from None


class RowFile:
    """An open file. A column is named by its name, or a part of it by its path: `views.list.element.uri`."""

    def __init__(self, path: Path, file: pq.ParquetFile):
        self.path, self.file = path, file
        self.names: list[str] = file.schema_arrow.names
        about = file.metadata
        self.leaves = [about.schema.column(n).path for n in range(about.num_columns)]

    def parts(self, *names: str, without: str = ".bytes") -> list[str]:
        """The paths of all parts of these columns (of all columns by default), but for those that end so."""
        wanted = names or tuple(self.names)
        return [leaf for leaf in self.leaves if leaf.partition(".")[0] in wanted and not leaf.endswith(without)]

    @cached_property
    def _packed(self) -> int:
        """Bytes of the rows in the file."""
        groups = (self.file.metadata.row_group(group) for group in range(self.file.num_row_groups))
        return sum(group.column(n).total_compressed_size for group in groups for n in range(group.num_columns))

    def rows(
        self, columns: Sequence[str] | None = None, start: int = 0, stop: int | None = None, *, most: int = BATCH_ROWS
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """(number from 0, row), from `start` until before `stop`.

        Args:
            most: rows of a batch.

        Raises:
            InputError: a row, a text or a column is larger than any table of studies has.
        """
        total = 0
        for first, batch in self.batches(columns, start, stop, most=most):
            total += sum(map(size_of, batch.columns))
            if total > _UNPACKED and total > _TIMES * self._packed:
                raise self._too_much(f"rows that unfold to over {_TIMES:,} times its size", f"row {first}")
            yield from enumerate(self.unfolded(batch, first), first)

    def batches(
        self, columns: Sequence[str] | None = None, start: int = 0, stop: int | None = None, *, most: int = BATCH_ROWS
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(number of the first row, rows) as they are in the file, for `unfolded`."""
        stop = self.file.metadata.num_rows if stop is None else stop
        wanted = None if columns is None else list(columns)
        for group, rows in self.groups():
            if rows.stop <= start or rows.start >= stop:
                continue
            at, size = rows.start, self._fitting(group, wanted, most)
            for batch in self.file.iter_batches(batch_size=size, row_groups=[group], columns=wanted):
                first, last = max(start - at, 0), min(stop - at, batch.num_rows)
                if first < last:
                    yield at + first, batch.slice(first, last - first)
                at += batch.num_rows
                if at >= stop:
                    break

    def groups(self) -> Iterator[tuple[int, range]]:
        """Number and row numbers of each row group."""
        start = 0
        for group in range(self.file.num_row_groups):
            count = self.file.metadata.row_group(group).num_rows
            yield group, range(start, start + count)
            start += count

    def _fitting(self, group: int, columns: list[str] | None, most: int) -> int:
        """How many rows of a row group may be read at once, by its footer; refuses what is packed too well."""
        about, size = self.file.metadata.row_group(group), 0
        for number, leaf in enumerate(self.leaves):
            if columns is not None and not any(leaf == name or leaf.startswith(f"{name}.") for name in columns):
                continue
            chunk = about.column(number)
            unpacked, packed = chunk.total_uncompressed_size, max(chunk.total_compressed_size, 1)
            if unpacked > _UNPACKED and unpacked > _TIMES * packed:
                raise self._too_much(f"a column that unfolds to {unpacked / packed:,.0f} times its size", leaf)
            if chunk.num_values > 16 * about.num_rows + _MOST_VALUES:
                raise self._too_much(f"{chunk.num_values:,} values in {about.num_rows:,} rows", leaf)
            size += unpacked
        return max(1, min(most, BATCH_BYTES * about.num_rows // max(size, 1)))

    def unfolded(self, batch: pa.RecordBatch, first: int = 0) -> Iterator[dict[str, Any]]:
        """The rows of a batch; those of a large one are made one at a time."""
        if sum(map(weight_of, batch.columns)) <= BATCH_BYTES:
            yield from plain(batch).to_pylist()
            return
        for number in range(batch.num_rows):
            row = batch.slice(number, 1)
            for name, column in zip(batch.schema.names, row.columns, strict=True):
                if longest_text(column) > MAX_TEXT:
                    where = f"{name}, row {first + number}"
                    raise self._too_much(f"a text of {longest_text(column) / 2**20:,.0f} MiB", where)
            if (weight := sum(map(weight_of, row.columns))) > MAX_ROW:
                raise self._too_much(f"a row that unfolds to {weight / 2**20:,.0f} MiB", f"row {first + number}")
            yield from plain(row).to_pylist()

    def _too_much(self, what: str, where: str) -> InputError:
        return InputError(
            f"{self.path} has {what}",
            where=where if where.startswith("row") else f"column {where}",
            cause="no table of studies holds so much; it is damaged, or made to fill the memory",
            next="correct the table, or leave this part of it out",
        )


class RowCursor:
    """Single rows of a file, asked for in about their order: one batch of them is held. Close it when done with it."""

    def __init__(self, path: Path, columns: Sequence[str]):
        self._open = contextlib.ExitStack()
        self._table, self._columns = self._open.enter_context(open_rows(path)), list(columns)
        self._coming: Iterator[tuple[int, pa.RecordBatch]] = iter(())
        self._held: tuple[range, pa.RecordBatch | None] = (range(0), None)
        self._until = 0

    def row(self, number: int) -> dict[str, Any]:
        """One row.

        Raises:
            KeyError: the file has fewer rows.
        """
        held = self._held[0]
        if number < held.start or number >= self._until:
            group = next((rows for _, rows in self._table.groups() if number in rows), None)
            if group is None:
                raise KeyError(number)
            self._held, self._until = (range(0), None), group.stop  # freed before the next is read
            self._coming = self._table.batches(self._columns, group.start, group.stop, most=64)
        while number not in self._held[0]:
            first, batch = next(self._coming)
            self._held = range(first, first + batch.num_rows), batch
        rows, batch = self._held
        assert batch is not None
        return next(self._table.unfolded(batch.slice(number - rows.start, 1), number))

    def close(self) -> None:
        self._held, self._coming = (range(0), None), iter(())
        self._open.close()


def read_rows(path: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of one Parquet file, streamed; `columns` that it does not have are left out."""
    with open_rows(path) as table:
        names = None if columns is None else [name for name in columns if name in table.names]
        for _, row in table.rows(names):
            yield row


def read_slice(path: Path, start: int, count: int, columns: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows `start` to `start + count` of one Parquet file; only the row groups that hold them are read.

    Args:
        columns: only these, without films; all of them by default.
    """
    with open_rows(path) as table:
        names = table.parts(*columns) if columns else None
        return [row for _, row in table.rows(names, start, start + count)]
