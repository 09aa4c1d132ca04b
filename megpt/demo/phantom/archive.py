"""A phantom archive on disk: films in study folders, three tables, and a few films broken on purpose.

    write_archive("runs/archive", PhantomConfig(num_studies=100), seed=42)

    films/p00/s000007/frontal.jpg      JPEG, PNG or DICOM; also lateral.*
    films.csv                          study_id, image_id, position, path
    reports.csv                        study_id, findings, impression
    labels.csv                         subject_id, study_id, split, and the 14 CheXpert observations (1.0, 0.0 or blank)
    phantom.json                       what was asked for; written last

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

from megpt.config import PhantomConfig
from megpt.demo.phantom.drawing import draw_film
from megpt.demo.phantom.film_file import to_dicom
from megpt.demo.phantom.patient import Patient, draw_patient, generator
from megpt.demo.phantom.wording import write_report
from megpt.output import write_aside
from megpt.study import CHEXPERT

MARKER, FILMS, REPORTS, LABELS = "phantom.json", "films.csv", "reports.csv", "labels.csv"
POSITIONS = {"PA": "frontal", "LATERAL": "lateral"}
FORMATS, FORMAT_WEIGHTS = ("jpg", "png", "dcm"), (0.7, 0.15, 0.15)
DAMAGE = ("truncated", "empty", "missing", "misnamed")
JPEG_QUALITY = 92


def write_archive(folder: str | Path, config: PhantomConfig, seed: int) -> Path:
    """Write the whole archive; what lies there already is written over.

    Returns:
        The folder.
    """
    write_films(folder, config, seed, range(config.num_studies))
    return write_tables(folder, config, seed)


def study_id(index: int) -> str:
    """The id of the study number `index`; its patient's is `p` and the same digits."""
    return f"s{index:06d}"


def split_of(index: int) -> str:
    """Of 25 consecutive studies 21 are for training, one for validation, three for testing."""
    return {0: "val", 8: "test", 16: "test", 24: "test"}.get(index % 25, "train")


def film_names(patient: Patient, seed: int) -> dict[str, str]:
    """Position → path inside the archive, for each film of a study."""
    rng = generator(seed, patient.index, 4)
    suffix = FORMATS[int(rng.choice(len(FORMATS), p=FORMAT_WEIGHTS))]
    positions = ("PA", "LATERAL") if patient.lateral else ("PA",)
    place = f"films/p{patient.index % 100:02d}/{study_id(patient.index)}"
    return {position: f"{place}/{POSITIONS[position]}.{suffix}" for position in positions}


def damage_of(config: PhantomConfig, seed: int) -> dict[int, str]:
    """Which studies are broken, and how: all films of each."""
    rng = np.random.default_rng([seed, config.num_studies, config.broken])
    chosen = rng.choice(config.num_studies, size=min(config.broken, config.num_studies), replace=False)
    return {int(index): DAMAGE[number % len(DAMAGE)] for number, index in enumerate(chosen)}


def write_films(folder: str | Path, config: PhantomConfig, seed: int, indices: Iterable[int]) -> int:
    """Write the films of some studies (so that several processes can share the work); returns their number."""
    folder, damage, count = Path(folder), damage_of(config, seed), 0
    for index in indices:
        patient = draw_patient(seed, index)
        for position, name in film_names(patient, seed).items():
            data = encode(draw_film(patient, position, config.image_size, seed), name, patient, position, seed)
            count += _put(folder / name, data, damage.get(index))
    return count


def encode(film: np.ndarray, name: str, patient: Patient, position: str, seed: int) -> bytes:
    """A drawn film (H, W) uint8 as the file that its name's suffix says."""
    if name.endswith(".dcm"):
        return to_dicom(film, patient, position, seed)
    buffer = io.BytesIO()
    image = Image.fromarray(film)
    if name.endswith(".png"):
        image.save(buffer, format="PNG", compress_level=1)
    else:
        image.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _put(path: Path, data: bytes, damage: str | None) -> int:
    if damage == "missing":
        return 0
    if damage == "truncated":
        data = data[: len(data) // 3]
    elif damage == "empty":
        data = b""
    elif damage == "misnamed":
        # Intact, but its suffix lies: a reader that trusts names will fail on it.
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
