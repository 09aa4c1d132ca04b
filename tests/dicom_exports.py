"""Made-up DICOM exports as hospitals write them, for tests and benchmarks: the same kinds of study in five shapes.

expected = write_exports(folder, 40)     # study UID → its views' positions, in order; None if it is left out
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from make_films import dataset, encoded, write
from pydicom.dataset import FileDataset
from pydicom.fileset import FileSet
from pydicom.uid import (
    DigitalXRayImageStorageForProcessing,
    EncapsulatedPDFStorage,
    KeyObjectSelectionDocumentStorage,
    MRImageStorage,
)

PIXELS = np.broadcast_to(np.arange(0, 240, 10, dtype=np.uint8), (16, 24)).copy()
SHAPES = ("flat", "tree", "disc", "zip", "tar")
SECRETS = ("SMITH", "Secret", "19501224", "PID")
"""Pieces of the names and numbers in these exports' headers and folders."""


@dataclass(frozen=True)
class Made:
    """One file of a study: its data set, and the series it belongs to."""

    data: FileDataset
    series: int


def film(study: str, number: int, *, patient: str = "PID-1", series: int = 1, **tags: Any) -> FileDataset:
    """A chest film; `tags` as in `make_films.dataset`."""
    uid = tags.pop("SOPInstanceUID", f"{study}.{series}.{number}")
    known = {
        "StudyInstanceUID": study,
        "SeriesInstanceUID": f"{study}.{series}",
        "SOPInstanceUID": uid,
        "PatientID": patient,
        "PatientName": "SMITH^JOHN",
        "PatientBirthDate": "19501224",
        "Modality": "DX",
        "InstanceNumber": number,
        "SeriesNumber": series,
    }
    merged = {name: value for name, value in {**known, **tags}.items() if not (value is None and name in known)}
    data = dataset(PIXELS, **merged)
    data.file_meta.MediaStorageSOPInstanceUID = uid
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    return data


def other(study: str, number: int, *, modality: str, sop_class: str, patient: str = "PID-1") -> FileDataset:
    return film(study, number, patient=patient, series=9, Modality=modality, SOPClassUID=sop_class)


def study_files(number: int, uid: str, patient: str) -> tuple[list[Made], list[str] | None]:
    """The files of one study, of eight kinds in turn; and its views, None if it is left out."""

    def made(count: int, series: int = 1, **tags: Any) -> Made:
        return Made(film(uid, count, patient=patient, series=series, **tags), series)

    def document(count: int, modality: str, sop_class: str) -> Made:
        return Made(other(uid, count, modality=modality, sop_class=sop_class, patient=patient), 9)

    pa = made(1, ViewPosition="PA", BodyPartExamined="CHEST")
    raw = {"PresentationIntentType": "FOR PROCESSING", "SOPClassUID": DigitalXRayImageStorageForProcessing}
    match number % 8:
        case 0:
            return [made(2, 1, ViewPosition="LATERAL"), made(1, 2, ViewPosition="PA")], ["PA", "LATERAL"]
        case 1:
            return [pa, made(1, 3, ViewPosition="PA", **raw)], ["PA"]
        case 2:
            return [pa, document(1, "KO", KeyObjectSelectionDocumentStorage)], ["PA"]
        case 3:
            return [document(n, "MR", MRImageStorage) for n in range(3)], None
        case 4:
            return [made(1, Modality="CR", BodyPartExamined="HAND", ViewPosition="PA")], None
        case 5:
            lateral = made(2, 2, PatientOrientation=["A", "F"])
            return [lateral, made(1, PatientOrientation=["L", "F"], SeriesDescription="Thorax ap Bett")], [
                "AP",
                "LATERAL",
            ]
        case 6:
            return [pa, Made(pa.data, 5), document(1, "DOC", EncapsulatedPDFStorage)], ["PA"]
        case _:
            return [made(1, Modality="RG", BodyPartExamined="THORAX", SeriesDescription="Chest lat")], ["LATERAL"]


def studies(count: int, *, first: int = 0) -> Iterator[tuple[str, str, list[Made], list[str] | None]]:
    """(UID, patient, files, views) of `count` studies, three of a patient."""
    for number in range(first, first + count):
        uid, patient = f"1.2.826.0.1.3680043.8.498.{number + 1}", f"PID-{number // 3}"
        yield uid, patient, *study_files(number, uid, patient)


def write_exports(folder: Path, count: int, *, first: int = 0, name: str = "") -> dict[str, list[str] | None]:
    """`count` studies divided among the five shapes below `folder`; returns the views that each should have."""
    expected = {}
    each = -(-count // len(SHAPES))
    for place, shape in enumerate(SHAPES):
        mine = list(studies(min(each, count - place * each), first=first + place * each))
        expected.update({uid: views for uid, _, _, views in mine})
        files = [(uid, patient, made) for uid, patient, group, _ in mine for made in group]
        WRITERS[shape](folder / f"{shape}{name}", files)
    return expected


Files = list[tuple[str, str, Made]]


def _flat(folder: Path, files: Files) -> None:
    for number, (_, _, made) in enumerate(files):
        write(folder / f"{made.data.SOPInstanceUID}-{number}.dcm", encoded(made.data))


def _tree(folder: Path, files: Files) -> None:
    for number, (uid, patient, made) in enumerate(files):
        write(folder / f"SMITH_JOHN_{patient}" / uid / f"SE{made.series}" / f"IM{number:06}", encoded(made.data))


def _disc(folder: Path, files: Files) -> None:
    """A DICOMDIR that lists some of its films, beside files of every suffix, and what else lies on a disc."""
    index = FileSet()
    for number, (_, _, made) in enumerate(files):
        if number < 4 and made.data.Modality == "DX":
            made.data.StudyDate, made.data.StudyTime, made.data.StudyID = "20261126", "080000", "1"
            index.add(made.data)
        else:
            write(folder / f"IMAGES/F{number:05}{('.dcm30', '.img', '.v2')[number % 3]}", encoded(made.data))
    index.write(folder)
    write(folder / "AUTORUN.INF", "[autorun]")


def _zip(folder: Path, files: Files) -> None:
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "export.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("README.TXT", "an export")
        for number, (_, patient, made) in enumerate(files):
            archive.writestr(f"SMITH_{patient}/IM{number}", encoded(made.data))


def _tar(folder: Path, files: Files) -> None:
    folder.mkdir(parents=True)
    with tarfile.open(folder / "export.tar.gz", "w:gz") as archive:
        for number, (_, patient, made) in enumerate(files):
            data = encoded(made.data)
            about = tarfile.TarInfo(f"SMITH_{patient}/IM{number}.dcm")
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))


WRITERS = {"flat": _flat, "tree": _tree, "disc": _disc, "zip": _zip, "tar": _tar}
