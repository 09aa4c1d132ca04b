"""The embedded archive of drawn films (megpt.demo.phantom): films.csv, reports.csv, labels.csv, phantom.json."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from megpt.config import DataConfig
from megpt.data.sources.base import Source, split_name
from megpt.data.sources.tables import csv_rows
from megpt.demo.phantom.archive import FILMS, LABELS, MARKER, REPORTS
from megpt.errors import InputError
from megpt.study import CHEXPERT, Study, View


class PhantomSource(Source):
    """Films by path, reports, labels and splits of a phantom archive."""

    format = "phantom"
    about = "drawn films: phantom.json with films.csv, reports.csv, labels.csv and films/"

    @classmethod
    def detect(cls, path: Path, data: DataConfig) -> bool:
        return (path / MARKER).is_file() and (path / FILMS).is_file()

    def tables(self) -> Iterable[Path]:
        if not (self.root / MARKER).is_file():
            raise InputError(
                f"{self.root} is no phantom archive, or an unfinished one",
                cause=f"{MARKER}, which is written last, is not there",
                next="write it with `megpt demo`, or set data.format=auto",
            )
        return [self.root / name for name in (MARKER, FILMS, REPORTS, LABELS)]

    def studies(self) -> Iterator[Study]:
        _, films, reports, labels = self.tables()
        views: dict[str, list[View]] = {}
        for _, row in csv_rows(films, ("study_id", "image_id", "position", "path")):
            view = self.view(row["path"], image_id=row["image_id"], position=row["position"])
            views.setdefault(row["study_id"], []).append(view)
        texts = {row["study_id"]: row for _, row in csv_rows(reports, ("study_id", "findings", "impression"))}
        for line, row in csv_rows(labels, ("subject_id", "study_id", "split", *CHEXPERT)):
            name, text = row["study_id"], texts.get(row["study_id"], {})
            yield Study(
                study_id=name,
                subject_id=row["subject_id"],
                views=tuple(views.get(name, ())),
                report=text.get("findings"),
                findings=text.get("findings"),
                impression=text.get("impression"),
                labels={o: int(float(row[o])) for o in CHEXPERT if row[o]},
                split=split_name(row["split"], where=f"{labels}, line {line}") or "test",
            )
