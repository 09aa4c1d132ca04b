"""NIH ChestX-ray14: a table of labels and folders of films, one study per film, no reports.

Data_Entry_2017_v2020.csv (Image Index, Finding Labels, …)     images/*.png  or  images_001/images/*.png …
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from megpt.config import DataConfig
from megpt.data.sources.base import Source
from megpt.data.sources.reading import csv_header, csv_rows
from megpt.errors import InputError
from megpt.places import exists, place
from megpt.study import Study

# NIH's names and their counterparts in CheXpert. The table names all findings of a film, so an absent one is negative.
OBSERVATIONS = {
    "Atelectasis": "Atelectasis",
    "Cardiomegaly": "Cardiomegaly",
    "Consolidation": "Consolidation",
    "Edema": "Edema",
    "Effusion": "Pleural Effusion",
    "Infiltration": "Lung Opacity",
    "Mass": "Lung Lesion",
    "Nodule": "Lung Lesion",
    "No Finding": "No Finding",
    "Pleural_Thickening": "Pleural Other",
    "Pneumonia": "Pneumonia",
    "Pneumothorax": "Pneumothorax",
}
TABLES = ("Data_Entry_2017*.csv", "labels.csv")
# Column → its names in the official table and in extracts of it.
COLUMNS = {
    "file": ("Image Index", "file", "filename", "image"),
    "labels": ("Finding Labels", "nih_finding_labels", "labels"),
    "patient": ("Patient ID", "patient_id"),
    "view": ("View Position", "view"),
}


class NihSource(Source):
    """One study per film, its subject the patient; no splits."""

    format = "nih"
    about = "NIH ChestX-ray14: Data_Entry_2017*.csv (or labels.csv with those columns) with images/ or images_001/…"

    @classmethod
    def detect(cls, path: Path, data: DataConfig) -> bool:
        table = _table(path, data)
        if table is None:
            return False
        columns = _columns(table)
        return columns.get("file") is not None and columns["labels"] in COLUMNS["labels"][:2]

    def tables(self) -> Iterable[Path]:
        return [self._labels]

    @property
    def _labels(self) -> Path:
        table = _table(self.root, self.data)
        if table is None:
            raise InputError(f"no Data_Entry_2017*.csv in {self.root}", next="set data.annotations=PATH")
        return table

    def studies(self) -> Iterator[Study]:
        table = self._labels
        columns = _columns(table)
        file, labels = columns["file"] or COLUMNS["file"][0], columns["labels"] or COLUMNS["labels"][0]
        folders = self._folders()
        for line, row in csv_rows(table, (file, labels)):
            name = row[file].strip()
            if not name:
                raise InputError(f"{table} has an empty file name", where=f"column {file!r}, line {line}")
            found = {OBSERVATIONS[label] for label in row[labels].split("|") if label in OBSERVATIONS}
            view = self.view(
                self._path_of(name, folders), image_id=name, position=(row.get(columns["view"] or "") or "").strip()
            )
            subject = (row.get(columns["patient"] or "") or name.partition("_")[0]).strip()
            yield Study(
                Path(name).stem,
                subject,
                (view,),
                labels={observation: int(observation in found) for observation in sorted(set(OBSERVATIONS.values()))},
                split="",
            )

    def _folders(self) -> list[str]:
        parts = sorted(f"{p.name}/images" for p in self.root.glob("images_[0-9][0-9][0-9]") if (p / "images").is_dir())
        return parts or ["images" if (self.root / "images").is_dir() else "."]

    def _path_of(self, name: str, folders: list[str]) -> str:
        """The film's path; the official release has its films in twelve folders, in the order of their names."""
        if "/" in name or "\\" in name:
            return name
        for number, folder in enumerate(folders):
            if exists(self.root / folder / name):
                # the next film is most likely in the same folder
                folders.insert(0, folders.pop(number))
                return f"{folder}/{name}"
        return f"{folders[0]}/{name}"


def _table(path: Path, data: DataConfig) -> Path | None:
    if data.annotations:
        return place(data.annotations)
    if path.is_file():
        return None
    return next((file for pattern in TABLES for file in sorted(path.glob(pattern))), None)


def _columns(table: Path) -> dict[str, str | None]:
    names = csv_header(table)
    return {key: next((name for name in known if name in names), None) for key, known in COLUMNS.items()}
