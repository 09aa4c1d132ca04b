"""VinDr-CXR: train/ and test/ of DICOM (or PNG) films, and the labels of three radiologists a film; no reports.

train/<image_id>.dicom      annotations/image_labels_train.csv: image_id,rad_id,Aortic enlargement,…,No finding
test/<image_id>.dicom       annotations/image_labels_test.csv:  image_id,…   (a consensus)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from megpt.config import DataConfig
from megpt.data.sources.base import FILM_SUFFIXES
from megpt.data.sources.columns import id_cell, text_cell
from megpt.data.sources.folder import is_film
from megpt.data.sources.reading import csv_header, csv_rows
from megpt.data.sources.rows import FilmRow, TabularSource
from megpt.errors import InputError
from megpt.places import entries, place

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
# Where only the boxes are there (annotations_train.csv, or Kaggle's train.csv), they are counted instead.
BOX_COLUMNS = {"image_id", "class_name", "rad_id"}


class VindrSource(TabularSource):
    """One study per film, in the order of the folders; the folder is the split. A label is the readers' majority."""

    format = "vindr"
    about = "VinDr-CXR: train/ and test/ of .dicom films with annotations/image_labels_train.csv"

    @classmethod
    def detect(cls, path: Path, data: DataConfig) -> bool:
        if not path.is_dir() or not any((path / split).is_dir() for split in SPLITS):
            return False
        return bool(_tables(path, data))

    def tables(self) -> Iterable[Path]:
        return _tables(self.root, self.data)

    def film_rows(self) -> Iterator[FilmRow]:
        self.rule = "a study per film"
        labels = self._labels()
        films, seen = False, set[str]()
        for split in SPLITS:
            folder = self.root / split
            names = sorted(name for name, _, _ in entries(folder)) if folder.is_dir() else []
            for name in names:
                path = Path(name)
                if path.suffix.lower() not in FILM_SUFFIXES and not is_film(folder / name):
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
            if set(csv_header(table, self.form)) >= BOX_COLUMNS:
                columns |= self._count_boxes(table, votes)
                continue
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

    def _count_boxes(self, table: Path, votes: dict[tuple[str, str], Counter[str]]) -> set[str]:
        """Votes of a table with a line per box: a reader who drew a box of a class has seen it."""
        seen: dict[str, set[tuple[str, str | None]]] = {}
        for line, row in csv_rows(table, sorted(BOX_COLUMNS), self.form):
            image = id_cell(row["image_id"], where=f"{table}, line {line}")
            if image is None:
                raise InputError(f"{table} has an empty image_id", where=f"column 'image_id', line {line}")
            name = OBSERVATIONS.get(row["class_name"].strip())
            seen.setdefault(image, set()).update({(row["rad_id"], None), (row["rad_id"], name)})
        split = "test" if "test" in table.name else "train"
        for image, pairs in seen.items():
            found = Counter(name or "readers" for _, name in pairs)
            votes[split, image] = found
        return {name for pairs in seen.values() for _, name in pairs if name}


def _is_one(cell: str | None, column: str, where: str) -> bool:
    text = text_cell(cell)
    if text not in (None, "0", "1", "0.0", "1.0"):
        table, _, line = where.rpartition(", ")
        raise InputError(f"{table}: a label is not 1, 0 or blank", where=f"column {column!r}, {line}")
    return text in ("1", "1.0")


def _tables(path: Path, data: DataConfig) -> list[Path]:
    if data.annotations:
        given = place(data.annotations)
        return [given] if given.is_file() else sorted(given.glob("image_labels_*.csv"))
    tables = []
    for split in SPLITS:
        names = (f"image_labels_{split}.csv", f"annotations_{split}.csv", f"{split}.csv")
        candidates = [folder / name for name in names for folder in (path / "annotations", path)]
        tables += [table for table in candidates if table.is_file() and _is_vindr(table)][:1]
    return tables


def _is_vindr(table: Path) -> bool:
    names = set(csv_header(table))
    return names >= {"image_id", "No finding"} or names >= BOX_COLUMNS
