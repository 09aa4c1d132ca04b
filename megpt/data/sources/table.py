"""megpt's own tables as an archive: a studies/ folder, or one Parquet file of that schema."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from megpt.config import DataConfig
from megpt.data.members import with_members
from megpt.data.parquet import open_parquet, open_rows
from megpt.data.sources.base import Source
from megpt.data.studies import Listed, split_folders, study_files
from megpt.errors import InputError
from megpt.places import is_address
from megpt.study import Study, View


class TableSource(Source):
    """Films are in the table or at a `uri`; megpt wrote the table, so an absolute uri is trusted."""

    format = "table"
    about = "a studies/ table (data/split=train|val|test/part-*.parquet), or one Parquet file of it"

    @classmethod
    def detect(cls, path: Path, data: DataConfig) -> bool:
        if path.is_dir():
            return any(any(folder.glob("*.parquet")) for folder in split_folders(path))
        return path.suffix == ".parquet" and has_columns(path, "study_id", "views")

    def tables(self) -> Iterable[Path]:
        return [path for _, path in self._files()]

    def studies(self) -> Iterator[Study]:
        return with_members(self._study(split, row) for split, _, _, row in self._rows(with_films=True))

    def listed(self) -> Iterator[Listed]:
        """Without the films' bytes, which may be a hundred gigabytes; `megpt.data.studies.with_films` fetches them."""
        for split, path, number, row in self._rows(with_films=False):
            yield Listed(self._study(split, row), str(path), number)

    def _files(self) -> list[tuple[str, Path]]:
        return study_files(self.root) if self.root.is_dir() else [("", self.root)]

    def _rows(self, *, with_films: bool) -> Iterator[tuple[str, Path, int, dict[str, Any]]]:
        """(split, file, row number, row) of each study."""
        for split, path in self._files():
            with open_rows(path) as table:
                for name in ("study_id", "views"):
                    if name not in table.names:
                        raise InputError(f"{path} has no column {name!r}", cause="it is not a table of studies")
                for number, row in table.rows(None if with_films else table.parts()):
                    if not row["study_id"]:
                        raise InputError(f"{path} has an empty study_id", where=f"column study_id, row {number}")
                    yield split, path, number, row

    def _study(self, split: str, row: dict[str, Any]) -> Study:
        """The study of a row; its relative uris are resolved from the table's own folder."""
        study = Study.from_row({**row, "views": row["views"] or ()}, split=split)
        return replace(study, views=tuple(map(self._resolved, study.views)))

    def _resolved(self, view: View) -> View:
        if view.uri is None or view.uri.startswith(("/", "file://")) or is_address(view.uri):
            return view
        return replace(view, uri=self._inside.resolve(view.uri))


def has_columns(path: Path, *names: str) -> bool:
    """Whether a Parquet file has all these columns."""
    try:
        with open_parquet(path) as file:
            return set(names) <= set(file.schema_arrow.names)
    except InputError:
        return False
