"""Trees of films without tables.

- folders called train, images, … hold a study per film, however few; train, val and test are splits
- reports lie beside films, under the names that people give them; folders named after observations are labels
- films are known by their first bytes; what is not read is counted
- a table or archive that nothing read ends a listing without reports and labels, unless the format is set
- links into allowed roots are followed, others are named; names that are not UTF-8 do no harm
"""

from __future__ import annotations

import os

import pytest
from make_films import dicom_bytes, jpeg, png, write

from megpt.config import DataConfig
from megpt.data.listing import Found, line
from megpt.data.prepare import list_shards
from megpt.data.sources import open_source
from megpt.data.sources.folder import is_heap
from megpt.errors import InputError
from megpt.films.decode import load_films
from megpt.study import Study, from_uri, to_uri, utf8_name


def read(path, **data):
    source = open_source(path, data=DataConfig(**data))
    return source, {s.study_id: s for s in source.studies()}


@pytest.mark.parametrize(
    "name", ["train", "Val", "images", "images_001", "png", "PNG-512", "stage_2_train_images", "test_images", "NORMAL"]
)
def test_names_of_heaps(name):
    assert is_heap(name)


@pytest.mark.parametrize("name", ["p1", "s50414267", "1.2.840.1", "patient_train", "imagesque", "Miller", "study1"])
def test_names_of_studies(name):
    assert not is_heap(name)


def test_heaps_are_studies_a_film_and_give_splits_and_labels(tmp_path):
    for path in ("train/NORMAL/1.png", "train/PNEUMONIA/2.png", "val/p1/s1/a.png", "val/p1/s1/b.png", "images/9.png"):
        write(tmp_path / path, png())
    source, studies = read(tmp_path)
    assert source.format == "folder"
    assert {name: (s.split, s.labels, len(s.views)) for name, s in studies.items()} == {
        "train/NORMAL/1": ("train", {"No Finding": 1}, 1),
        "train/PNEUMONIA/2": ("train", {"Pneumonia": 1}, 1),
        "val/p1/s1": ("val", None, 2),
        "images/9": ("", None, 1),
    }


def test_reports_beside_films(tmp_path):
    report = "FINDINGS: Größe normal.\n"
    for path, data in {
        "p1/s1/a.png": png(),
        "p1/s1/report.txt": report.encode(),
        "p1/s1/README.txt": b"x",
        "p1/s2/view1_frontal.png": png(),
        "p1/s2/any.txt": report.encode("cp1252"),
        "p2/s3/a.png": png(),
        "p2/s3.txt": report.encode("utf-16"),
        "p2/s4/a.png": png(),
        "p2/s4/one.txt": b"x",
        "p2/s4/two.txt": b"x",
        "images/7.png": png(),
        "images/7.txt": report.encode("utf-8-sig"),
        "images/8.png": png(),
        "images/9.txt": b"x",
    }.items():
        write(tmp_path / path, data)
    source, studies = read(tmp_path)
    with_report = {name for name, s in studies.items() if s.report == s.findings == "Größe normal."}
    assert with_report == {"p1/s1", "p1/s2", "p2/s3", "images/7"} and len(studies) == 6
    assert studies["p1/s2"].views[0].position == "FRONTAL"
    assert dict(source.ignored) == {".txt files": 4}, "README.txt, one.txt, two.txt, 9.txt"


def test_a_report_beside_each_film_of_a_folder(tmp_path):
    for name in "ab":
        write(tmp_path / f"day1/{name}.png", png())
        write(tmp_path / f"day1/{name}.txt", f"Film {name}.")
    _, studies = read(tmp_path)
    assert {name: s.report for name, s in studies.items()} == {"day1/a": "Film a.", "day1/b": "Film b."}


def test_films_by_their_first_bytes(tmp_path):
    names = {"A.JPG": jpeg(), "B.jfif": jpeg(), "C.dcm30": dicom_bytes(), "D": dicom_bytes(), "E.img": dicom_bytes()}
    for name, data in {**names, "F.v2": png(), "G.pdf": b"%PDF-1.7", "DICOMDIR": dicom_bytes()}.items():
        write(tmp_path / name, data)
    source, studies = read(tmp_path)
    assert [*studies] == ["A", "B.jfif", "C.dcm30", "D", "E.img", "F.v2"]
    assert dict(source.ignored) == {".pdf files": 1, "files without a suffix": 1}


# --- what nobody read


@pytest.mark.parametrize("name", ["reports.csv", "p/list.xlsx", "labels.json", "t.jsonl", "x.zip", "y.tar.gz", "z.tsv"])
def test_a_table_that_nobody_read(tmp_path, name):
    write(tmp_path / "archive/p/s/a.png", png())
    write(tmp_path / "archive" / name, "colour,size\nred,1\n")
    source = open_source(tmp_path / "archive", data=DataConfig())
    with pytest.raises(InputError) as caught:
        list_shards(tmp_path / "plan", source.listed(), shard_size=5, seed=0, source=source)
    assert str(caught.value) == (
        f"{name}: nothing was read from it\n"
        f"  where: {tmp_path}/archive, read as a plain tree of films, which gave 0 reports and 0 labels\n"
        "  cause: a table or archive beside the films, in a layout that megpt does not know\n"
        "  next:  name its columns with data.columns.image=… (docs/data.md), give the table itself as source, "
        "or set data.format=folder to take the films alone"
    )
    assert caught.value.exit_code == 2
    source = open_source(tmp_path / "archive", data=DataConfig(format="folder"))
    shards = list_shards(tmp_path / "plan", source.listed(), shard_size=5, seed=0, source=source)
    assert shards.studies == 1 and list(shards.notes["not_read"].values()) == [1]


def test_a_table_beside_reports_that_were_read(tmp_path):
    write(tmp_path / "p/s/a.png", png())
    write(tmp_path / "p/s/report.txt", "Clear.")
    write(tmp_path / "list.csv", "colour\nred\n")
    source = open_source(tmp_path, data=DataConfig())
    found = Found(source)
    assert len(list(found.counted(source.listed()))) == 1
    found.check()


def test_the_line_of_what_was_found(tmp_path):
    for path in ("p1/s1/a.png", "p1/s1/b.png", "p2/s2/a.png"):
        write(tmp_path / "archive" / path, png())
    write(tmp_path / "archive/notes.pdf", "x")
    source = open_source(tmp_path / "archive", data=DataConfig())
    shards = list_shards(tmp_path / "plan", source.listed(), shard_size=5, seed=0, source=source)
    assert line(shards.notes, shards.segments) == (
        "folder: 2 studies, 3 films, 0 reports, 0 labels, test 2 "
        "(a study per folder; all test, since nothing has a report); not read or decided: 1 .pdf files"
    )


# --- links and names


def test_links_into_allowed_roots(tmp_path, capsys):
    write(tmp_path / "store/s1/a.png", png())
    write(tmp_path / "store/b.png", png())
    archive = tmp_path / "archive"
    write(archive / "s0/a.png", png())
    (archive / "s1").symlink_to(tmp_path / "store/s1")
    (archive / "s0/b.png").symlink_to(tmp_path / "store/b.png")
    (archive / "up").symlink_to(tmp_path)
    (archive / "again").symlink_to(archive / "s0")
    source, studies = read(archive)
    assert {v.image_id: v.uri is None for s in studies.values() for v in s.views} == {
        "s0/a.png": False,
        "s0/b.png": True,
    }
    assert capsys.readouterr().err.replace("\n", " ").strip() == (
        "warning: 2 links lead out of the archive and are not followed: s1, up; "
        "allow where they lead with data.roots=[PATH]"
    )
    source, studies = read(archive, roots=(str(tmp_path / "store"),))
    assert {v.image_id: v.uri for s in studies.values() for v in s.views} == {
        "s0/a.png": str(archive / "s0/a.png"),
        "s0/b.png": str(tmp_path / "store/b.png"),
        "s1/a.png": str(tmp_path / "store/s1/a.png"),
    }
    assert source.ignored["links that lead out of the archive"] == 1
    assert source.ignored["links to folders of the archive itself"] == 1
    _, everything = read(archive, roots=(str(tmp_path),))
    assert [*everything] == ["s0", "s1"], "a link to a folder above the archive would never end"


def test_names_that_are_not_utf8(tmp_path):
    write(tmp_path / "archive" / os.fsdecode(b"M\xfcller_1") / os.fsdecode(b"\xe9.png"), png())
    source, studies = read(tmp_path / "archive")
    (study,) = studies.values()
    assert (study.study_id, study.views[0].image_id) == ("M%FCller_1", "M%FCller_1/%E9.png")
    shards = list_shards(tmp_path / "plan", source.listed(), shard_size=5, seed=0, source=source)
    (again,) = (listed.study for shard in shards for listed in shards.read(shard))
    assert again.views == study.views
    assert load_films(again, size=8, max_views=None, max_pixels=10**6)


def test_uris_of_any_path():
    for path in ("/a/b.png", "/a/\udcfc%20.png", "/ä.png", None):
        assert from_uri(to_uri(path)) == path
    assert to_uri("/a/\udcfc.png") == "file:///a/%FC.png" and utf8_name("ä\udcfc") == "ä%FC"
    row = Study("s").to_row()
    assert Study.from_row(row) == Study("s")
