"""Tables of one's own: any kind, delimiter, encoding and names of columns.

- CSV, TSV, JSONL, JSON and Parquet give the same studies; semicolons, tabs, bars; UTF-8, UTF-16, cp1252, a mark
- data.columns.* names any column; a name that is not there is an error
- rows of a study need not be together; rows that disagree are an error or a counted decision
- blanks are blank however they are written; ids keep their zeros; a float id is the integer, one that lost digits is
  refused
- any text survives the way through a file (property tests)
"""

from __future__ import annotations

import csv
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_films import png, write

from megpt.config import DataConfig
from megpt.data.members import cell_uri, is_member, tar_uri
from megpt.data.sources import open_source
from megpt.data.sources.columns import find_columns, id_cell, merged, observations, split_of_path, text_cell
from megpt.data.sources.rows import FilmRow, gathered
from megpt.errors import InputError


def read(path, **data):
    source = open_source(path, data=DataConfig(**data))
    return source, list(source.studies())


def facts(studies):
    return [(s.study_id, s.subject_id, s.report, s.split, s.labels, [v.image_id for v in s.views]) for s in studies]


NAMES = ("study_id", "image_path", "patient_id", "report", "split", "Edema")
VALUES = [
    ("0012", "a.png", "007", "Größe normal.", "valid", "1"),
    ("13", "b.png", "7", "", "train", ""),
    ("0012", "c.png", "007", "Größe normal.", "valid", "0"),
]
ROWS = [dict(zip(NAMES, values, strict=True)) for values in VALUES]
WANTED = [
    ("0012", "007", "Größe normal.", "val", {"Edema": 1}, ["a.png", "c.png"]),
    ("13", "7", None, "train", None, ["b.png"]),
]


def as_csv(delimiter, encoding, mark=b""):
    text = io.StringIO()
    writer = csv.DictWriter(text, ROWS[0], delimiter=delimiter, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(ROWS)
    return mark + text.getvalue().encode(encoding)


@pytest.mark.parametrize(
    "name, content",
    [
        ("t.csv", as_csv(",", "utf-8")),
        ("t.csv", as_csv(";", "utf-8-sig")),
        ("t.tsv", as_csv("\t", "cp1252")),
        ("t.csv", as_csv("|", "utf-16")),
        ("t.csv", as_csv(";", "utf-16-le")),
        ("t.jsonl", "\n".join(json.dumps(row) for row in ROWS).encode()),
        ("t.json", json.dumps(ROWS).encode()),
        ("t.parquet", None),
    ],
)
def test_every_kind_gives_the_same(tmp_path, name, content):
    if content is None:
        pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / name)
    else:
        write(tmp_path / name, content)
    source, studies = read(tmp_path)
    assert source.format == "manifest" and facts(studies) == WANTED
    assert source.rule.startswith(f"a study per study_id of {name}: film=image_path, ")
    assert facts(read(tmp_path / name)[1]) == WANTED


def test_columns_by_name(tmp_path):
    write(tmp_path / "export.csv", "Fall;Datei;Befund\n001;a.png|b.png;Alles klar.\n")
    names = {"study": "Fall", "image": "Datei", "report": "Befund"}
    _, studies = read(tmp_path, columns=names)
    assert facts(studies) == [("001", "001", "Alles klar.", "", None, ["a.png", "b.png"])]
    with pytest.raises(InputError) as caught:
        read(tmp_path / "export.csv", columns={**names, "report": "Befnd"})
    assert str(caught.value) == (
        f"{tmp_path}/export.csv has no column 'Befnd'\n"
        "  where: data.columns.report\n"
        "  cause: its columns are: Fall, Datei, Befund\n"
        "  next:  did you mean Befund?"
    )


def test_an_encoding_and_a_delimiter_by_name(tmp_path):
    write(tmp_path / "t.csv", "image,report\na.png,Größe\n".encode("mac_roman"))
    assert read(tmp_path / "t.csv", encoding="mac_roman")[1][0].report == "Größe"
    with pytest.raises(InputError, match=r"has bytes that .*utf-?8.* does not have\n.*\n  next:  save it as UTF-8, or"):
        read(tmp_path / "t.csv", encoding="utf-8")
    with pytest.raises(ValueError, match=r"unknown encoding 'utf-9'; use utf-8, cp1252"):
        read(tmp_path / "t.csv", encoding="utf-9")
    write(tmp_path / "u.csv", "image:report\na.png:Clear.\n")
    assert read(tmp_path / "u.csv", delimiter=":")[1][0].report == "Clear."
    with pytest.raises(ValueError, match=r"'::' is not one character"):
        read(tmp_path / "u.csv", delimiter="::")


def test_tables_of_a_folder(tmp_path):
    write(tmp_path / "train.csv", "image,report\na.png,Clear.\n")
    write(tmp_path / "val.jsonl", '{"image": "b.png", "report": "Large."}\n')
    write(tmp_path / "other.csv", "image,colour\na.png,red\n")  # files, but nothing about studies
    assert [(s.study_id, s.split) for s in read(tmp_path)[1]] == [("a", "train"), ("b", "val")]
    write(tmp_path / "more.csv", "image,report\nc.png,Clear.\n")
    write(tmp_path / "a.png", png())
    assert open_source(tmp_path, data=DataConfig()).format == "folder", "it is not known which table is meant"


def test_positions_of_several_films_in_a_cell(tmp_path):
    write(tmp_path / "t.csv", "study_id,image_path,position\n1,a.png|b.png,PA|LATERAL\n2,c.png|d.png,AP\n")
    _, studies = read(tmp_path / "t.csv")
    assert [[v.position for v in s.views] for s in studies] == [["PA", "LATERAL"], ["AP", "AP"]]


def test_rows_without_ids(tmp_path):
    write(tmp_path / "t.csv", "image,report\nf/a.png,1\nf/a.jpg,2\nb.png,3\n")
    assert [s.study_id for s in read(tmp_path / "t.csv")[1]] == ["f/a", "f/a.jpg", "b"]
    write(tmp_path / "t.csv", "image,report\na.png,1\na.png,2\n")
    with pytest.raises(InputError, match=r"t.csv names one film in two rows\n  where: line 3\n"):
        read(tmp_path / "t.csv")


@pytest.mark.parametrize("column, field", [("patient_id", "subject_id"), ("split", "split")])
def test_rows_that_disagree(tmp_path, column, field):
    values = ("p1", "p2") if column == "patient_id" else ("train", "test")
    write(tmp_path / "t.csv", f"study_id,image,{column}\n1,a.png,{values[0]}\n2,b.png,\n1,c.png,{values[1]}\n")
    with pytest.raises(InputError) as caught:
        read(tmp_path / "t.csv")
    assert str(caught.value).startswith(
        f"the rows of one study have two values of {field}\n"
        f"  where: {tmp_path}/t.csv, line 4\n"
        f"  cause: an earlier row of the study, {tmp_path}/t.csv, line 2, has another one\n"
    )


def test_reports_that_differ_are_counted(tmp_path):
    write(tmp_path / "t.csv", "study_id,image,report\n1,a.png,One.\n1,b.png,Two.\n1,c.png,\n")
    source, (study,) = read(tmp_path / "t.csv")
    assert study.report == "One."
    assert dict(source.ignored) == {"studies whose rows differ in their report (the first is used)": 1}


@pytest.mark.parametrize("blank", ["", "nan", "NaN", "NA", "N/A", "None", "null", "<NA>", "  "])
def test_blanks(tmp_path, blank):
    write(tmp_path / "t.csv", f"study_id,image,report,split,Edema\n1,a.png,{blank},{blank},{blank}\n")
    assert facts(read(tmp_path / "t.csv")[1]) == [("1", "1", None, "", None, ["a.png"])]


def test_ids_of_parquet(tmp_path):
    table = pa.table({"study_id": [12.0, float("nan")], "image": ["a.png", "b.png"]})
    pq.write_table(table.slice(0, 1), tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet")[1][0].study_id == "12"
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"has an empty study_id\n  where: column 'study_id', row 1"):
        read(tmp_path / "t.parquet")


@pytest.mark.parametrize("value", [12.5, float(2**60), "1.23457E+14"])
def test_ids_that_lost_digits(value):
    with pytest.raises(
        InputError, match=r"^an id was saved as a floating-point number and has lost digits\n  where: x"
    ):
        id_cell(value, where="x")


@pytest.mark.parametrize(
    "value, wanted", [("007", "007"), ("12.0", "12"), (12.0, "12"), (12, "12"), ("1.2.840", "1.2.840"), (" ", None)]
)
def test_ids(value, wanted):
    assert id_cell(value, where="x") == wanted


@pytest.mark.parametrize(
    "path, wanted",
    [
        *(("train/metadata.csv", "train"), ("data/test-00000-of-00002.parquet", "test"), ("valid.csv", "val")),
        *(("training-data.csv", "train"), ("trains/a.csv", ""), ("a/b.csv", "")),
    ],
)
def test_splits_of_paths(path, wanted):
    assert split_of_path(path) == wanted


@pytest.mark.parametrize(
    "text, message",
    [
        ("image,report\na.png,Heart, large.\n", r"a line of 3 cells under a header of 2\n  where: line 2\n"),
        ("image,report,report\na.png,a,b\n", r"has two columns 'report'\n  next:  rename one of them"),
    ],
)
def test_malformed_tables(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read(write(tmp_path / "t.csv", text))


def test_labels():
    assert merged([{"Edema": 0}, {"Edema": -1}, None]) == {"Edema": -1}
    assert merged([{"Edema": -1}, {"Edema": 1}]) == {"Edema": 1}
    assert merged([None, None]) is None
    assert observations({"E": True, "F": "0.0"}, {"E": "Edema", "F": "Fracture"}, where="t, line 1") == {
        "Edema": 1,
        "Fracture": 0,
    }


def test_members():
    assert is_member(tar_uri(__import__("pathlib").Path("/a b/#1.tar"), 512, 7))
    assert is_member(cell_uri(__import__("pathlib").Path("/t.parquet"), "image #&", 3, 1))
    assert not is_member("/data/a#1.png") and not is_member(None)


# --- any text

names = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), min_size=1, max_size=12)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=60)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 4), texts), min_size=1, max_size=8),
    delimiter=st.sampled_from(",;\t|"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_any_text_survives_a_csv(tmp_path_factory, rows, delimiter, encoding):
    path = tmp_path_factory.mktemp("t") / "t.csv"
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["study_id", "image", "findings"])
        writer.writerows([f"s{study}", f"{n}.png", text] for n, (study, text) in enumerate(rows))
    studies = {s.study_id: s for s in read(path)[1]}
    assert [*studies] == [*dict.fromkeys(f"s{study}" for study, _ in rows)]
    for study_id, study in studies.items():
        own = [(n, text) for n, (study, text) in enumerate(rows) if f"s{study}" == study_id]
        assert [v.image_id for v in study.views] == [f"{n}.png" for n, _ in own]
        first = next((text for _, text in own if text_cell(text)), None)
        assert study.findings == (" ".join(first.split()) or None if first else None)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(names, texts), max_size=30))
def test_gathered_rows_are_all_there_in_order(pairs):
    groups = list(gathered(FilmRow(name, image=text, where=str(n)) for n, (name, text) in enumerate(pairs)))
    assert [group[0].study_id for group in groups] == [*dict.fromkeys(name for name, _ in pairs)]
    for group in groups:
        own = [(text, str(n)) for n, (name, text) in enumerate(pairs) if name == group[0].study_id]
        assert [(row.image, row.where) for row in group] == own


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_a_table_or_an_input_error(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("t")
    for name in ("t.csv", "t.jsonl", "t.json", "t.parquet", "t.tar"):
        path = write(folder / name, data)
        try:
            list(open_source(path, data=DataConfig()).studies())
        except InputError as error:
            assert str(folder) in str(error) or "data.columns" in str(error)


def test_the_roles_of_common_names():
    found = find_columns(["Image Index", "PatientID", "View Position", "Full Report", "Subset"])
    assert (found.image, found.subject, found.position, found.report, found.split) == (
        *("Image Index", "PatientID", "View Position", "Full Report", "Subset"),
    )
