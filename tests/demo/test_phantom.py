"""Drawn films and their archive.

- the same seed gives the same bytes, another seed others, and the work can be shared without changing them
- every observation that is drawn is labelled; a device alone is no finding; what is denied is 0
- films on disk are JPEG, PNG and DICOM, whatever damage is asked for is there, and the rest can be read
- the archive is recognised, and its studies have views, reports, labels and all three splits
- an unfinished archive is refused
- two patients who differ in one finding alone differ on the films, where the finding lies
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megpt.config import DataConfig, PhantomConfig
from megpt.data.sources import open_source
from megpt.demo.phantom import Finding, draw_film, draw_patient, write_archive, write_films, write_report, write_tables
from megpt.demo.phantom.source import PhantomSource
from megpt.errors import InputError
from megpt.films.decode import UnreadableFilm, load_films

CONFIG = PhantomConfig(num_studies=50, image_size=48, broken=4)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(tmp_path_factory.mktemp("phantom"), CONFIG, 42)


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_same_bytes_however_the_work_is_shared(archive: Path, tmp_path: Path) -> None:
    for part in (range(30, 50), range(0, 30)):
        write_films(tmp_path, CONFIG, 42, part)
    write_tables(tmp_path, CONFIG, 42)
    assert hashes(tmp_path) == hashes(archive)


def test_another_seed_is_another_archive() -> None:
    assert [write_report(draw_patient(1, i), 1) for i in range(9)] != [
        write_report(draw_patient(2, i), 2) for i in range(9)
    ]


def test_labels_say_what_is_drawn_and_what_is_denied() -> None:
    seen: set[str] = set()
    for index in range(200):
        patient = draw_patient(42, index)
        labels = patient.labels(write_report(patient, 42).denied)
        drawn = {finding.observation for finding in patient.findings}
        positive = {name for name, value in labels.items() if value == 1}
        assert positive - {"No Finding"} == drawn
        assert ("No Finding" in positive) == (drawn <= {"Support Devices"})
        seen |= positive
    assert len(seen) == 9


def test_archive_is_recognised_and_complete(archive: Path) -> None:
    source = open_source(archive, data=DataConfig())
    studies = list(source.studies())
    assert source.format == "phantom" and len({s.study_id for s in studies}) == 50
    assert {s.split for s in studies} == {"train", "val", "test"}
    assert all(s.views and s.report and s.labels for s in studies)
    assert {Path(str(v.uri)).suffix for s in studies for v in s.views} == {".jpg", ".png", ".dcm"}


def test_broken_films_are_those_asked_for(archive: Path) -> None:
    reasons = []
    for study in open_source(archive, data=DataConfig()).studies():
        try:
            load_films(study, size=32, max_views=None, max_pixels=10**6)
        except UnreadableFilm as error:
            reasons.append(error.reason)
    # truncated, empty, missing; the misnamed one is read by its content unless it was a DICOM file
    assert 3 <= len(reasons) <= 4
    assert sum("empty" in r for r in reasons) == 1 and sum("missing" in r for r in reasons) == 1


def test_unfinished_archive_is_refused(tmp_path: Path) -> None:
    write_films(tmp_path, CONFIG, 42, range(2))
    with pytest.raises(InputError, match="unfinished"):
        list(PhantomSource(tmp_path, DataConfig(format="phantom")).studies())


@pytest.mark.parametrize("position", ["PA", "LATERAL"])
@pytest.mark.parametrize("zone", ["upper", "lower"])
def test_a_finding_shows_where_it_is_said_to_be(position: str, zone: str) -> None:
    normal = replace(draw_patient(42, 0), findings=())
    nodule = Finding("Lung Lesion", side="left", zone=zone, size=0.5)
    pair = [draw_film(p, position, 96, 42).astype(int) for p in (normal, replace(normal, findings=(nodule,)))]
    changed = np.argwhere(np.abs(pair[1] - pair[0]) > 30)
    height, width = pair[0].shape
    assert 4 < len(changed) < 0.02 * height * width
    row, column = changed.mean(axis=0) / (height, width)
    assert (row < 0.5) == (zone == "upper")
    if position == "PA":
        assert column > 0.5  # the patient's left is the image's right
