"""CheXpert: train.csv and valid.csv (and test.csv) with 14 labels a study, no reports.

CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg      Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,…
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from megpt.config import DataConfig
from megpt.data.positions import side_of_name
from megpt.data.sources.columns import label_columns, observations, split_of_path, text_cell
from megpt.data.sources.reading import csv_header, csv_rows
from megpt.data.sources.rows import FilmRow, TabularSource
from megpt.errors import InputError
from megpt.places import exists, place

TABLES = ("train.csv", "train_visualCheXbert.csv", "valid.csv", "val.csv", "test.csv")


class ChexpertSource(TabularSource):
    """One study per patient and study folder; the split is the folder's (train, valid, test)."""

    format = "chexpert"
    about = "CheXpert: train.csv and valid.csv beside train/patient00001/study1/view1_frontal.jpg"

    @classmethod
    def detect(cls, path: Path, data: DataConfig) -> bool:
        return bool(_tables(path, data))

    def tables(self) -> Iterable[Path]:
        found = _tables(self.root, self.data)
        if not found:
            raise InputError(
                f"no table of CheXpert in {self.root}",
                cause="none of train.csv, valid.csv and test.csv there has Path, and Frontal/Lateral or labels",
                next="give the folder that holds train.csv, or set data.annotations=PATH",
            )
        return found

    def film_rows(self) -> Iterator[FilmRow]:
        self.rule = "a study per study folder"
        for table in self.tables():
            labels = label_columns(csv_header(table, self.form))
            for line, row in csv_rows(table, ("Path",), self.form):
                where = f"{table}, line {line}"
                path = row["Path"].strip().replace("\\", "/")
                study_id, patient = study_of(path)
                if not study_id:
                    raise InputError(
                        f"{table} has a path without a patient's folder", where=f"column 'Path', line {line}"
                    )
                yield FilmRow(
                    study_id,
                    film_path(self.folder, path),
                    patient,
                    (text_cell(row.get("Frontal/Lateral")) or side_of_name(path.rpartition("/")[2])).upper(),
                    split_of_path(path) or split_of_path(table.name),
                    labels=observations(row, labels, where=where),
                    where=where,
                    image_id="/".join(path.split("/")[-3:]),
                )


def study_of(path: str) -> tuple[str, str]:
    """(`patient00001/study1`, `patient00001`) of a film's path; ("", "") if it has no such folders."""
    parts = path.split("/")
    place = next((i for i, part in enumerate(parts) if part.startswith("patient")), len(parts))
    return ("/".join(parts[place : place + 2]), parts[place]) if place + 2 < len(parts) else ("", "")


def film_path(folder: Path, path: str) -> str:
    """A table's path, below the folder that the archive was unpacked to.

    CheXpert's paths begin with the name of the release (CheXpert-v1.0-small/train/…), whatever the folder is called.
    """
    parts = path.split("/")
    starts = [0, *(i for i, part in enumerate(parts) if part in ("train", "valid", "val", "test"))]
    for start in reversed(starts):
        if exists(folder / "/".join(parts[start:])):
            return "/".join(parts[start:])
    return "/".join(parts[starts[-1] :])


def _tables(path: Path, data: DataConfig) -> list[Path]:
    if data.annotations:
        candidates = [place(data.annotations)]
    elif path.is_dir():
        candidates = [path / name for name in TABLES]
        if (path / TABLES[0]).is_file():
            candidates.remove(path / TABLES[1])  # the same films with another labeller's labels
    else:
        candidates = [path]
    return [table for table in candidates if table.is_file() and _is_chexpert(table)]


def _is_chexpert(table: Path) -> bool:
    """The test set's table has labels but no Frontal/Lateral."""
    names = csv_header(table)
    return "Path" in names and ("Frontal/Lateral" in names or len(label_columns(names)) > 3)
