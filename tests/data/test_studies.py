"""The studies/ table.

- what is written is read back, with films, labels and empty fields; splits come in the order train, val, test
- columns and limit cut what is read; memory stays flat over a table of many films (row groups close at 64 MiB)
- the fingerprint comes from the footers; it changes with the content and not with the place
- a kill in the middle of a write leaves no file under its name
- a missing table, a missing split, and a file that is no Parquet are errors that name them
"""

from __future__ import annotations

import shutil

import pyarrow.parquet as pq
import pytest

from megpt.data import studies as module
from megpt.data.studies import fingerprint, read_studies, write_studies
from megpt.errors import InputError
from megpt.study import STUDIES_SCHEMA, Study, View


def study(number: int, **fields) -> Study:
    views = (View(f"{number}/a", "PA", data=b"x" * 10), View(f"{number}/b", "", uri="/somewhere/b.png"))
    return Study(f"s{number}", f"p{number // 2}", views, **{"report": f"report {number}", "split": "train", **fields})


@pytest.fixture
def table(tmp_path):
    write_studies(tmp_path / "t", "test", [study(9, split="test", labels={"Edema": -1, "Pneumonia": 1})], 0)
    write_studies(tmp_path / "t", "train", [study(1), study(2, report=None, findings="f", impression="i")], 0)
    write_studies(tmp_path / "t", "train", [study(n) for n in range(3, 6)], 1)
    return tmp_path / "t"


def test_what_is_written_is_read_back(table):
    read = list(read_studies(table))
    assert [s.study_id for s in read] == ["s1", "s2", "s3", "s4", "s5", "s9"]
    assert read[0] == study(1)
    assert read[1] == study(2, report=None, findings="f", impression="i")
    assert read[5] == study(9, split="test", labels={"Edema": -1, "Pneumonia": 1})
    assert sorted(p.name for p in table.glob("data/*/*")) == ["part-00000.parquet"] * 2 + ["part-00001.parquet"]
    assert pq.read_schema(table / "data/split=test" / "part-00000.parquet").equals(STUDIES_SCHEMA)


def test_columns_and_limit(table):
    read = list(read_studies(table, "train", columns=["report"], limit=3))
    assert [(s.study_id, s.report, s.views, s.split) for s in read] == [
        ("s1", "report 1", (), "train"),
        ("s2", None, (), "train"),
        ("s3", "report 3", (), "train"),
    ]
    assert list(read_studies(table, limit=0)) == []


def test_fingerprint(table, tmp_path):
    before = fingerprint(table)
    shutil.copytree(table, tmp_path / "copy")
    assert fingerprint(tmp_path / "copy") == before
    write_studies(table, "train", [study(1), study(2, report="another")], 0)
    assert fingerprint(table) != before


def test_row_groups_close_by_size(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROW_GROUP_BYTES", 100)
    path = write_studies(tmp_path, "train", (study(n) for n in range(25)), 0)
    assert pq.ParquetFile(path).metadata.num_row_groups == 6
    assert len(list(read_studies(tmp_path))) == 25
    # texts fill one as films do
    path = write_studies(tmp_path / "texts", "train", (Study(f"{n}", report="x" * 49) for n in range(8)), 0)
    assert pq.ParquetFile(path).metadata.num_row_groups == 4


def test_a_failure_in_the_middle_leaves_no_file(tmp_path):
    def broken():
        yield study(1)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_studies(tmp_path, "train", broken(), 0)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_errors(table, tmp_path):
    with pytest.raises(InputError, match=r"^no studies/ table at .*absent\n  next:  run `megpt prepare` first"):
        list(read_studies(tmp_path / "absent"))
    with pytest.raises(InputError, match=r"^no studies of split 'val' in .*\n  cause: it holds: test, train\n"):
        list(read_studies(table, "val"))
    with pytest.raises(InputError, match=r"^unknown split 'dev'\n"):
        list(read_studies(table, "dev"))
    with pytest.raises(InputError, match=r"is not a studies/ table"):
        list(read_studies(tmp_path))
    (table / "data/split=train" / "part-00000.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match=r"part-00000.parquet cannot be read as Parquet"):
        list(read_studies(table))
    with pytest.raises(InputError, match=r"cannot be read as Parquet"):
        fingerprint(table)
