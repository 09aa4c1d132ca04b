"""megpt's own tables as an archive: a studies/ folder, or one Parquet file of that schema such as failed.parquet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from megpt.config import DataConfig
from megpt.data.sources.base import Source
from megpt.data.studies import open_parquet, read_rows, read_studies, study_files
from megpt.errors import InputError
from megpt.study import Study


class TableSource(Source):
    """Films lie in the table or at a `uri`; the table is megpt's own output, so an absolute uri is taken as it is."""

    format = "table"
    about = "a studies/ table (split=train|val|test/part-*.parquet), or one Parquet file of it such as failed.parquet"

    @classmethod
    def detect(cls, path: Path, data: DataConfig) -> bool:
        if path.is_dir():
            return any(path.glob("split=*/*.parquet"))
        return path.suffix == ".parquet" and has_columns(path, "study_id", "views")

    def tables(self) -> Iterable[Path]:
        return [path for _, path in study_files(self.root)] if self.root.is_dir() else [self.root]

    def studies(self) -> Iterator[Study]:
        if self.root.is_dir():
            yield from (self._absolute(study) for study in read_studies(self.root))
            return
        with open_parquet(self.root) as file:
            for name in ("study_id", "views"):
                if name not in file.schema_arrow.names:
                    raise InputError(f"{self.root} has no column {name!r}", cause="it is not a table of studies")
        for number, row in enumerate(read_rows(self.root)):
            if not row["study_id"]:
                raise InputError(f"{self.root} has an empty study_id", where=f"column study_id, row {number}")
            row["views"] = row["views"] or ()
            yield self._absolute(Study.from_row(row, split=""))

    def _absolute(self, study: Study) -> Study:
        """With relative uris taken from the table's own folder."""
        if all(view.uri is None or Path(view.uri).is_absolute() for view in study.views):
            return study
        views = (
            view
            if view.uri is None or Path(view.uri).is_absolute()
            else replace(view, uri=self._inside.resolve(view.uri))
            for view in study.views
        )
        return replace(study, views=tuple(views))


def has_columns(path: Path, *names: str) -> bool:
    """Whether a Parquet file has all these columns."""
    try:
        return set(names) <= set(pq.read_schema(path).names)
    except (pa.ArrowInvalid, OSError):
        return False
