"""One table of studies or films, whatever its kind: CSV, TSV, JSONL, a JSON list, or Parquet; gzipped where text.

    table = TableFile(Path("train.jsonl"), form)
    table.names                     # ["file_name", "text"]
    for number, row in table.rows(required=("file_name",)): ...

Cells are text in CSV, and whatever the file holds elsewhere. The bytes of films inside Parquet are not read here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from megpt.data.parquet import open_parquet, open_rows
from megpt.data.sources.columns import no_column
from megpt.data.sources.json_stream import json_is_list, json_items
from megpt.data.sources.reading import TextForm, csv_header, csv_rows, open_text
from megpt.errors import InputError

KINDS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
}
MAX_LINE = 1 << 24
# Keys of a JSONL file are those of its first entries; an entry may leave some out.
HEAD_ENTRIES = 20


def kind_of_table(path: Path) -> str | None:
    """csv, jsonl, json or parquet by the file's name; None for any other."""
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    kind = KINDS.get(suffix)
    return None if kind == "parquet" and name.endswith(".gz") else kind


class TableFile:
    """A table; a file of an unknown name is taken for CSV."""

    def __init__(self, path: Path, form: TextForm):
        self.path, self.form, self.kind = path, form, kind_of_table(path) or "csv"

    @cached_property
    def names(self) -> list[str]:
        """The columns; [] for a file that is not a table."""
        try:
            if self.kind == "csv":
                return csv_header(self.path, self.form)
            if self.kind == "parquet":
                return list(self._schema.names)
            if self.kind == "json" and not json_is_list(self.path):
                return []
            entries = islice(self._entries(), HEAD_ENTRIES)
            return list(dict.fromkeys(name for _, entry in entries for name in entry))
        except InputError:
            return []

    @cached_property
    def film_columns(self) -> list[str]:
        """The columns that hold films themselves: bytes, {bytes, path}, or lists of them."""
        return [] if self.kind != "parquet" else [name for name in self.names if self._holds_films(name)]

    def rows(self, required: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, Any]]]:
        """(line, or number from 0 in Parquet; row).

        Raises:
            InputError: the file is damaged, of another kind, or lacks a column.
        """
        if self.kind == "csv":
            yield from csv_rows(self.path, required, self.form)
            return
        if self.kind == "parquet":
            self._demand(required)
            yield from self._parquet_rows()
            return
        if self.kind == "json" and not json_is_list(self.path):
            raise InputError(f"{self.path} is not a list of entries", next="write one object a line as .jsonl")
        self._demand(required)
        yield from self._entries()

    def where(self, number: int) -> str:
        """The place of a row, for errors."""
        return (
            f"{self.path}, {'row' if self.kind == 'parquet' else 'entry' if self.kind == 'json' else 'line'} {number}"
        )

    def _demand(self, required: Sequence[str]) -> None:
        for column in required:
            if column not in self.names:
                raise no_column(self.path, column, self.names)

    # --- JSON

    def _entries(self) -> Iterator[tuple[int, dict[str, Any]]]:
        entries = enumerate(json_items(self.path, "item")) if self.kind == "json" else self._lines()
        for number, entry in entries:
            if not isinstance(entry, dict):
                raise InputError(
                    f"{self.path} has an entry that is no object", where=self.where(number).split(", ")[-1]
                )
            yield number, entry

    def _lines(self) -> Iterator[tuple[int, Any]]:
        number = 0
        try:
            with open_text(self.path, self.form) as file:
                while line := file.readline(MAX_LINE):
                    number += 1
                    if line.strip():
                        yield number, json.loads(line)
        except FileNotFoundError:
            raise InputError(f"no table at {self.path}") from None
        except UnicodeError:
            raise InputError(
                f"{self.path} has bytes that its encoding does not have",
                where=f"after line {number}",
                next="save it as UTF-8, or set data.encoding=NAME",
            ) from None
        except (ValueError, RecursionError):
            raise InputError(f"{self.path} has a line that is not JSON", where=f"line {number}") from None
        except (OSError, EOFError) as error:
            raise InputError(f"{self.path} cannot be read", cause=type(error).__name__) from None

    # --- Parquet

    @cached_property
    def _schema(self) -> pa.Schema:
        with open_parquet(self.path) as file:
            return file.schema_arrow

    def _holds_films(self, name: str) -> bool:
        kind = self._schema.field(name).type
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            kind = kind.value_type
        if pa.types.is_struct(kind):
            index = kind.get_field_index("bytes")
            return index >= 0 and not self._is_empty(name, "bytes") and _is_binary(kind.field(index).type)
        return _is_binary(kind)

    def _is_empty(self, name: str, child: str) -> bool:
        """Whether a struct's child is null throughout, as where Hugging Face keeps only the paths of films."""
        with open_parquet(self.path) as file:
            for leaf in _leaves(file):
                if leaf.partition(".")[0] == name and leaf.endswith(f".{child}"):
                    number = _leaves(file).index(leaf)
                    chunks = [file.metadata.row_group(g).column(number) for g in range(file.num_row_groups)]
                    return bool(chunks) and all(
                        c.statistics is not None and c.statistics.null_count == c.num_values for c in chunks
                    )
        return False

    def _parquet_rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        with open_rows(self.path) as table:
            # a film column without paths is read whole, to see which rows have a film
            bare = {name for name in self.film_columns if not any(f"{name}.path" in leaf for leaf in table.leaves)}
            kept = [leaf for leaf in table.leaves if self._is_listed(leaf, bare)]
            yield from table.rows(kept)

    def _is_listed(self, leaf: str, bare: set[str]) -> bool:
        name = leaf.partition(".")[0]
        return name not in self.film_columns or name in bare or leaf.endswith(".path")


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _leaves(file: pq.ParquetFile) -> list[str]:
    return [file.metadata.schema.column(n).path for n in range(file.metadata.num_columns)]
