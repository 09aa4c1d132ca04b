"""Any archive with a table of your own: CSV, TSV, JSONL, a JSON list or Parquet, one row per study or per film.

    study_id, image_path, subject_id, position, report, findings, impression, split, Atelectasis, …

Only films are required: a column of paths, or of the films themselves (Parquet). Other names of these columns are
known (`ALIASES`), and `data.columns.*` names any other. Paths are relative to the table's folder; `|` separates several
in one cell. Rows of one study may be anywhere. TableColumns named like CheXpert observations hold 1, 0, -1 or nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from megpt.config import DataConfig
from megpt.data.ids import FirstSeen
from megpt.data.members import cell_uri
from megpt.data.positions import side_of_name
from megpt.data.sources.columns import (
    TableColumns,
    find_columns,
    id_cell,
    label_columns,
    listed,
    observations,
    plain,
    split_name,
    split_of_path,
    text_cell,
)
from megpt.data.sources.reading import TextForm, fold
from megpt.data.sources.rows import FilmRow, TabularSource
from megpt.data.sources.tablefile import TableFile, kind_of_table
from megpt.errors import InputError
from megpt.places import place

NAMES = ("manifest", "studies", "metadata")
ENDS = (".csv", ".csv.gz", ".tsv", ".jsonl", ".parquet", ".json")
SECTIONS = ("indication", "comparison", "technique")
TEXTS = ("report", "findings", "impression", *SECTIONS)


@dataclass(frozen=True)
class Film:
    """A film of a row: its path or uri, the name to know it by, and the column it is from."""

    uri: str
    name: str
    column: str
    member: bool


class ManifestSource(TabularSource):
    """One study per study_id; without that column, one per row."""

    format = "manifest"
    about = "a table (.csv, .tsv, .jsonl, .json, .parquet) with a column of films [, study_id, report, split, …]"

    def __init__(self, root: Path, data: DataConfig):
        super().__init__(root, data)
        missing = next((path for path in self._paths if not path.is_file()), None)
        if not self._paths or missing:
            raise InputError(
                f"no manifest at {missing or root}", next="give the table itself, or set data.annotations=PATH"
            )

    @classmethod
    def detect(cls, path: Path, data: DataConfig) -> bool:
        if data.annotations or path.is_file():
            table = place(data.annotations) if data.annotations else path
            if not table.is_file() or kind_of_table(table) is None:
                return False
            # a CSV given by name is meant to be a manifest: an error about its columns helps more than "unknown format"
            return TableFile(table, _form(data)).kind == "csv" or fits(table, data)
        return bool(cls.find(path, data))

    @classmethod
    def find(cls, path: Path, data: DataConfig) -> list[Path]:
        """The tables of an archive: one with a manifest's name, else the only one that fits, or one per split."""
        if data.annotations:
            return [place(data.annotations)]
        if path.is_file():
            return [path]
        named = [path / f"{name}{end}" for name in NAMES for end in ENDS]
        if found := next((table for table in named if table.is_file() and fits(table, data)), None):
            return [found]
        others = sorted(p for p in path.iterdir() if kind_of_table(p) and p.is_file() and fits(p, data, strict=True))
        by_split = [table for table in others if split_of_path(table.name)]
        return by_split if by_split and len(by_split) == len(others) else others if len(others) == 1 else []

    @cached_property
    def _paths(self) -> list[Path]:
        return self.find(self.root, self.data)

    def tables(self) -> Iterable[Path]:
        return self._paths

    def film_rows(self) -> Iterator[FilmRow]:
        for path in self._paths:
            yield from self._rows_of(TableFile(path, self.form))

    def _rows_of(self, table: TableFile) -> Iterator[FilmRow]:
        with contextlib.closing(FirstSeen()) as seen:
            yield from self._films_of(table, seen)

    def _films_of(self, table: TableFile, seen: FirstSeen) -> Iterator[FilmRow]:
        columns = find_columns(table.names, self.data.columns.model_dump(), where=str(table.path))
        images = film_columns(table, columns)
        if not images:
            raise InputError(
                f"{table.path} has no column of films",
                cause=f"its columns are: {listed(table.names)}",
                next="set data.columns.image=NAME (docs/data.md lists the names that are known)",
            )
        roles = {role: getattr(columns, role) for role in ("study", *TEXTS, "split")}
        told = ", ".join(f"{role}={name}" for role, name in {"film": "+".join(images), **roles}.items() if name)
        self.rule = f"a study per {columns.study or 'row'} of {table.path.name}: {told}"
        labels = label_columns(table.names)
        required = [*images, *([columns.study] if columns.study else [])]
        split_of_table = self._split_of(table.path)
        for number, row in table.rows(required):
            where = table.where(number)
            films = [film for column in images for film in self._films(table, column, number, row)]
            study_id = self._study_id(table, columns, number, row, films, seen)
            split = split_name(columns.text(row, "split"), where=f"{table.path}, study {study_id}")
            positions = (columns.text(row, "position") or "").split("|")
            if len(positions) != len(films):
                positions = [columns.text(row, "position") or "" for _ in films]
            for film, position in zip(films or [Film("", "", "", False)], positions or [""], strict=True):
                yield FilmRow(
                    study_id,
                    film.uri,
                    None if columns.subject is None else id_cell(row.get(columns.subject), where=where),
                    position.strip() or side_of_name(film.column).upper(),
                    split or split_of_table,
                    columns.text(row, "report"),
                    fold(columns.text(row, "findings")),
                    fold(columns.text(row, "impression")),
                    observations(row, labels, where=where),
                    where,
                    film.name,
                    film.member,
                    **{name: fold(columns.text(row, name)) for name in SECTIONS},
                )

    def _films(self, table: TableFile, column: str, number: int, row: dict[str, Any]) -> Iterator[Film]:
        value = row.get(column)
        if column in table.film_columns:
            cells = value if isinstance(value, list) else [value]
            for item, cell in enumerate(cells):
                if cell is not None:
                    uri = cell_uri(table.path, column, number, item if isinstance(value, list) else None)
                    name = text_cell(cell.get("path")) if isinstance(cell, dict) else None
                    yield Film(uri, name or f"{column}-{item}", column, True)
            return
        for path in _paths(value):
            inside = self._relative(table.path, path)
            yield Film(inside, inside, column, False)

    def _relative(self, table: Path, path: str) -> str:
        """A path of the table, from the archive: paths are relative to the table's folder if that is in the archive."""
        folder = self._folder_of(table)
        return path if path.startswith("/") or folder == "." else f"{folder}/{path}"

    @lru_cache  # noqa: B019 (a source lives as long as its job)
    def _folder_of(self, table: Path) -> str:
        return "." if self.data.annotations else table.parent.relative_to(self.folder).as_posix()

    def _split_of(self, table: Path) -> str:
        return split_of_path(table.relative_to(self.folder).as_posix()) if table.is_relative_to(self.folder) else ""

    def _study_id(
        self,
        table: TableFile,
        columns: TableColumns,
        number: int,
        row: dict[str, Any],
        films: list[Film],
        seen: FirstSeen,
    ) -> str:
        """The row's id; without a column of ids it is the first film's path without suffix, or the row's number."""
        if columns.study is not None:
            study_id = id_cell(row[columns.study], where=f"column {columns.study!r}, {table.where(number)}")
            if study_id is None:
                place = table.where(number).rpartition(", ")[2]
                raise InputError(
                    f"{table.path} has an empty {columns.study}", where=f"column {columns.study!r}, {place}"
                )
            return study_id
        if not films or films[0].member:
            return f"{table.path.name.partition('.')[0]}-{number:06d}"
        name = films[0].name
        stem = name.removesuffix(PurePosixPath(name).suffix)
        earlier = seen.setdefault(stem, name)
        if earlier == name and seen.setdefault(f"{stem}\0", table.where(number)) != table.where(number):
            raise InputError(
                f"{table.path} names one film in two rows",
                where=table.where(number).rpartition(", ")[2],
                cause="without a column of study ids, each row is a study of its own",
                next="set data.columns.study=NAME, or remove the row",
            )
        return stem if earlier == name else name


def fits(path: Path, data: DataConfig, *, strict: bool = False) -> bool:
    """Whether a table has a column of films; `strict` asks for one more role, since many tables name files."""
    table = TableFile(path, _form(data))
    try:
        columns = find_columns(table.names, data.columns.model_dump())
    except InputError:
        return False
    if not film_columns(table, columns):
        return False
    roles = (columns.study, columns.report, columns.findings, columns.impression, columns.split)
    return not strict or any(roles) or bool(label_columns(table.names))


def film_columns(table: TableFile, columns: TableColumns) -> list[str]:
    """The columns of films: those that hold films themselves, else the one of paths, or all `…_file_name`s."""
    if columns.image in table.film_columns:
        return [str(columns.image)]
    if table.film_columns:
        return table.film_columns
    if columns.image:
        return [columns.image]
    return [name for name in table.names if plain(name).endswith(("_file_name", "_file_names", "_image_path"))]


def _form(data: DataConfig) -> TextForm:
    return TextForm(data.encoding, data.delimiter)


def _paths(cell: Any) -> list[str]:
    if isinstance(cell, dict):  # Hugging Face's {bytes: null, path}
        cell = cell.get("path")
    if isinstance(cell, list):
        return [path for one in cell for path in _paths(one)]
    return [path.strip() for path in (text_cell(cell) or "").split("|") if path.strip()]
