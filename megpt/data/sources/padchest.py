"""PadChest: PADCHEST_chest_x_ray_images_labels_160K*.csv(.gz), films in numbered folders, Spanish reports.

ImageID,ImageDir,StudyID,PatientID,Projection,Report,Labels,…      0/2168400…_00.png, images/0/…, or all in one folder
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from megpt.config import DataConfig
from megpt.data.sources.base import table_in
from megpt.data.sources.columns import id_cell, split_name, text_cell
from megpt.data.sources.reading import csv_header, csv_rows
from megpt.data.sources.rows import FilmRow, TabularSource
from megpt.errors import InputError
from megpt.places import exists

PATTERNS = ("PADCHEST*.csv", "PADCHEST*.csv.gz", "padchest*.csv", "*chest_x_ray_images_labels*.csv*")
NEEDED = ("ImageID", "StudyID", "PatientID")
# PadChest's labels and their counterparts in CheXpert; the table names all findings, so an absent one is negative.
OBSERVATIONS = {
    "atelectasis": "Atelectasis",
    "cardiomegaly": "Cardiomegaly",
    "consolidation": "Consolidation",
    "pulmonary edema": "Edema",
    "mediastinal enlargement": "Enlarged Cardiomediastinum",
    "superior mediastinal enlargement": "Enlarged Cardiomediastinum",
    "fracture": "Fracture",
    "rib fracture": "Fracture",
    "callus rib fracture": "Fracture",
    "clavicle fracture": "Fracture",
    "vertebral fracture": "Fracture",
    "nodule": "Lung Lesion",
    "multiple nodules": "Lung Lesion",
    "mass": "Lung Lesion",
    "pulmonary mass": "Lung Lesion",
    "infiltrates": "Lung Opacity",
    "alveolar pattern": "Lung Opacity",
    "interstitial pattern": "Lung Opacity",
    "normal": "No Finding",
    "pleural effusion": "Pleural Effusion",
    "pleural thickening": "Pleural Other",
    "pneumonia": "Pneumonia",
    "atypical pneumonia": "Pneumonia",
    "pneumothorax": "Pneumothorax",
    "pacemaker": "Support Devices",
    "dual chamber device": "Support Devices",
    "single chamber device": "Support Devices",
    "endotracheal tube": "Support Devices",
    "tracheostomy tube": "Support Devices",
    "chest drain tube": "Support Devices",
    "nsg tube": "Support Devices",
    "central venous catheter": "Support Devices",
}
SIDES = {"L": "LATERAL", "AP_HORIZONTAL": "AP"}


class PadchestSource(TabularSource):
    """One study per StudyID, its films in the table's order; this release has no splits."""

    format = "padchest"
    about = "PadChest: PADCHEST_chest_x_ray_images_labels_160K*.csv[.gz] beside its numbered image folders"

    @classmethod
    def detect(cls, path: Path, data: DataConfig) -> bool:
        table = table_in(path, data, *PATTERNS)
        return table is not None and {*NEEDED, "Labels"} <= set(csv_header(table))

    def tables(self) -> Iterable[Path]:
        table = table_in(self.root, self.data, *PATTERNS)
        if table is None:
            raise InputError(
                f"no {PATTERNS[0]} in {self.root}", next="give the table itself, or set data.annotations=PATH"
            )
        return [table]

    def film_rows(self) -> Iterator[FilmRow]:
        self.rule = "a study per StudyID"
        for table in self.tables():
            for line, row in csv_rows(table, NEEDED, self.form):
                where = f"{table}, line {line}"
                image, study_id = text_cell(row["ImageID"]), id_cell(row["StudyID"], where=where)
                if not image or not study_id:
                    column = "StudyID" if image else "ImageID"
                    raise InputError(f"{table} has an empty {column}", where=f"column {column!r}, line {line}")
                position = text_cell(row.get("Projection")) or text_cell(row.get("ViewPosition_DICOM")) or ""
                yield FilmRow(
                    study_id,
                    self._path_of(image, id_cell(row.get("ImageDir"), where=where) or ""),
                    id_cell(row["PatientID"], where=where),
                    SIDES.get(position.upper(), position.upper()),
                    split_name(row.get("split"), where=where),
                    report=text_cell(row.get("Report")),
                    labels=_labels(row.get("Labels"), where),
                    where=where,
                    image_id=image,
                )

    @cached_property
    def _bases(self) -> list[str]:
        return [
            name
            for name in ("", "images", "images-224", "image_zips", "BIMCV-PadChest-FULL")
            if (self.folder / name).is_dir()
        ]

    def _path_of(self, image: str, folder: str) -> str:
        candidates = [f"{one}/{part}/{image}" for one in self._bases for part in dict.fromkeys((folder, ""))]
        tidy = [candidate.replace("//", "/").lstrip("/") for candidate in candidates]
        return next((path for path in tidy if exists(self.folder / path)), tidy[0])


def _labels(cell: str | None, where: str) -> dict[str, int] | None:
    """The observations of a cell such as `['pleural effusion', 'pacemaker']`; None where the film has no labels."""
    text = text_cell(cell)
    if text is None:
        return None
    try:
        named = ast.literal_eval(text)
        found = {str(label).strip().lower() for label in named} if isinstance(named, (list, tuple, set)) else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = None
    if found is None:
        table, _, line = where.rpartition(", ")
        raise InputError(f"{table}: the labels are not a list", where=f"column 'Labels', {line}")
    found -= {"", "exclude", "unchanged", "suboptimal study"}
    if not found:
        return None
    present = {OBSERVATIONS[label] for label in found if label in OBSERVATIONS}
    return {name: int(name in present) for name in sorted(set(OBSERVATIONS.values()))}
