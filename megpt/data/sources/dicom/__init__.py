"""DICOM as hospitals export it, by its own identifiers: a study is a StudyInstanceUID, a patient a PatientID.

    20261126/1.2.840….dcm                        a flat day folder
    PATIENT/STUDY/SERIES/IM000001                any tree, any suffix or none, with or without a DICOMDIR
    export.zip  export.tar.gz                    read in place

Headers alone are read, once: they are kept in an index beside the plan (index.py), so the next run opens new files
only. Only chest films become views; everything else is counted by kind, and a study that has no chest film is a row of
`OUT/left_out.parquet`. A file that cannot be used is an error row: its id is `file-` and a keyed hash of the file's
path, since paths may hold names; the row's `views.uri` says where the file is.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from megpt.config import DataConfig
from megpt.data.sources.base import Source, check_mounted
from megpt.data.sources.dicom.headers import Header
from megpt.data.sources.dicom.identity import Pseudonyms, find_key
from megpt.data.sources.dicom.index import INDEX_FILE, HeaderIndex, IndexEntry
from megpt.data.sources.dicom.scan import MakeEntry, holds_dicom, update
from megpt.data.sources.dicom.words import CHEST, FOR_PROCESSING, UNKNOWN_MODALITY, side_of
from megpt.data.studies import write_rows
from megpt.films.members import to_uri
from megpt.places import is_address
from megpt.progress import log
from megpt.study import Study, View

__all__ = ["LEFT_OUT", "LEFT_OUT_SCHEMA", "DicomSource", "side_of"]

LEFT_OUT = "left_out.parquet"
LEFT_OUT_SCHEMA = pa.schema(
    [pa.field("study_id", pa.string(), nullable=False), ("kinds", pa.list_(pa.string())), ("files", pa.int32())]
)
"""OUT/left_out.parquet: the studies without a chest film, what they hold instead, and how many files."""
TWO_PATIENTS = "one StudyInstanceUID with several PatientIDs"
NO_UID = "DICOM film without a StudyInstanceUID"
NO_ACCESSION, SHARED_ACCESSION = "no accession number", "accession number of several studies"
REPEATED = "repeated SOPInstanceUID"
SIDES = ("frontal", "lateral", "other")
ALOUD = {
    "study_id=accession": "accession numbers find an examination in the hospital's systems",
    "subject_id=patient_id": "the table will name patients by their numbers",
}


@dataclass
class Contents:
    """What a tree holds, for the line that says so."""

    studies: int = 0
    films: int = 0
    left_out_studies: int = 0
    errors: int = 0
    kinds: Counter[str] = field(default_factory=Counter)


class DicomSource(Source):
    """One study per StudyInstanceUID, wherever its files are: frontal films first, then lateral ones, then others."""

    format = "dicom"
    about = "DICOM files in any tree, or in a zip or tar: one study per StudyInstanceUID, chest films only"
    unit: ClassVar[str] = "files"
    """What the index has a row for, in the line that says what was found."""

    def __init__(self, root: Path | str, data: DataConfig):
        super().__init__(root, data)
        self._folder: Path | None = None
        self._write = False
        self._key: bytes | None = None
        self._spoken = False

    @classmethod
    def detect(cls, path: Path, data: DataConfig) -> bool:
        return holds_dicom(path)

    def keep_in(self, folder: Path, *, write: bool = True) -> None:
        """Keep the header index, the key of the ids and left_out.parquet in the job's output folder."""
        self._folder, self._write, self._key = folder, write, None

    def studies(self) -> Iterator[Study]:
        """The studies, then a row for each file that cannot be used.

        Raises:
            InputError: a key that cannot be used, or another one than the output began with.
            MegptError: the archive is not there.
        """
        ids = self._pseudonyms()
        settings = f"{self.data.study_id == 'accession'}:{self.data.subject_id}"
        # An index at an address would name patients' folders where no file has a mode: headers are read anew instead.
        place = None if self._folder is None or is_address(self._folder) else self._folder / INDEX_FILE
        index = HeaderIndex(place, made_for=settings, key=ids.check, writable=self._write)
        try:
            rows_of_index, new = self.update_index(index, lambda path, header: self._entry(path, header, ids))
            reader = _Reader(self.data, ids, index, self.locate)
            found = Contents()
            rows: Iterable[dict[str, Any]] = reader.left_out(found)
            if self._folder is not None and self._write:
                write_rows(self._folder / LEFT_OUT, rows, LEFT_OUT_SCHEMA)
            else:
                Counter(row["files"] for row in rows)
            self._say(found, rows_of_index, new, index.others())
            yield from reader.studies()
            yield from reader.files()
            yield from self.unlisted(ids)
        finally:
            index.close()

    # ---- what differs where the files are not on a disk (megpt_pacs)

    def update_index(self, index: HeaderIndex, make_entry: MakeEntry) -> tuple[int, int]:
        """Bring the index up to date; returns how many rows it has (`unit`), and how many of them had to be read.

        Raises:
            MegptError: the archive is not there.
        """
        check_mounted(self.root)
        # Relative paths are joined to the real folder, as those of every source are.
        base = self.root if self.root.is_dir() else self.root.parent
        self._base = str(base) if is_address(base) else os.path.realpath(base)
        return update(index, self.root, make_entry)

    def locate(self, entry: IndexEntry) -> str:
        """Where a film is: the `uri` of its view."""
        path = os.path.join(self._base, os.fsdecode(entry.path))  # noqa: PTH118 (of a million films)
        readable = entry.member is not None and entry.what != "error"
        return to_uri(path, os.fsdecode(entry.member) if readable and entry.member else None)

    def unlisted(self, ids: Pseudonyms) -> Iterator[Study]:
        """An error row for each study that is known to be there, and whose headers could not be read."""
        return iter(())

    def _pseudonyms(self) -> Pseudonyms:
        if self._key is None:
            self._key = find_key(self._folder, make=self._write)
        return Pseudonyms(self._key)

    def _entry(self, path: bytes, header: Header, ids: Pseudonyms) -> IndexEntry:
        """The row of the index: identifiers that the settings do not make ids of are hashed or dropped here."""
        subject = header.patient
        if subject and self.data.subject_id == "hash":
            subject = ids.of("patient", subject)
        return IndexEntry(
            path,
            sop=header.sop,
            study=header.study,
            subject=subject,
            accession=header.accession if self.data.study_id == "accession" else "",
            modality=header.modality,
            body=header.body,
            position=header.position,
            object=header.object,
            number=header.number,
        )

    def _say(self, found: Contents, rows: int, new: int, others: dict[str, int]) -> None:
        """Say once what was found, and what of it is left out."""
        if self._spoken:
            return
        self._spoken = True
        for key, meaning in ALOUD.items():
            name, _, value = key.partition("=")
            if getattr(self.data, name) == value:
                log(f"warning: data.{key}: {meaning}")
        log(
            f"{self.format}: {found.studies} studies, {found.films} films, {found.errors} files that cannot be used "
            f"({rows} {self.unit}, {new} of them new)"
        )
        kinds = ", ".join(
            f"{name} {count}" for name, count in sorted(found.kinds.items(), key=lambda kind: (-kind[1], kind[0]))
        )
        if kinds:
            without = f"{found.left_out_studies} studies without a chest film"
            log(f"{self.format}: left out: {without}; files by kind: {kinds}")
        if others:
            names = ", ".join(f"{name} {count}" for name, count in sorted(others.items()))
            log(f"{self.format}: not DICOM films: {names}")


class _Reader:
    """Studies from a complete index."""

    def __init__(self, data: DataConfig, ids: Pseudonyms, index: HeaderIndex, locate: Callable[[IndexEntry], str]):
        self._data, self._ids, self._index, self._locate = data, ids, index, locate
        self._shared = index.shared_accessions() if data.study_id == "accession" else set()

    def left_out(self, found: Contents) -> Iterator[dict[str, Any]]:
        """Rows of left_out.parquet; `found` is complete at their end."""
        for study, entries in self._groups():
            films, kinds = self._sorted(entries)
            found.kinds.update(kinds)
            found.films += len(films)
            if films:
                found.studies += len(self._patients(study, films)[0])
                continue
            found.left_out_studies += 1
            accession = next((entry.accession for entry in entries if entry.accession), "")
            name, _ = self._study_id(study, accession)
            yield {"study_id": name, "kinds": sorted(kinds), "files": len(entries)}
        for entry in self._index.without_study():
            if kind := self._kind(entry):
                found.kinds[kind] += 1
            else:
                found.errors += 1

    def studies(self) -> Iterator[Study]:
        """The studies that have a chest film."""
        for study, entries in self._groups():
            films, _ = self._sorted(entries)
            if not films:
                continue
            groups, error = self._patients(study, films)
            for subject, theirs in groups:
                accession = next((film.accession for film in theirs if film.accession), "")
                name, wrong = self._study_id(study, accession)
                if len(groups) > 1:
                    name = f"{name}-{self._ids.of('patient of study', subject)[:8]}"
                views = tuple(self._view(film) for film in theirs)
                subject = subject or self._ids.of("study", study)
                yield Study(name, subject, views, split="", error=error or wrong)

    def files(self) -> Iterator[Study]:
        """An error row for each file that belongs to no study."""
        for entry in self._index.without_study():
            if not self._kind(entry):
                view = self._view(entry)
                yield Study(self._file_id(entry), "", (view,), split="", error=entry.reason or NO_UID)

    def _groups(self) -> Iterator[tuple[str, list[IndexEntry]]]:
        for study, entries in groupby(self._index.by_study(), key=lambda entry: entry.study):
            yield study, list(entries)

    def _kind(self, entry: IndexEntry) -> str:
        """ "" for a chest film and for what may be one; else the kind under which it is left out."""
        if entry.what == "error":
            return ""
        wanted = entry.modality in self._data.modalities
        if entry.object and (wanted or entry.object != FOR_PROCESSING):
            return entry.object
        if not wanted:
            return entry.modality or UNKNOWN_MODALITY
        return "" if entry.body in ("", CHEST) else f"{entry.modality} {entry.body}"

    def _sorted(self, entries: list[IndexEntry]) -> tuple[list[IndexEntry], Counter[str]]:
        """The films of a study in their order, each SOPInstanceUID of a patient once; and the kinds of the rest."""
        kinds: Counter[str] = Counter()
        films: dict[tuple[str, str], IndexEntry] = {}
        for number, entry in enumerate(entries):
            if kind := self._kind(entry):
                kinds[kind] += 1
            elif (key := (entry.subject, entry.sop or str(number))) in films:
                kinds[REPEATED] += 1
            else:
                films[key] = entry
        ordered = sorted(films.values(), key=lambda film: (SIDES.index(side_of(film.position)), film.number, film.sop))
        return ordered, kinds

    def _patients(self, study: str, films: list[IndexEntry]) -> tuple[list[tuple[str, list[IndexEntry]]], str]:
        """(patient, films) of one study, and what is wrong with it.

        A StudyInstanceUID of several patients is an error, unless a DICOMDIR lists it for each of them: then the medium
        itself says that its UIDs are not unique, as those of some anonymizers are not, and each patient has a study.
        """
        subjects = sorted({film.subject for film in films} - {""})
        if len(subjects) < 2:
            return [(subjects[0] if subjects else "", films)], ""
        if self._index.listed(study).issuperset(subjects) and all(film.subject for film in films):
            return [(who, [film for film in films if film.subject == who]) for who in subjects], ""
        return [("", films)], TWO_PATIENTS

    def _study_id(self, study: str, accession: str) -> tuple[str, str]:
        """A study's id, and what is wrong with it."""
        if self._data.study_id == "uid":
            return study, ""
        hashed = self._ids.of("study", study)
        if self._data.study_id == "hash":
            return hashed, ""
        wrong = NO_ACCESSION if not accession else SHARED_ACCESSION if accession in self._shared else ""
        return (hashed, wrong) if wrong else (accession, "")

    def _view(self, entry: IndexEntry) -> View:
        uri = self._locate(entry)
        if not entry.sop:
            return View(self._file_id(entry), entry.position, uri=uri)
        name = self._ids.of("film", entry.sop) if self._data.study_id == "hash" else entry.sop
        return View(name, entry.position, uri=uri)

    def _file_id(self, entry: IndexEntry) -> str:
        return "file-" + self._ids.of("file", os.fsdecode(entry.path) + "!" + os.fsdecode(entry.member or b""))[:16]
