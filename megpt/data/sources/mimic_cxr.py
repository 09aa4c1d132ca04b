"""MIMIC-CXR as PhysioNet ships it: the JPEG tree with its tables, or the DICOM tree; reports in a folder or a zip.

    files/p10/p10000032/s50414267/<dicom_id>.jpg       mimic-cxr-2.0.0-{metadata,split,chexpert,negbio}.csv.gz
    files/p10/p10000032/s50414267/<dicom_id>.dcm       cxr-record-list.csv.gz
    files/p10/p10000032/s50414267.txt                  … inside mimic-cxr-reports.zip, or extracted

The source is the folder that holds files/, files/ itself, or any folder of p10/…, with films as JPEG, DICOM or PNG;
any table may be missing. `mimic_cxr_sectioned.csv` (of MIT-LCP's mimic-cxr repository) is read in place of the reports.

Memory holds the id columns of the tables (some 250 MB for all 377,110 films) and the zip's directory. Report texts
are streamed. `data.reports` names the zip or folder of the reports and `data.annotations` the folder of the tables, if
they are not in the archive.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import groupby
from pathlib import Path

import numpy as np

from megpt.config import DataConfig
from megpt.data.sources.base import Inside, Source, split_name
from megpt.data.sources.mimic_tables import SECTIONED, LabelLookup, Sections
from megpt.data.sources.reading import SectionedReport, csv_header, csv_rows, parse_report
from megpt.errors import InputError
from megpt.places import exists, is_address, is_file, place, size_of
from megpt.study import Study, View

SUFFIXES = (".jpg", ".dcm", ".png", ".jpeg")
RECORDS = ("cxr-record-list.csv.gz", "cxr-record-list.csv")
# Reports are a few kilobytes; anything this large is not one.
MAX_REPORT_BYTES = 1 << 20


class MimicCxrSource(Source):
    """One study per `study_id`; its films in the order of the metadata table."""

    format = "mimic_cxr"
    about = "MIMIC-CXR(-JPG) as on PhysioNet: files/p10/p10000032/s50414267/*.jpg|dcm with mimic-cxr-2.0.0-*.csv.gz"

    def __init__(self, root: Path, data: DataConfig):
        if not root.is_dir():
            raise InputError(f"source {root} is not a folder", next="give the folder that holds files/")
        if root.name == "files":  # its tables and reports are beside it
            root = root.parent
        super().__init__(root, data)
        self.rule = "a study per study_id"
        self._tree = "files" if (root / "files").is_dir() else "."
        self._tables_at = place(data.annotations) if data.annotations else root
        self._reports_inside: Inside | None = None

    @classmethod
    def detect(cls, path: Path, data: DataConfig) -> bool:
        if not path.is_dir():
            return False
        return (
            any(path.glob("mimic-cxr-2.*-metadata.csv*"))
            or any((path / name).exists() for name in RECORDS)
            or any((path / "files").glob("p1[0-9]"))
            or any(path.glob("p1[0-9]/p1[0-9]*/s[0-9]*"))
        )

    def tables(self) -> Iterable[Path]:
        found = [self._films_table, *(self._table(name) for name in ("split", "chexpert", "negbio"))]
        reports = self._sectioned_at or self._reports_at
        if reports is not None and reports.is_file():
            found.append(reports)
        return [path for path in found if path is not None]

    def studies(self) -> Iterator[Study]:
        splits, labels = self._splits(), self._labels()
        for (subject_id, study_id), films in self._films():
            report = self._report(subject_id, study_id)
            yield Study(
                study_id,
                subject_id,
                tuple(films),
                report=report.text if report else None,
                findings=report.findings if report else None,
                impression=report.impression if report else None,
                indication=report.indication if report else None,
                comparison=report.comparison if report else None,
                technique=report.technique if report else None,
                labels=labels.get(study_id) if labels else None,
                split=splits.get(study_id, ""),
            )

    # --- films

    def _table(self, name: str) -> Path | None:
        return next(iter(sorted(self._tables_at.glob(f"mimic-cxr-2.*-{name}.csv*"))), None)

    @cached_property
    def _films_table(self) -> Path | None:
        records = next((self._tables_at / name for name in RECORDS if (self._tables_at / name).exists()), None)
        return self._table("metadata") or records

    def _films(self) -> Iterator[tuple[tuple[str, str], list[View]]]:
        """((subject_id, study_id), its views), each study once."""
        table = self._films_table
        if table is None:
            yield from self._films_of_tree()
            return
        rows = self._film_rows(table)
        # The tables are sorted by study, but nothing guarantees it; a stable sort by first appearance costs little.
        first: dict[tuple[str, str], int] = {}
        order = np.fromiter((first.setdefault(row[:2], len(first)) for row in rows), np.int64, len(rows))
        ordered = (rows[i] for i in np.argsort(order, kind="stable"))
        suffix = self._suffix(rows)
        for key, films in groupby(ordered, key=lambda row: row[:2]):
            yield key, [self._film(row, suffix) for row in films]

    def _film_rows(self, table: Path) -> list[tuple[str, str, str, str]]:
        """(subject_id, study_id, dicom_id, position) of each film."""
        rows = []
        position = "ViewPosition" if "ViewPosition" in csv_header(table) else None
        for line, row in csv_rows(table, ("subject_id", "study_id", "dicom_id")):
            subject_id, study_id, dicom_id = row["subject_id"].strip(), row["study_id"].strip(), row["dicom_id"].strip()
            if not subject_id or not study_id:
                column = "study_id" if subject_id else "subject_id"
                raise InputError(f"{table} has an empty {column}", where=f"column {column!r}, line {line}")
            rows.append((subject_id, study_id, dicom_id, (row[position] or "").strip() if position else ""))
        return rows

    def _film(self, row: tuple[str, str, str, str], suffix: str) -> View:
        subject_id, study_id, dicom_id, position = row
        path = f"{self._tree}/p{subject_id[:2]}/p{subject_id}/s{study_id}/{dicom_id}{suffix}"
        return self.view(path, image_id=dicom_id, position=position)

    def _suffix(self, rows: list[tuple[str, str, str, str]]) -> str:
        """The suffix of the first film that exists."""
        for row in rows[:1000]:
            for suffix in SUFFIXES:
                uri = self._film(row, suffix).uri
                if uri and exists(uri):
                    return suffix
        return SUFFIXES[0]

    def _films_of_tree(self) -> Iterator[tuple[tuple[str, str], list[View]]]:
        """The same from folder names, for a tree without tables."""
        for group in sorted((self.root / self._tree).glob("p[0-9][0-9]")):
            for patient in sorted(group.glob("p*")):
                for study in sorted(path for path in patient.glob("s*") if path.is_dir()):
                    names = sorted(path.name for path in study.iterdir() if path.suffix.lower() in SUFFIXES)
                    relative = study.relative_to(self.root).as_posix()
                    views = [self.view(f"{relative}/{name}", image_id=Path(name).stem) for name in names]
                    yield (patient.name.removeprefix("p"), study.name.removeprefix("s")), views

    # --- splits and labels

    def _splits(self) -> dict[str, str]:
        """study_id → its split; {} if there is no table of splits."""
        table = self._table("split")
        rows = csv_rows(table, ("study_id", "split")) if table else ()
        named = ((row["study_id"], split_name(row["split"], where=f"{table}, line {line}")) for line, row in rows)
        return {study_id: split for study_id, split in named if split}

    def _labels(self) -> LabelLookup | None:
        table = self._table("chexpert") or self._table("negbio")
        return None if table is None else LabelLookup(table)

    # --- reports

    @cached_property
    def _reports_at(self) -> Path | None:
        if self.data.reports:
            path = place(self.data.reports)
            if not path.exists():
                raise InputError(
                    f"no reports at {path}", next="set data.reports to mimic-cxr-reports.zip or its folder"
                )
            return path
        for name in ("mimic-cxr-reports.zip", "mimic-cxr-reports"):
            if (self.root / name).exists():
                return self.root / name
        return None

    @cached_property
    def _zip(self) -> zipfile.ZipFile | None:
        path = self._reports_at
        if path is None or path.is_dir():
            return None
        try:
            return zipfile.ZipFile(path.open("rb") if is_address(path) else path)
        except (zipfile.BadZipFile, OSError) as error:
            raise InputError(
                f"{path} cannot be read as a zip archive", cause=type(error).__name__, next="download it again"
            ) from None

    @cached_property
    def _sectioned_at(self) -> Path | None:
        folders = (place(self.data.reports),) if self.data.reports else (self.root, self._tables_at)
        candidates = [
            path
            for folder in folders
            for path in ((folder,) if folder.is_file() else (folder / name for name in SECTIONED))
        ]
        return next((path for path in candidates if path.is_file() and "impression" in csv_header(path)), None)

    @cached_property
    def _sections(self) -> Sections | None:
        return None if self._sectioned_at is None else Sections(self._sectioned_at)

    def _report(self, subject_id: str, study_id: str) -> SectionedReport | None:
        if self._sections is not None:
            return self._sections.get(study_id)
        name = f"files/p{subject_id[:2]}/p{subject_id}/s{study_id}.txt"
        raw = self._zipped(name) if self._zip is not None else self._extracted(name)
        return None if raw is None else parse_report(raw.decode("utf-8", errors="replace"))

    def _zipped(self, name: str) -> bytes | None:
        assert self._zip is not None
        try:
            info = self._zip.getinfo(name)
            if info.file_size > MAX_REPORT_BYTES:
                raise InputError(f"{self._reports_at} holds a report of {info.file_size} bytes", where=name)
            return self._zip.read(info)
        except KeyError:
            return None
        except (zipfile.BadZipFile, OSError, EOFError, RuntimeError) as error:
            raise InputError(
                f"a report in {self._reports_at} cannot be read", where=name, cause=type(error).__name__
            ) from None

    def _extracted(self, name: str) -> bytes | None:
        if self._reports_inside is None:
            self._reports_inside = Inside(self._reports_at or self.root)
        inside = self._reports_inside
        # data.reports may name mimic-cxr-reports/ or the files/ inside it; so may the source.
        for candidate in (name, name.removeprefix("files/")):
            path = inside.resolve(candidate)
            if path is None or not is_file(path):
                continue
            if size_of(path) > MAX_REPORT_BYTES:
                raise InputError(f"{path} is too large to be a report")
            return place(path).read_bytes()
        return None
