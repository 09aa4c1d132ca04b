"""VinDr-CXR: train/ and test/ of DICOM (or PNG) films, and the labels of three radiologists a film; no reports.

train/<image_id>.dicom      annotations/image_labels_train.csv: image_id,rad_id,Aortic enlargement,…,No finding
test/<image_id>.dicom       annotations/image_labels_test.csv:  image_id,…   (a consensus)
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from megpt.config import DataConfig
from megpt.data.sources.base import FILM_SUFFIXES
from megpt.data.sources.columns import id_cell, text_cell
from megpt.data.sources.reading import csv_header, csv_rows
from megpt.data.sources.rows import FilmRow, TabularSource
from megpt.errors import InputError

# VinDr's names and their counterparts in CheXpert; each film has a 1 or 0 for every name.
OBSERVATIONS = {
    "Atelectasis": "Atelectasis",
    "Cardiomegaly": "Cardiomegaly",
    "Clavicle fracture": "Fracture",
    "Rib fracture": "Fracture",
    "Consolidation": "Consolidation",
    "Edema": "Edema",
    "Infiltration": "Lung Opacity",
    "Lung Opacity": "Lung Opacity",
    "Lung tumor": "Lung Lesion",
    "Nodule/Mass": "Lung Lesion",
    "Pleural effusion": "Pleural Effusion",
    "Pleural thickening": "Pleural Other",
    "Pneumonia": "Pneumonia",
    "Pneumothorax": "Pneumothorax",
    "No finding": "No Finding",
}
SPLITS = ("train", "test")


class VindrSource(TabularSource):
    """One study per film, in the order of the folders; the folder is the split. A label is the readers' majority."""

    format = "vindr"
    about = "VinDr-CXR: train/ and test/ of .dicom films with annotations/image_labels_train.csv"

    @classmethod
    def detect(cls, path: Path, data: DataConfig) -> bool:
        if not path.is_dir() or not any((path / split).is_dir() for split in SPLITS):
            return False
        return any({"image_id", "No finding"} <= set(csv_header(table)) for table in _tables(path, data))

    def tables(self) -> Iterable[Path]:
        return _tables(self.root, self.data)

    def film_rows(self) -> Iterator[FilmRow]:
        self.rule = "a study per film"
        labels = self._labels()
        films, seen = False, set[str]()
        for split in SPLITS:
            folder = self.root / split
            names = sorted(entry.name for entry in os.scandir(folder)) if folder.is_dir() else []
            for name in names:
                path = Path(name)
                if path.suffix.lower() not in FILM_SUFFIXES:
                    self.ignored[f"files of {split}/ that are no films, {path.suffix or 'without a suffix'}"] += 1
                    continue
                films = True
                # the release's ids are unique; copies of it are not always
                study_id = f"{split}/{path.stem}" if path.stem in seen else path.stem
                seen.add(path.stem)
                yield FilmRow(
                    study_id,
                    f"{split}/{name}",
                    position="PA",  # the data set holds postero-anterior films only
                    split=split,
                    labels=labels.pop((split, path.stem), None),
                    where=str(folder),
                    image_id=path.stem,
                )
        if not films:
            raise InputError(f"no films in {self.root}/train or {self.root}/test", next="check source=PATH")
        if labels:
            self.ignored["films with labels that are in neither train/ nor test/"] += len(labels)

    def _labels(self) -> dict[tuple[str, str], dict[str, int]]:
        """(split, image_id) → its observations: a majority of the readers who saw it. 18,000 films take 20 MB."""
        votes: dict[tuple[str, str], Counter[str]] = {}
        columns: set[str] = set()
        for table in self.tables():
            present = [name for name in csv_header(table, self.form) if name in OBSERVATIONS]
            split = "test" if "test" in table.name else "train"
            columns |= {OBSERVATIONS[name] for name in present}
            for line, row in csv_rows(table, ("image_id", "No finding"), self.form):
                where = f"{table}, line {line}"
                image = id_cell(row["image_id"], where=where)
                if image is None:
                    raise InputError(f"{table} has an empty image_id", where=f"column 'image_id', line {line}")
                found = votes.setdefault((split, image), Counter())
                found["readers"] += 1
                for name in {OBSERVATIONS[name] for name in present if _is_one(row[name], name, where)}:
                    found[name] += 1
        return {
            film: {name: int(2 * found[name] > found["readers"]) for name in sorted(columns)}
            for film, found in votes.items()
        }


def _is_one(cell: str | None, column: str, where: str) -> bool:
    text = text_cell(cell)
    if text not in (None, "0", "1", "0.0", "1.0"):
        table, _, line = where.rpartition(", ")
        raise InputError(f"{table}: a label is not 1, 0 or blank", where=f"column {column!r}, {line}")
    return text in ("1", "1.0")


def _tables(path: Path, data: DataConfig) -> list[Path]:
    if data.annotations:
        given = Path(data.annotations)
        return [given] if given.is_file() else sorted(given.glob("image_labels_*.csv"))
    return [
        table
        for split in SPLITS
        for table in (path / "annotations" / f"image_labels_{split}.csv", path / f"image_labels_{split}.csv")
        if table.is_file()
    ]
