"""MIMIC-CXR's tables of labels and of report sections, to be looked up by study."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import ClassVar

from megpt.data.ids import scratch
from megpt.data.sources.columns import text_cell
from megpt.data.sources.reading import SectionedReport, csv_rows, fold, join
from megpt.errors import InputError
from megpt.study import CHEXPERT

SECTIONED = ("mimic_cxr_sectioned.csv", "mimic_cxr_sectioned.csv.gz", "mimic-cxr-sections.csv")


class Sections:
    """study_id → report, from mimic_cxr_sectioned.csv (study,impression,findings,last_paragraph,comparison).

    Where a report has neither findings nor impression, its last paragraph holds both. The texts wait in a temporary
    database on disk.
    """

    def __init__(self, table: Path):
        self._texts = scratch(
            "CREATE TABLE texts (study TEXT PRIMARY KEY, findings, impression, last, comparison) WITHOUT ROWID"
        )
        for _, row in csv_rows(table, ("study", "findings", "impression")):
            names = ("findings", "impression", "last_paragraph", "comparison")
            parts = (fold(text_cell(row.get(name))) for name in names)
            study_id = row["study"].strip().removeprefix("s").removesuffix(".txt")
            self._texts.execute("INSERT OR IGNORE INTO texts VALUES (?, ?, ?, ?, ?)", (study_id, *parts))

    def get(self, study_id: str) -> SectionedReport | None:
        query = "SELECT findings, impression, last, comparison FROM texts WHERE study = ?"
        found = self._texts.execute(query, (study_id,)).fetchone()
        if found is None:
            return None
        findings, impression, last, comparison = found
        return SectionedReport(join(findings, impression) or last, findings, impression, comparison=comparison)


class LabelLookup:
    """study_id → {observation: 1, 0 or -1}, from a -chexpert or -negbio table: 14 bytes per study, and its id."""

    ABSENT = 9
    VALUES: ClassVar[dict[str, int]] = {"": ABSENT, "1.0": 1, "0.0": 0, "-1.0": -1}

    def __init__(self, table: Path):
        self._places: dict[str, int] = {}
        self._values = array("b")
        for number, (line, row) in enumerate(csv_rows(table, ("study_id", *CHEXPERT))):
            self._places.setdefault(row["study_id"], number * len(CHEXPERT))
            self._values.extend(self._value(row[name], name, table, line) for name in CHEXPERT)

    @classmethod
    def _value(cls, cell: str, column: str, table: Path, line: int) -> int:
        if (known := cls.VALUES.get(cell)) is not None:
            return known
        if not cell.strip():
            return cls.ABSENT
        try:
            value = float(cell)
        except ValueError:
            value = float("nan")
        if value not in (-1.0, 0.0, 1.0):
            raise InputError(f"{table}: {cell!r} is not 1, 0, -1 or blank", where=f"column {column!r}, line {line}")
        return int(value)

    def get(self, study_id: str) -> dict[str, int] | None:
        if (place := self._places.get(study_id)) is None:
            return None
        values = self._values[place : place + len(CHEXPERT)]
        return {name: value for name, value in zip(CHEXPERT, values, strict=True) if value != self.ABSENT}
