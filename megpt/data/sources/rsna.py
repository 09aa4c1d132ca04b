"""RSNA Pneumonia Detection Challenge (2018): films of 30,227 patients with boxes and classes, no reports.

stage_2_train_labels.csv: patientId,x,y,width,height,Target     stage_2_detailed_class_info.csv: patientId,class
stage_2_train_images/<patientId>.dcm                            stage_2_test_images/<patientId>.dcm
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from megpt.config import DataConfig
from megpt.data.sources.base import FILM_SUFFIXES
from megpt.data.sources.columns import id_cell, text_cell
from megpt.data.sources.folder import is_film
from megpt.data.sources.reading import csv_header, csv_rows
from megpt.data.sources.rows import FilmRow, TabularSource
from megpt.errors import InputError
from megpt.places import entries

LABELS, CLASSES = re.compile(r"(stage_\d_)?train_labels\.csv"), re.compile(r"(stage_\d_)?detailed_class_info\.csv")
IMAGES = re.compile(r"(stage_\d_)?(train|test)_images")


class RsnaSource(TabularSource):
    """One study per film. Lung Opacity is `Target`, No Finding the class Normal; the folder is the split."""

    format = "rsna"
    about = "RSNA Pneumonia Detection: stage_2_train_labels.csv beside stage_2_train_images/*.dcm"

    @classmethod
    def detect(cls, path: Path, data: DataConfig) -> bool:
        if not path.is_dir():
            return False
        return any({"patientId", "Target"} <= set(csv_header(table)) for table in _matching(path, LABELS))

    def tables(self) -> Iterable[Path]:
        return [*_matching(self.root, LABELS), *_matching(self.root, CLASSES)]

    def film_rows(self) -> Iterator[FilmRow]:
        self.rule = "a study per film"
        labels = self._labels()
        folders = [path for path in _matching(self.root, IMAGES) if path.is_dir()]
        if not folders:
            raise InputError(f"no stage_2_train_images/ in {self.root}", next="give the folder that holds it as source")
        for folder in folders:
            split = "train" if "train" in folder.name else "test"
            for name in sorted(name for name, _, _ in entries(folder)):
                path = Path(name)
                if path.suffix.lower() not in FILM_SUFFIXES and not is_film(folder / name):
                    self.ignored[f"files that are no films, {path.suffix or 'without a suffix'}"] += 1
                    continue
                yield FilmRow(
                    path.stem,
                    f"{folder.name}/{name}",
                    split=split,
                    labels=labels.pop(path.stem, None),
                    where=str(folder),
                    image_id=path.stem,
                )
        if labels:
            self.ignored["films with labels that are in no image folder"] += len(labels)

    def _labels(self) -> dict[str, dict[str, int]]:
        """patientId → its labels; 26,684 patients take 8 MB."""
        found: dict[str, dict[str, int]] = {}
        for table in self.tables():
            column = "Target" if LABELS.fullmatch(table.name) else "class"
            for line, row in csv_rows(table, ("patientId", column), self.form):
                where = f"{table}, line {line}"
                patient, value = id_cell(row["patientId"], where=where), text_cell(row[column])
                if patient is None or value is None:
                    raise InputError(
                        f"{table} has an empty cell", where=f"column 'patientId' or {column!r}, line {line}"
                    )
                labels = found.setdefault(patient, {})
                if column == "class":
                    labels["No Finding"] = int(value.lower() == "normal")
                elif value in ("0", "1", "0.0", "1.0"):
                    labels["Lung Opacity"] = max(labels.get("Lung Opacity", 0), int(value[0]))
                else:
                    raise InputError(f"{table}: Target is not 1 or 0", where=f"column 'Target', line {line}")
        return found


def _matching(path: Path, pattern: re.Pattern[str]) -> list[Path]:
    if not path.is_dir():
        return []
    return sorted((p for p in path.iterdir() if pattern.fullmatch(p.name)), key=lambda p: ("test" in p.name, p.name))
