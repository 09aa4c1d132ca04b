"""A phantom archive on disk: films in study folders, three tables, and a few films broken on purpose.

    write_archive("runs/archive", PhantomConfig(num_studies=100), seed=42)

    films/p00/s000007/frontal.jpg      JPEG, PNG or DICOM; also lateral.*
    films.csv                          study_id, image_id, position, path
    reports.csv                        study_id, findings, impression
    labels.csv                         subject_id, study_id, split, and the 14 CheXpert observations (1.0, 0.0 or blank)
    phantom.json                       the settings; written last

The same settings and seed give the same bytes.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from megpt.config import PhantomConfig
from megpt.demo.phantom.drawing import draw_film
from megpt.demo.phantom.patient import Patient, draw_patient, generator
from megpt.demo.phantom.wording import write_report
from megpt.output import write_aside
from megpt.study import CHEXPERT

MARKER, FILMS, REPORTS, LABELS = "phantom.json", "films.csv", "reports.csv", "labels.csv"
POSITIONS = {"PA": "frontal", "LATERAL": "lateral"}
SUFFIXES, SUFFIX_WEIGHTS = ("jpg", "png", "dcm"), (0.7, 0.15, 0.15)
DAMAGE = ("truncated", "empty", "missing", "misnamed")
JPEG_QUALITY = 92
DIGITAL_X_RAY, BITS = UID("1.2.840.10008.5.1.4.1.1.1.1.1"), 12


def write_archive(folder: str | Path, config: PhantomConfig, seed: int) -> Path:
    """Write the whole archive over any files that are already there.

    Returns:
        The folder.
    """
    write_films(folder, config, seed, range(config.num_studies))
    return write_tables(folder, config, seed)


def study_id(index: int) -> str:
    """The id of study number `index`; its patient's id is `p` with the same digits."""
    return f"s{index:06d}"


def split_of(index: int) -> str:
    """Of 25 consecutive studies, 21 are for training, one for validation and three for testing."""
    return {0: "val", 8: "test", 16: "test", 24: "test"}.get(index % 25, "train")


def film_names(patient: Patient, seed: int) -> dict[str, str]:
    """Position → path inside the archive, for each film of a patient."""
    rng = generator(seed, patient.index, 4)
    suffix = SUFFIXES[int(rng.choice(len(SUFFIXES), p=SUFFIX_WEIGHTS))]
    positions = ("PA", "LATERAL") if patient.lateral else ("PA",)
    folder = f"films/p{patient.index % 100:02d}/{study_id(patient.index)}"
    return {position: f"{folder}/{POSITIONS[position]}.{suffix}" for position in positions}


def damage_of(config: PhantomConfig, seed: int) -> dict[int, str]:
    """Index → damage of each broken study; it affects all its films."""
    rng = np.random.default_rng([seed, config.num_studies, config.broken])
    chosen = rng.choice(config.num_studies, size=min(config.broken, config.num_studies), replace=False)
    return {int(index): DAMAGE[number % len(DAMAGE)] for number, index in enumerate(chosen)}


def write_films(folder: str | Path, config: PhantomConfig, seed: int, indices: Iterable[int]) -> int:
    """Write the films of some studies, so that several processes can share the work; returns their number."""
    folder, damage, count = Path(folder), damage_of(config, seed), 0
    for index in indices:
        patient = draw_patient(seed, index)
        for position, name in film_names(patient, seed).items():
            data = encode(draw_film(patient, position, config.image_size, seed), name, patient, position, seed)
            count += _put(folder / name, data, damage.get(index))
    return count


def encode(film: np.ndarray, name: str, patient: Patient, position: str, seed: int) -> bytes:
    """A drawn film (H, W) uint8 as a file of the type that the suffix of `name` gives."""
    if name.endswith(".dcm"):
        return to_dicom(film, patient, position, seed)
    buffer = io.BytesIO()
    image = Image.fromarray(film)
    if name.endswith(".png"):
        image.save(buffer, format="PNG", compress_level=1)
    else:
        image.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def to_dicom(film: np.ndarray, patient: Patient, position: str, seed: int) -> bytes:
    """A film (H, W) uint8 as a DICOM file, with the habits of real ones: 12 bits, a window, sometimes MONOCHROME1.

    The seed determines the UIDs, and the dates are fixed, so the bytes are the same every time. In a third of the
    files (MONOCHROME1) the largest value is black.
    """
    inverted = bool(generator(seed, patient.index, 5).random() < 1 / 3)
    pixels = film.astype(np.uint16) << (BITS - 8)
    if inverted:
        pixels = (1 << BITS) - 1 - pixels
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = DIGITAL_X_RAY
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = _uid(seed, patient.index, position)
    ds.StudyInstanceUID = _uid(seed, patient.index, "study")
    ds.SeriesInstanceUID = _uid(seed, patient.index, "series")
    # Real files have a name and a birth date; neither may reach a log or a table.
    ds.PatientName, ds.PatientID = f"Phantom^Number{patient.index}", f"p{patient.index:06d}"
    ds.PatientBirthDate, ds.StudyDate, ds.StudyTime = "19500101", "20200101", "120000"
    ds.Modality, ds.ViewPosition, ds.BodyPartExamined = "DX", "PA" if position == "PA" else "LL", "CHEST"
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    ds.Rows, ds.Columns = film.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, BITS, BITS - 1, 0
    ds.WindowCenter, ds.WindowWidth = 1 << (BITS - 1), 1 << BITS
    ds.PixelData = pixels.astype("<u2").tobytes()
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _uid(seed: int, index: int, name: str) -> UID:
    return generate_uid(entropy_srcs=["megpt phantom", str(seed), str(index), name])


def _put(path: Path, data: bytes, damage: str | None) -> int:
    if damage == "missing":
        return 0
    if damage == "truncated":
        data = data[: len(data) // 3]
    elif damage == "empty":
        data = b""
    elif damage == "misnamed":
        # The file is intact, but its suffix is wrong: a reader that trusts names fails on it.
        data = _another_format(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return 1


def _another_format(data: bytes) -> bytes:
    if data[128:132] == b"DICM":
        return b"this is a note about a film, not a film"
    with Image.open(io.BytesIO(data)) as image:
        buffer = io.BytesIO()
        image.save(buffer, format="PNG" if image.format == "JPEG" else "JPEG")
    return buffer.getvalue()


def write_tables(folder: str | Path, config: PhantomConfig, seed: int) -> Path:
    """Write the three tables and, last, the marker; returns the folder."""
    folder = Path(folder)
    films: list[Sequence[object]] = []
    reports: list[Sequence[object]] = []
    labels: list[Sequence[object]] = []
    for index in range(config.num_studies):
        patient = draw_patient(seed, index)
        report, name = write_report(patient, seed), study_id(index)
        for position, path in film_names(patient, seed).items():
            films.append((name, f"{name}-{POSITIONS[position]}", position, path))
        reports.append((name, report.findings, report.impression))
        known = patient.labels(report.denied)
        values = (f"{known[o]:.1f}" if o in known else "" for o in CHEXPERT)
        labels.append((f"p{index:06d}", name, split_of(index), *values))
    _write_csv(folder / FILMS, ("study_id", "image_id", "position", "path"), films)
    _write_csv(folder / REPORTS, ("study_id", "findings", "impression"), reports)
    _write_csv(folder / LABELS, ("subject_id", "study_id", "split", *CHEXPERT), labels)
    with write_aside(folder / MARKER) as temporary:
        temporary.write_text(json.dumps({"seed": seed, **config.model_dump(mode="json")}, indent=1) + "\n")
    return folder


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with write_aside(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
