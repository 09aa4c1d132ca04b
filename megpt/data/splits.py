"""The split of each patient, where the archive does not say."""

from __future__ import annotations

import hashlib
from typing import Any

from megpt.data.ids import digest, scratch
from megpt.data.parquet import read_rows
from megpt.data.shards import ShardList
from megpt.study import Study

# An archive without splits is divided by patient, so that no patient is in two of them.
SHARES = (("train", 0.8), ("val", 0.9), ("test", 1.0))


class SplitAssigner:
    """The split of each patient: that of earlier studies, the archive's own, or else one that the seed chooses."""

    def __init__(self, seed: int, base: ShardList | None = None):
        self.seed, self.base = seed, base
        self.has_reports = bool(base and base.notes["reports"])
        self._patients = scratch("CREATE TABLE patients (id BLOB PRIMARY KEY, split TEXT, twice INT) WITHOUT ROWID")
        for file in base.files() if base else ():
            for row in read_rows(base.folder / file, ["study_id", "subject_id"]) if base else ():
                self._place(row["subject_id"] or row["study_id"], file.rpartition("-")[0])

    def see(self, study: Study) -> None:
        """Take note of a study's split, and of whether it has a report."""
        if self.base is None:
            self.has_reports = self.has_reports or bool(study.report or study.findings or study.impression)
        if study.split:
            self._place(study.subject_id or study.study_id, study.split)

    def _place(self, patient: str, split: str) -> None:
        self._patients.execute(
            "INSERT INTO patients VALUES (?, ?, 0) ON CONFLICT DO UPDATE SET twice = twice OR split != excluded.split",
            (digest(patient), split),
        )

    def split_of(self, patient: str) -> str:
        """The split of a patient whose study the archive does not place; call it after all studies were seen."""
        known = self._patients.execute("SELECT split FROM patients WHERE id = ?", (digest(patient),)).fetchone()
        if known:
            return str(known[0])
        if not self.has_reports:
            return "test"
        position = hashlib.blake2b(f"{self.seed}:{patient}".encode(), digest_size=8).digest()
        return next(split for split, share in SHARES if int.from_bytes(position) / 2**64 < share)

    def notes(self) -> dict[str, Any]:
        placed, twice = self._patients.execute("SELECT count(*), total(twice) FROM patients").fetchone()
        split_by = "archive" if placed else "patient" if self.has_reports else "none"
        kept = {name: self.base.notes[name] for name in ("split_by", "reports")} if self.base else {}
        return {"split_by": split_by, "reports": self.has_reports, **kept, "patients_in_two_splits": int(twice)}

    def close(self) -> None:
        self._patients.close()
