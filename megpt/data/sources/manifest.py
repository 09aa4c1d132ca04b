"""Any archive with a table of your own: CSV or Parquet, one row per study or per film.

    study_id, image_path, subject_id, position, report, findings, impression, split, Atelectasis, …

`study_id` and `image_path` are required. Paths are relative to the table's folder; `|` separates several in
one cell. Rows of one study follow one another. Columns named like CheXpert observations hold 1, 0, -1 or nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from megpt.config import DataConfig
from megpt.data.sources.base import Source, split_name
from megpt.data.sources.reading import csv_header, csv_rows
from megpt.data.sources.table import has_columns
from megpt.data.studies import open_parquet, read_rows
from megpt.errors import InputError, did_you_mean
from megpt.study import CHEXPERT, Study

REQUIRED = ("study_id", "image_path")
NAMES = ("manifest.csv", "manifest.csv.gz", "manifest.parquet", "studies.csv")


class ManifestSource(Source):
    """One study per run of rows with the same study_id."""

    format = "manifest"
    about = "manifest.csv or .parquet with columns study_id, image_path [, subject_id, position, report, split, …]"

    def __init__(self, root: Path, data: DataConfig):
        super().__init__(root, data)
        table = _table(root, data)
        if table is None or not table.is_file():
            raise InputError(f"no manifest at {root}", next="give the table itself, or set data.annotations=PATH")
        self._table = table

    @classmethod
    def detect(cls, path: Path, data: DataConfig) -> bool:
        table = _table(path, data)
        if table is None or not table.is_file():
            return False
        if table.suffix == ".parquet":
            return has_columns(table, *REQUIRED)
        # a CSV given by name is meant to be a manifest: an error about its columns helps more than "no known format"
        return (path.is_file() and _is_csv(table)) or set(REQUIRED) <= set(csv_header(table))

    def tables(self) -> Iterable[Path]:
        return [self._table]

    def studies(self) -> Iterator[Study]:
        for study_id, group in groupby(self._rows(), key=lambda numbered: numbered[1]["study_id"]):
            rows = list(group)
            line, first = rows[0]
            where = f"{self._table}, study {study_id}"
            if not study_id:
                raise InputError(f"{self._table} has an empty study_id", where=f"column 'study_id', line {line}")
            views = tuple(
                self.view(path, position=_text(row.get("position")) or "")
                for _, row in rows
                for path in _paths(row["image_path"])
            )
            yield Study(
                str(study_id),
                _text(first.get("subject_id")) or str(study_id),
                views,
                _text(first.get("report")),
                _text(first.get("findings")),
                _text(first.get("impression")),
                self._observations(first, line),
                split=split_name(_text(first.get("split")), where=where),
            )

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        if self._table.suffix != ".parquet":
            yield from csv_rows(self._table, REQUIRED)
            return
        with open_parquet(self._table) as file:
            names = file.schema_arrow.names
        for column in REQUIRED:
            if column not in names:
                raise InputError(f"{self._table} has no column {column!r}", next=did_you_mean(column, names))
        yield from enumerate(read_rows(self._table))

    def _observations(self, row: dict[str, Any], line: int) -> dict[str, int] | None:
        observed = [name for name in CHEXPERT if name in row]
        if not observed:
            return None
        labels = {}
        for name in observed:
            if (text := _text(row[name])) is not None:
                try:
                    value = float(text)
                except ValueError:
                    value = float("nan")
                if value not in (-1.0, 0.0, 1.0):
                    raise InputError(
                        f"{self._table}: a label is not 1, 0, -1 or blank", where=f"column {name!r}, line {line}"
                    )
                labels[name] = int(value)
        return labels


def _table(path: Path, data: DataConfig) -> Path | None:
    if data.annotations:
        return Path(data.annotations)
    if path.is_file():
        return path
    return next((path / name for name in NAMES if (path / name).is_file()), None)


def _is_csv(path: Path) -> bool:
    return path.name.removesuffix(".gz").endswith(".csv")


def _paths(cell: Any) -> list[str]:
    if isinstance(cell, list):
        return [str(path) for path in cell if path]
    return [path.strip() for path in (cell or "").split("|") if path.strip()]


def _text(value: Any) -> str | None:
    return (str(value).strip() or None) if value is not None else None
