"""Real material (`MEGPT_REAL_DATA`).

- NIH: 1,000 films are listed with patient, view and labels, and every one is read
- DICOM: all twelve files but the broken one are read, the stored pixels are those that were published, and files that
  hold the same picture in different compressions look the same
- IU X-Ray: R2Gen's annotation with most images absent, Kaggle's tables and ReXrank's lists agree with each other
"""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest

from megpt.config import DataConfig
from megpt.data.sources import open_source
from megpt.films import dicom
from megpt.films.decode import UnreadableFilm, load_film, load_films
from megpt.study import View

LIMIT = 200_000_000
BROKEN = "966.dcm"
# Lossy JPEG: decoders differ by a grey level, so its hash is of another decoder's pixels.
LOSSY = "1.2.840.10008.1.2.4.50"


def studies(path, **data):
    source = open_source(path, data=DataConfig(**data))
    return source.format, list(source.studies())


@pytest.mark.slow
def test_nih(real_data):
    kind, listed = studies(real_data / "nih_cxr14")
    assert kind == "nih" and len(listed) == 1000
    assert sum(s.labels["No Finding"] for s in listed) == sum(s.labels["Pneumonia"] for s in listed) == 500
    assert {s.views[0].position for s in listed} == {"PA", "AP"}
    for study in listed:
        (film,) = load_films(study, size=64, max_views=None, max_pixels=LIMIT)
        assert min(film.size) == 64 and np.asarray(film).std() > 5


def index(real_data):
    with (real_data / "dicom" / "index.csv").open() as file:
        return {row["file"]: row for row in csv.DictReader(file)}


def test_dicom_pixels_are_the_published_ones(real_data):
    checked = 0
    for name, row in index(real_data).items():
        if name == BROKEN or row["transfer_syntax_uid"] == LOSSY:
            continue
        with (real_data / "dicom" / name).open("rb") as file:
            pixels = dicom.stored_pixels(dicom.read(file), max_pixels=LIMIT)
        wanted = row["pydicom_decode"]
        assert wanted.startswith(f"{pixels.shape} {pixels.dtype}"), name
        assert wanted.endswith("sha256:" + hashlib.sha256(pixels.tobytes()).hexdigest()[:16]), name
        checked += 1
    assert checked == 9


def show(real_data, name):
    view = View(name, uri=str(real_data / "dicom" / name))
    return np.asarray(load_film(view, size=None, max_pixels=LIMIT)).astype(int)


def test_dicom_films(real_data):
    kind, listed = studies(real_data / "dicom", format="folder")
    assert kind == "folder" and len(listed) == 12
    rows = index(real_data)
    for study in listed:
        (view,) = study.views
        if view.image_id == BROKEN:
            with pytest.raises(UnreadableFilm, match=r"^damaged DICOM \(RuntimeError\)$"):
                load_film(view, size=224, max_pixels=LIMIT)
            continue
        pixels = show(real_data, view.image_id)
        assert pixels.shape == (int(rows[view.image_id]["rows"]), int(rows[view.image_id]["cols"]))
        assert pixels.max() - pixels.min() > 150 and pixels.std() > 20, view.image_id


def test_the_same_picture_in_other_compressions(real_data):
    chest = "1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819.dcm"
    assert np.abs(show(real_data, chest) - show(real_data, "RSNA_chest_J2KR.dcm")).max() <= 1
    assert np.array_equal(255 - show(real_data, chest), show(real_data, "Fake_MONOHR1.dcm"))
    plain, packed = (show(real_data, f"CR-MONO1-10-chest{suffix}.dcm") for suffix in ("", "_RLE"))
    assert np.array_equal(plain, packed)


def present(study):
    return any(view.uri and Path(view.uri).exists() for view in study.views)


def test_iu_annotation_with_most_images_absent(real_data):
    kind, listed = studies(real_data / "iu_xray")
    assert kind == "r2gen"
    assert [sum(s.split == split for s in listed) for split in ("train", "val", "test")] == [2069, 296, 590]
    assert len({s.study_id for s in listed}) == len(listed) and all(s.report and s.views for s in listed)
    there = [s for s in listed if present(s)]
    assert len(there) == 6
    for study in there:
        assert load_films(study, size=64, max_views=None, max_pixels=LIMIT)
    absent = next(s for s in listed if not present(s))
    with pytest.raises(UnreadableFilm, match=r"^missing file \(and 1 more\)$"):
        load_films(absent, size=64, max_views=None, max_pixels=LIMIT)


def test_the_three_lists_of_iu_agree(real_data):
    folder = real_data / "iu_xray"
    annotated = {s.study_id: s for s in studies(folder)[1]}
    kind, ranked = studies(folder, format="rexrank")
    assert kind == "rexrank" and len(ranked) == 886
    for study in ranked:
        assert study.split == annotated[study.study_id].split
        assert [v.image_id for v in study.views] == [v.image_id for v in annotated[study.study_id].views]
    same = sum(s.findings == annotated[s.study_id].report for s in ranked)
    assert same > 850
    kind, listed = studies(folder, format="iu_kaggle")
    assert kind == "iu_kaggle" and len(listed) == 3851
    by_uid = {s.study_id: s for s in listed}
    for study in ranked:
        uid = study.subject_id.removeprefix("CXR")
        assert uid in by_uid and len(by_uid[uid].views) >= 1
