"""Archives without a format of their own: folders of films, megpt's tables, manifests.

- `auto` finds each; a wrong name, a missing path and an unknown layout are errors that help
- a folder is a study; a heap of films, or a flat folder, is a study per film; files that are no films are passed over
- a studies/ table, failed.parquet and a manifest give the same studies as were put in
- paths that lead out of the archive (.., absolute, symbolic links) give a film without a path, not a crash
- a table without a column, cut off, or with a wrong value is an error that names file, column and line
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from make_films import dicom_bytes, jpeg, png, write

from megpt.config import DataConfig
from megpt.data.sources import FORMATS, load_format, open_source
from megpt.data.sources.base import Inside
from megpt.data.studies import with_films, write_rows, write_studies
from megpt.errors import InputError
from megpt.films.decode import UnreadableFilm, load_films
from megpt.study import FAILED_SCHEMA, STUDIES_SCHEMA, Study, View


def read(path, **data):
    source = open_source(path, data=DataConfig(**data))
    studies = list(source.studies())
    assert studies == list(source.studies()), "a second reading gives the same"
    return source.format, studies


def films(studies):
    return {s.study_id: [v.image_id for v in s.views] for s in studies}


# --- choosing a format


def test_a_missing_archive(tmp_path):
    (tmp_path / "archive").mkdir()
    with pytest.raises(InputError) as caught:
        open_source(tmp_path / "archvie", data=DataConfig())
    assert str(caught.value) == (
        f"no archive at {tmp_path}/archvie\n"
        "  cause: the path does not exist on this machine\n"
        "  next:  set source=PATH; did you mean archive?"
    )


def test_an_unknown_format_name(tmp_path):
    with pytest.raises(InputError, match=r"^unknown data.format 'mimic'\n  next:  did you mean mimic_cxr\?"):
        open_source(tmp_path, data=DataConfig(format="mimic"))


def test_an_unknown_layout_lists_the_formats(tmp_path):
    path = write(tmp_path / "notes.txt", "hello")
    with pytest.raises(InputError) as caught:
        open_source(path, data=DataConfig())
    assert all(f"           {name}: {load_format(name).about}\n" in str(caught.value) for name in FORMATS)


# --- folders


def test_a_folder_is_a_study(tmp_path):
    for name in ("p1/s1/b.png", "p1/s1/a.jpg", "p1/s2/x.dcm", "p2/s3/y.png"):
        write(tmp_path / name, png())
    for name in ("p1/s1/report.txt", "README", "p1/.hidden/z.png", "p1/s1/.z.png"):
        write(tmp_path / name, "text")
    kind, studies = read(tmp_path)
    assert kind == "folder"
    assert films(studies) == {
        "p1/s1": ["p1/s1/a.jpg", "p1/s1/b.png"],
        "p1/s2": ["p1/s2/x.dcm"],
        "p2/s3": ["p2/s3/y.png"],
    }
    assert [s.subject_id for s in studies] == ["p1", "p1", "p2"]
    assert {s.split for s in studies} == {""}


def test_a_flat_folder_and_a_heap(tmp_path):
    for name in ("a.png", "a.dcm", "b.jpg", *(f"heap/{n:02}.png" for n in range(17))):
        write(tmp_path / name, png())
    _, studies = read(tmp_path)
    assert films(studies) == {
        "a.dcm": ["a.dcm"],
        "a.png": ["a.png"],
        "b": ["b.jpg"],
        **{f"heap/{n:02}": [f"heap/{n:02}.png"] for n in range(17)},
    }
    assert all(s.subject_id == s.study_id for s in studies)


def test_dicom_files_without_a_suffix(tmp_path):
    write(tmp_path / "study" / "IM0001", dicom_bytes())
    write(tmp_path / "study" / "1.2.840.113", dicom_bytes())
    write(tmp_path / "study" / "DICOMDIR.txt", "x")
    write(tmp_path / "study" / "LICENSE", "x")
    assert films(read(tmp_path, format="folder")[1]) == {"study": ["study/1.2.840.113", "study/IM0001"]}
    assert read(tmp_path)[0] == "dicom", "unless the format is said"


def test_one_film(tmp_path):
    assert films(read(write(tmp_path / "one.jpg", jpeg()))[1]) == {"one": ["one.jpg"]}


# --- megpt's own tables


def study(number, **fields):
    views = (View("a", "PA", data=png()), View("b", uri="/data/b.png"))
    return Study(f"s{number}", f"p{number}", views, report="text", labels={"Edema": 1}, **fields)


def test_a_studies_table(tmp_path):
    write_studies(tmp_path / "t", "val", [study(1, split="val")], 0)
    write_studies(tmp_path / "t", "train", [study(2, split="train"), study(3, split="train")], 0)
    kind, studies = read(tmp_path / "t")
    assert kind == "table"
    assert studies == [study(2, split="train"), study(3, split="train"), study(1, split="val")]


def failed(path, studies, source, name):
    rows = [{**s.failed_row("missing file"), "source": str(source), "format": name} for s in studies]
    write_rows(path, rows, FAILED_SCHEMA)
    return path


def test_failed_parquet_is_read_again_from_its_source(tmp_path, capfd):
    table = tmp_path / "t"
    write_studies(table, "train", [study(n, split="train") for n in range(4)], 0)
    first = failed(tmp_path / "failed.parquet", [study(n) for n in (3, 1)], table, "table")
    text = first.read_bytes()
    assert b"JFIF" not in text and b"PNG" not in text, "no films"
    assert {"report", "findings", "impression", "labels"}.isdisjoint(pq.read_schema(first).names), "no text"
    kind, studies = read(first)
    assert kind == "failed"
    assert studies == [study(1, split="train"), study(3, split="train")], "with text, labels and films"
    source = open_source(first, data=DataConfig())
    assert list(with_films(source.listed())) == studies
    assert source.origin == (str(table), "table"), "a failed.parquet of its studies names the table again"
    # of the same studies, one is not there any more
    write_studies(table, "train", [study(1, split="train")], 0)
    assert read(first)[1] == [study(1, split="train")]
    assert f"warning: 1 studies of {first} are not in {table} any more: s3\n" in capfd.readouterr().err


def test_failed_parquets_that_cannot_be_read_again(tmp_path):
    path = failed(tmp_path / "failed.parquet", [study(1)], tmp_path / "gone", "table")
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value) == (
        f"the source of {path} is not there: {tmp_path}/gone\n"
        "  cause: failed.parquet lists ids and reasons; films and reports are read from the source again\n"
        f"  next:  make {tmp_path}/gone available, or set source=PATH to where it is now and ids={path}"
    )
    rows = [{**study(n).failed_row("x"), "source": f"/{n}", "format": "table"} for n in (1, 2)]
    write_rows(path, rows, FAILED_SCHEMA)
    with pytest.raises(InputError, match=r"failed\.parquet names 2 sources\n"):
        read(path)
    write_rows(path, [], FAILED_SCHEMA)
    assert read(path) == ("failed", []) and open_source(path, data=DataConfig()).origin == (str(path), "failed")


def test_a_table_of_an_earlier_version(tmp_path):
    """megpt 0.1 wrote `split=…` at the top, and labels as a map."""
    old = STUDIES_SCHEMA.set(
        STUDIES_SCHEMA.get_field_index("labels"), pa.field("labels", pa.map_(pa.string(), pa.int8()))
    )
    row = {**study(1).to_row(), "labels": [("Edema", 1)]}
    write_rows(tmp_path / "t" / "split=val" / "part-00000.parquet", [row], old)
    assert read(tmp_path / "t") == ("table", [study(1, split="val")])
    failures = old.append(pa.field("split", pa.string())).append(pa.field("error", pa.string()))
    write_rows(tmp_path / "failed.parquet", [{**row, "split": "train", "error": "x"}], failures)
    assert read(tmp_path / "failed.parquet") == ("table", [study(1, split="train")])


def test_a_table_with_relative_uris(tmp_path):
    views = (View("a", uri="films/a.png"), View("b", uri="../out.png"))
    write_rows(tmp_path / "t.parquet", [Study("s", views=views).to_row()], STUDIES_SCHEMA)
    (only,) = read(tmp_path / "t.parquet")[1]
    assert [v.uri for v in only.views] == [str(tmp_path / "films/a.png"), None]


def test_a_table_without_views(tmp_path):
    pq.write_table(pa.table({"study_id": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"t.parquet has no column 'views'"):
        read(tmp_path / "t.parquet", format="table")


# --- manifests

MANIFEST = """study_id,image_path,subject_id,position,report,split,Edema,Pneumonia
s1,films/a.png,p1,PA,The heart is normal.,train,1,
s1,films/b.png,p1,LATERAL,The heart is normal.,train,1,
s2,films/c.png|films/d.png,p2,,,valid,-1.0,0
"""


def test_a_manifest(tmp_path):
    write(tmp_path / "manifest.csv", MANIFEST)
    kind, studies = read(tmp_path)
    assert kind == "manifest"
    assert films(studies) == {"s1": ["films/a.png", "films/b.png"], "s2": ["films/c.png", "films/d.png"]}
    assert [v.position for v in studies[0].views] == ["PA", "LATERAL"]
    assert [v.uri for v in studies[0].views] == [str(tmp_path / f"films/{n}.png") for n in "ab"]
    assert [(s.subject_id, s.report, s.split, s.labels) for s in studies] == [
        ("p1", "The heart is normal.", "train", {"Edema": 1}),
        ("p2", None, "val", {"Edema": -1, "Pneumonia": 0}),
    ]
    assert read(tmp_path / "manifest.csv") == (kind, studies)


def test_a_parquet_manifest_and_one_kept_apart(tmp_path):
    table = pa.table({"study_id": ["s1", "s2"], "image_path": [["a.png", "b.png"], []]})
    pq.write_table(table, tmp_path / "list.parquet")
    assert films(read(tmp_path / "list.parquet")[1]) == {"s1": ["a.png", "b.png"], "s2": []}
    (tmp_path / "archive").mkdir()
    kind, (first, _) = read(tmp_path / "archive", annotations=str(tmp_path / "list.parquet"))
    assert kind == "manifest"
    assert first.views[0].uri == str(tmp_path / "archive" / "a.png")


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "study,where\n1,a\n",
            r"has no column of films\n  cause: its columns are: study, where\n  next:  set data.col",
        ),
        ("", r"has no column of films\n  cause: its columns are: none, the file is empty"),
        ("image_path,study_id\na,1\nb\n", r"ends too early\n  where: column 'study_id', line 3"),
        ("study_id,image_path\n,a\n", r"has an empty study_id\n  where: column 'study_id', line 2"),
        ("study_id,image_path,split\n1,a,extra\n", r"unknown split 'extra'\n  where: .*manifest.csv, study 1"),
        ("study_id,image_path,Edema\n1,a,yes\n", r"a label is not 1, 0, -1 or blank\n  where: column 'Edema', line 2"),
        (
            b"study_id,image_path\n1,a\n2,\xc3\xa9\n3,\xff\xfe\n",
            r"neither UTF-8 nor cp1252 throughout\n  where: line 4\n.*\n  next:  save it as UTF-8, or set data.enc",
        ),
    ],
)
def test_bad_manifests(tmp_path, text, message):
    path = write(tmp_path / "manifest.csv", text)
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


# --- paths that lead out


@pytest.fixture
def leaky(tmp_path):
    archive = tmp_path / "archive"
    write(tmp_path / "secret.png", png())
    write(archive / "films" / "good.png", png())
    (archive / "link.png").symlink_to(tmp_path / "secret.png")
    (archive / "inside.png").symlink_to(archive / "films" / "good.png")
    (archive / "linked").symlink_to(tmp_path)
    write(tmp_path / "archive-of-others" / "film.png", png())
    (archive / "sibling.png").symlink_to(tmp_path / "archive-of-others" / "film.png")
    return archive


@pytest.mark.parametrize(
    "path",
    [
        *("../secret.png", "films/../../secret.png", "linked/secret.png", "link.png", "sibling.png"),
        *("/etc/passwd", "a\0b", "", "..\\x"),
        *("link.png#offset=0&size=9", "link.png#column=image&row=0"),
    ],
)
def test_paths_that_lead_out_are_refused(leaky, path):
    assert Inside(leaky).resolve(path) is None


def test_paths_that_stay_inside(leaky):
    good = str(leaky / "films" / "good.png")
    inside = Inside(leaky)
    assert inside.resolve("films/good.png") == inside.resolve("films\\good.png") == good
    assert inside.resolve("inside.png") == good
    assert inside.resolve(good) == good
    assert inside.resolve("films/absent.png") == str(leaky / "films" / "absent.png")


def test_a_refused_path_is_an_unreadable_film(leaky):
    write(leaky / "manifest.csv", "study_id,image_path\ns1,../secret.png\ns2,films/good.png\ns3,link.png\n")
    _, studies = read(leaky)
    assert [s.views[0].uri is None for s in studies] == [True, False, True]
    with pytest.raises(UnreadableFilm, match="no path inside the archive"):
        load_films(studies[0], size=8, max_views=None, max_pixels=10**6)


def test_links_in_a_folder_tree_are_refused(leaky):
    _, studies = read(leaky, format="folder")
    assert {v.image_id: v.uri is None for s in studies for v in s.views} == {
        "films/good.png": False,
        "inside.png": False,
        "link.png": True,
        "sibling.png": True,
    }


def test_fingerprint_follows_the_tables(tmp_path):
    write(tmp_path / "manifest.csv", MANIFEST)
    first = open_source(tmp_path, data=DataConfig()).fingerprint()
    assert open_source(tmp_path, data=DataConfig()).fingerprint() == first
    write(tmp_path / "manifest.csv", MANIFEST.replace("normal", "enlarged"))
    assert open_source(tmp_path, data=DataConfig()).fingerprint() != first
