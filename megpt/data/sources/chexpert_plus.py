"""CheXpert Plus: df_chexpert_plus_240401.csv with reports, beside PNG/ or DICOM/ (or CheXpert's own JPEGs).

path_to_image is a .jpg; the release's films are PNG/train/…/view1_frontal.png or DICOM/train/…/view1_frontal.dcm.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath

from megpt.config import DataConfig
from megpt.data.sources.base import table_in
from megpt.data.sources.chexpert import study_of
from megpt.data.sources.columns import label_columns, observations, split_name, split_of_path, text_cell
from megpt.data.sources.reading import csv_header, csv_rows, fold, join, parse_report
from megpt.data.sources.rows import FilmRow, TabularSource
from megpt.errors import InputError
from megpt.places import exists

PATTERN = "df_chexpert_plus*.csv*"
NEEDED = ("path_to_image", "deid_patient_id")
FOLDERS = (
    *("PNG", "PNG/PNG", "DICOM", "DICOM/DICOM", "png", "dicom", "images", "CheXpert-v1.0", "CheXpert-v1.0-small", ""),
)
SUFFIXES = (".png", ".dcm", ".jpg")


class ChexpertPlusSource(TabularSource):
    """One study per patient and study folder, its report from the section columns."""

    format = "chexpert_plus"
    about = "CheXpert Plus: df_chexpert_plus_*.csv beside PNG/train/patient00001/study1/… or DICOM/"

    @classmethod
    def detect(cls, path: Path, data: DataConfig) -> bool:
        table = table_in(path, data, PATTERN)
        return table is not None and set(NEEDED) <= set(csv_header(table))

    def tables(self) -> Iterable[Path]:
        table = table_in(self.root, self.data, PATTERN)
        if table is None:
            raise InputError(f"no {PATTERN} in {self.root}", next="give the table itself, or set data.annotations=PATH")
        return [table]

    def film_rows(self) -> Iterator[FilmRow]:
        self.rule = "a study per study folder"
        for table in self.tables():
            labels = label_columns(csv_header(table, self.form))
            for line, row in csv_rows(table, NEEDED, self.form):
                where = f"{table}, line {line}"
                path = row["path_to_image"].strip().replace("\\", "/")
                study_id, patient = study_of(path)
                if not study_id:
                    raise InputError(
                        f"{table} has a path without a patient's folder", where=f"column 'path_to_image', line {line}"
                    )
                raw = text_cell(row.get("report"))
                parts = parse_report(raw) if raw else None
                findings = fold(text_cell(row.get("section_findings")))
                impression = fold(text_cell(row.get("section_impression")))
                split = split_name(row.get("split"), where=where) or split_of_path(path)
                yield FilmRow(
                    study_id,
                    self._path_of(path),
                    text_cell(row["deid_patient_id"]) or patient,
                    (text_cell(row.get("frontal_lateral")) or "").upper(),
                    split,
                    report=join(findings, impression) or (parts.text if parts else None),
                    findings=findings or (parts.findings if parts else None),
                    impression=impression or (parts.impression if parts else None),
                    labels=observations(row, labels, where=where),
                    where=where,
                    image_id="/".join(path.split("/")[-3:]),
                    indication=self._section(row, "clinical_history", "history")
                    or (parts.indication if parts else None),
                    comparison=self._section(row, "comparison") or (parts.comparison if parts else None),
                    technique=self._section(row, "technique") or (parts.technique if parts else None),
                )

    def _section(self, row: dict[str, str], *names: str) -> str | None:
        """The first of these sections that the row has."""
        return next((text for name in names if (text := fold(text_cell(row.get(f"section_{name}"))))), None)

    @cached_property
    def _layouts(self) -> list[tuple[str, str]]:
        """(folder, suffix) pairs, that of the last film found first."""
        return [(folder, suffix) for folder in FOLDERS if (self.folder / folder).is_dir() for suffix in SUFFIXES]

    def _path_of(self, path: str) -> str:
        stem = PurePosixPath(path).with_suffix("")
        for number, (folder, suffix) in enumerate(self._layouts):
            candidate = f"{folder}/{stem}{suffix}".lstrip("/")
            if exists(self.folder / candidate):
                self._layouts.insert(0, self._layouts.pop(number))
                return candidate
        folder, suffix = self._layouts[0]
        return f"{folder}/{stem}{suffix}".lstrip("/")
