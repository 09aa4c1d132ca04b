"""One table of reports, whatever the file: its columns, and its rows as they stream by.

    table = open_table(Path("results.csv"))
    table.kind, table.columns          # 'CSV, semicolons, cp1252', ('study_id', 'report')
    for number, row in table.rows():   # number counts from 1
        row["report"]

What a file is, its bytes say; its name does not count. Three columns are ours: `KEY`, the key of an entry of a JSON
object; `TEXT`, the texts of a file without names; `SPLIT`, the list of R2Gen's annotation.json that holds an entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from megpt.data.encoding import find_encoding, head
from megpt.data.parquet import open_rows
from megpt.errors import InputError
from megpt.evaluation.reading.delimited import open_delimited
from megpt.evaluation.reading.json_tables import ANNOTATION, KEY, SPLIT, TEXT, open_json
from megpt.places import parquet_file, place

__all__ = ["ANNOTATION", "KEY", "SPLIT", "TEXT", "Table", "open_table"]

Rows = Callable[[], Iterator[tuple[int, dict[str, Any]]]]


@dataclass(frozen=True)
class Table:
    """A file of reports. `rows` may be called again; each call reads the file anew unless it is a small JSON."""

    path: Path
    kind: str
    columns: tuple[str, ...]
    rows: Rows = field(repr=False)


def open_table(
    path: str | Path, *, names: frozenset[str], encoding: str | None = None, delimiter: str | None = None
) -> Table:
    """Find out what a file is, and its columns.

    Args:
        names: column names that are known, in lower case: a first line without any of them is no header.

    Raises:
        InputError: no such file, none of the kinds, damaged, or empty.
    """
    path = place(path)
    if path.is_dir():
        files = sorted(file for file in path.glob("**/*.parquet") if not file.name.startswith((".", "_")))
        # a studies/ table: its plan and what failed lie beside it
        return _parquet(path, [file for file in files if _split_of(file)] or files)
    start = head(path)
    if not start.strip():
        raise InputError(f"{path} is empty", next="check what wrote it")
    if start[:4] == b"PAR1":
        return _parquet(path, [path])
    if start[:4] == b"PK\x03\x04":
        raise InputError(f"{path} is a workbook or a zip archive, not a table", next="save it as CSV")
    found = find_encoding(path, encoding)
    first = start.decode(found, errors="ignore").lstrip("\ufeff \t\r\n")[:1]
    if first and first in "{[":
        kind, columns, rows = open_json(path, found, names)
    else:
        kind, columns, rows = open_delimited(path, found, delimiter, names)
    return Table(path, kind, tuple(columns), rows)


def _parquet(path: Path, files: list[Path]) -> Table:
    if not files:
        raise InputError(f"{path} holds no reports", cause="it has no Parquet file", next="name a file or a folder")
    try:
        columns = dict.fromkeys(name for file in files for name in _names(file))
    except (pa.ArrowException, OSError) as error:
        raise _damaged(files[0], error) from None
    if any(map(_split_of, files)):
        columns[SPLIT] = None
    kind = "Parquet" if len(files) == 1 else f"Parquet, {len(files)} files"
    return Table(path, kind, tuple(columns), lambda: _parquet_rows(files))


def _names(file: Path) -> list[str]:
    with parquet_file(file) as opened:
        return list(opened.schema_arrow.names)


def _parquet_rows(files: list[Path]) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    for file in files:
        split = _split_of(file)
        try:
            with open_rows(file) as opened:
                # films would fill the memory and are not read
                schema = opened.file.schema_arrow
                wanted = [name for name in opened.names if name != "views" and not _is_film(schema.field(name).type)]
                for _, row in opened.rows(wanted):
                    number += 1
                    yield number, row if split is None else {**row, SPLIT: split}
        except pa.ArrowException as error:
            raise _damaged(file, error) from None


def _is_film(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind.value_type if pa.types.is_dictionary(kind) else kind)


def _split_of(file: Path) -> str | None:
    """The split that the name of a file's folder gives: `split=train`."""
    return file.parent.name.removeprefix("split=") if file.parent.name.startswith("split=") else None


def _damaged(file: Path, error: Exception) -> InputError:
    return InputError(f"{file} cannot be read as Parquet", cause=f"{type(error).__name__}: damaged or cut off")
