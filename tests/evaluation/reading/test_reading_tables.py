"""Files of reports as tables.

- CSV and TSV with any of four delimiters and any of the usual encodings, gzipped or not: the same rows come back
- JSON as a list, by id, as columns, as R2Gen's annotation, as lines, in one object; Parquet as a file or a folder
- a malformed row is an error with row and column; so are bytes of two encodings, a workbook, an empty file
- whatever texts a table holds, every writer's file gives them back (property tests)
- random bytes are read or refused, never worse
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from megpt.config import ColumnsConfig
from megpt.errors import InputError
from megpt.evaluation.reading import json_tables
from megpt.evaluation.reading.columns import known_names
from megpt.evaluation.reading.tables import ANNOTATION, KEY, SPLIT, TEXT, Table, open_table

NAMES = known_names(ColumnsConfig())
ROWS = [
    {"study_id": "s1", "report": "The heart, is normal; clear.", "reference": 'A "hilar" mass | 5"'},
    {"study_id": "007", "report": "Zwei\nZeilen über Ödem", "reference": ""},
]


def table(path: Path, **more: Any) -> Table:
    return open_table(path, names=NAMES, **more)


def rows(path: Path, **more: Any) -> list[dict[str, Any]]:
    return [row for _, row in table(path, **more).rows()]


def delimited(delimiter: str, data: list[dict[str, str]] = ROWS, **more: Any) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(data[0]), delimiter=delimiter, **more)
    writer.writeheader()
    writer.writerows(data)
    return text.getvalue()


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("packed", [False, True])
def test_delimited(tmp_path: Path, delimiter: str, encoding: str, packed: bool) -> None:
    data = delimited(delimiter).encode(encoding)
    path = tmp_path / "results.data"
    path.write_bytes(gzip.compress(data) if packed else data)
    assert rows(path) == ROWS and table(path).columns == ("study_id", "report", "reference")


def test_what_it_is_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(delimited("\t").encode("cp1252"))
    assert table(path).kind == "TSV, tabs, cp1252"
    path.write_text(delimited(";"))
    assert table(path).kind == "CSV, semicolons, utf-8"
    assert rows(path, encoding="latin-1", delimiter=";")[1]["report"] == "Zwei\nZeilen Ã¼ber Ã\x96dem"
    with pytest.raises(InputError, match="unknown encoding 'utf-9'"):
        table(path, encoding="utf-9")
    with pytest.raises(InputError, match="the delimiter ';;' is not one character"):
        table(path, delimiter=";;")


def test_a_file_without_a_header_is_a_list_of_texts(tmp_path: Path) -> None:
    path = tmp_path / "res.csv"
    pd.DataFrame(["the heart is normal .", "a, b", ""]).to_csv(path, index=False, header=False)
    assert rows(path) == [{TEXT: "the heart is normal ."}, {TEXT: "a, b"}, {TEXT: ""}]
    path.write_text("alpha,beta\n1,2\n")
    with pytest.raises(
        InputError, match=r"has no column whose name is known\n  cause: its first line holds: alpha, beta;"
    ):
        table(path)
    path.write_text("report,report\n1,2\n")
    with pytest.raises(InputError, match="has two columns 'report'"):
        table(path)


MALFORMED = {
    "1,a,b\n2,c\n": "row 2 (line 3), after column 'report'",
    "1,a,b\n2,c,d,e\n": "row 2 (line 3), behind column 'reference'",
    '1,a,b\n2,"c\nd\n': "row 2 (line 3), column 'report'",
    '1,"a\nb",c\n2,"d" e,f\n': "row 2 (line 4), column 'report'",
    '1,"a,b\nc"d,"e"\n': "row 1 (line 2), column 'report'",
    '1,a,"b" "c"\n': "row 1 (line 2), column 'reference'",
}


@pytest.mark.parametrize("body", MALFORMED)
def test_malformed_rows(tmp_path: Path, body: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text("study_id,report,reference\n" + body)
    with pytest.raises(InputError) as error:
        rows(path)
    assert error.value.where == MALFORMED[body] and error.value.cause


def test_texts_of_100_000_characters_control_characters_and_html(tmp_path: Path) -> None:
    texts = ["word " * 20_000, "a\x00b\x1b[31m\x0bc", "<script>alert(1)</script> & <b>", "שלום 日本語 اَلْعَرَبِيَّةُ"]
    data = [{"study_id": str(i), "report": text} for i, text in enumerate(texts)]
    path = tmp_path / "a"
    path.write_text(delimited(",", data), encoding="utf-8", newline="")
    assert [row["report"] for row in rows(path)] == texts
    path.write_text("\n".join(json.dumps(row) for row in data))
    assert [row["report"] for row in rows(path)] == texts


def test_bytes_of_two_encodings(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("study_id,report\n1,Ödem\n".encode() + "2,Ödem\n".encode("cp1252"))
    with pytest.raises(InputError, match=r"is neither UTF-8 nor cp1252 throughout\n  where: line 3\n"):
        table(path)
    assert len(rows(path, encoding="latin-1")) == 2
    path.write_bytes(b"study_id,report\n1,\x81\n")
    with pytest.raises(InputError, match="bytes that cp1252 does not have"):
        table(path)
    with pytest.raises(InputError, match=r"is not ascii\n  where: at or after row 1\n"):
        rows(path, encoding="ascii")


def test_json_lists_and_records_by_id(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS, indent=1))
    assert rows(path) == ROWS and table(path).kind == "JSON list"
    path.write_text(json.dumps(["a", None, "b"]))
    assert rows(path) == [{TEXT: "a"}, {TEXT: None}, {TEXT: "b"}]
    path.write_text('\ufeff{"s1": {"hyp": "a", "ref": NaN}, "s2": ["b"], "Bleu_1": 0.3}')
    by_id = rows(path)
    assert [row[KEY] for row in by_id] == ["s1", "s2", "Bleu_1"] and by_id[1][TEXT] == ["b"] and by_id[2][TEXT] == 0.3
    assert by_id[0]["ref"] != by_id[0]["ref"]
    path.write_bytes(json.dumps(ROWS).encode("utf-16"))
    assert rows(path) == ROWS


def test_a_list_beside_scores(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"metrics": {"BLEU_4": 0.1}, "results": ROWS, "seeds": [1, 2]}))
    assert rows(path) == ROWS and table(path).kind == "JSON list 'results'"


def test_json_as_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"study_id": ["1", "2"], "preds": ["a", "b"]}))
    assert rows(path) == [{"study_id": "1", "preds": "a"}, {"study_id": "2", "preds": "b"}]
    pd.DataFrame(ROWS).to_json(path)
    assert rows(path) == ROWS
    # texts by id look alike, but no name is known
    path.write_text(json.dumps({"s1": ["a"], "s2": ["b"]}))
    assert rows(path) == [{KEY: "s1", TEXT: ["a"]}, {KEY: "s2", TEXT: ["b"]}]


def test_json_lines_even_of_one_record_or_of_long_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for data in (ROWS, ROWS[:1], [{"id": "1", "report": "x" * 300_000}, {"id": "2", "report": "y"}]):
        path.write_text("\n\n".join(json.dumps(row) for row in data) + "\n")
        assert rows(path) == data
    path.write_text('{"id": "1", "report": "a"}\n{"id": "2", "report": \n')
    with pytest.raises(InputError, match=r"is not JSON lines\n  where: line 2, column 22"):
        rows(path)


def test_an_annotation(tmp_path: Path) -> None:
    path = tmp_path / "annotation.json"
    path.write_text(
        json.dumps({"train": [{"id": "a", "report": "x"}], "val": [], "test": [{"id": "b", "report": "y"}]})
    )
    assert table(path).kind == ANNOTATION
    assert [(row["id"], row[SPLIT]) for row in rows(path)] == [("a", "train"), ("b", "test")]


@pytest.mark.parametrize(
    "text, what",
    [
        ('{"a": "b"', "is not valid JSON\n  where: line 1, column 10"),
        ("[1, 2]", "entry 1 is int, neither a record nor a text"),
        ("{}", "holds no reports"),
        ('{"s1": "a", "s2": "b", "s1": "c"}', "1 ids are in .* more than once\n  where: s1\n"),
        ("[" * 100_000, "is nested too deeply|is not valid JSON"),
        ('{"train": [3]}', r"entry 1 \(train\) is int, not a record"),
        (" \n", "is empty"),
        ("PK\x03\x04rest", "is a workbook or a zip archive"),
        ("PAR1rest", "cannot be read as Parquet"),
    ],
)
def test_damaged(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError, match=what):
        rows(path)


def test_a_large_json_streams_to_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    shapes: list[Any] = [ROWS, {"s1": {"hyp": "a"}, "s2": "b", "x": 0.5}, {"train": ROWS, "test": ROWS[:1]}]
    for shape in shapes:
        path.write_text(json.dumps(shape))
        wanted, kind = rows(path), table(path).kind
        with monkeypatch.context() as patch:
            patch.setattr(json_tables, "SMALL", 0)
            assert rows(path) == wanted and table(path).kind == kind
            path.write_text("[" + json.dumps(ROWS[0]))
            with pytest.raises(InputError, match="is not valid JSON"):
                rows(path)


def test_a_small_file_may_unpack_to_a_large_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(json.dumps({f"s{i}": "a" * 1000 for i in range(100)}).encode()))
    assert path.stat().st_size < 10_000
    monkeypatch.setattr(json_tables, "SMALL", 50_000)
    monkeypatch.setattr(json_tables, "_parsed", None)
    assert len(rows(path)) == 100


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{**row, "views": b"film"} for row in ROWS]), tmp_path / "a.parquet")
    assert rows(tmp_path / "a.parquet") == ROWS
    for split in ("train", "test"):
        (tmp_path / "table" / f"split={split}").mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "table" / f"split={split}" / "part-0.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "table" / "failed.parquet")
    assert [row[SPLIT] for row in rows(tmp_path / "table")] == ["test", "test", "train", "train"]
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="it has no Parquet file"):
        table(tmp_path / "none")


# What text files cannot hold is left out: half characters, and NUL at the ends of UTF-16.
texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=40)
records = st.lists(
    st.fixed_dictionaries({"study_id": texts, "report": texts, "reference": texts}), min_size=1, max_size=6
)


@given(records, st.sampled_from([",", ";", "\t", "|"]), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
@example([{"study_id": "\ufeff", "report": "\u2028", "reference": '"'}], ",", "utf-8")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_what_csv_writes_is_read(tmp_path: Path, data: list[dict[str, str]], delimiter: str, encoding: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(delimited(delimiter, data).encode(encoding))
    assert rows(path) == data


@given(records, st.sampled_from(["list", "lines", "columns", "parquet"]), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
def test_what_other_writers_write_is_read(
    tmp_path: Path, data: list[dict[str, str]], kind: str, ascii_only: bool
) -> None:
    path = tmp_path / "a"
    if kind == "list":
        path.write_text(json.dumps(data, ensure_ascii=ascii_only), encoding="utf-8")
    elif kind == "lines":
        path.write_text("".join(json.dumps(r, ensure_ascii=ascii_only) + "\n" for r in data), encoding="utf-8")
    elif kind == "columns":
        columns = {name: [row[name] for row in data] for name in data[0]}
        path.write_text(json.dumps(columns, ensure_ascii=ascii_only), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(data), path)
    assert rows(path) == data


@given(
    st.binary(max_size=300), st.sampled_from([b"", b"study_id,report\n", b"{", b"[", b"PAR1", b"\x1f\x8b", b"\xff\xfe"])
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes, start: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(start + data)
    try:
        list(table(path).rows())
    except InputError as error:
        assert str(path) in error.what
