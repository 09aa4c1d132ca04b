"""What is known before the films are read reaches the studies/ table: indication, comparison, technique.

- R2Gen's annotation.json, a manifest, the Kaggle tables and MIMIC's reports give the sections that they have
- a studies/ table keeps them; a table that has none, such as one written by an older version, reads as none
- a prior report is read from a table to which somebody has added that column, through the list of a job too
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megpt.config import DataConfig
from megpt.data.shards import LIST_SCHEMA, from_row, to_row
from megpt.data.sources import open_source
from megpt.data.sources.reading import parse_report
from megpt.data.studies import Listed, part_path, read_studies, write_studies
from megpt.study import CONTEXT, Study


def sections(study: Study) -> tuple[str | None, ...]:
    return tuple(getattr(study, name) for name in CONTEXT)


def read(path: Path) -> list[Study]:
    return list(open_source(str(path), data=DataConfig()).studies())


def test_archives(tmp_path: Path) -> None:
    entry = {"id": "CXR1_1", "report": "Clear.", "image_path": ["a.png"], "indication": " Cough. ", "comparison": ""}
    (tmp_path / "images").mkdir()
    (tmp_path / "annotation.json").write_text(json.dumps({"train": [entry], "val": [], "test": []}))
    assert [sections(study) for study in read(tmp_path)] == [("Cough.", None, None, None)]
    table = tmp_path / "list.csv"
    table.write_text("study_id,image_path,report,Clinical History,comparison,technique\n1,a.png,Clear.,Cough,None,PA\n")
    assert [sections(study) for study in read(table)] == [("Cough", None, "PA", None)]  # None: a blank cell


@pytest.mark.parametrize("heading", ["INDICATION", "HISTORY", "REASON FOR EXAMINATION"])
def test_free_text(heading: str) -> None:
    report = parse_report(f"EXAM: CHEST\n\n{heading}:  Cough\n and fever.\n\nCOMPARISON: None.\n\nFINDINGS: Clear.\n")
    assert (report.indication, report.comparison, report.technique) == ("Cough and fever.", "None.", None)
    assert report.text == "Clear."


def test_tables(tmp_path: Path) -> None:
    study = Study("1", "p", report="Clear.", split="train", indication="Cough", comparison="None.", technique="PA")
    path = write_studies(tmp_path, "train", [study], 0)
    assert list(read_studies(tmp_path)) == [study]
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["indication", "comparison", "technique"]), path)
    assert [sections(s) for s in read_studies(tmp_path)] == [(None,) * 4]
    pq.write_table(table.append_column("prior_report", pa.array(["Effusion."])), path)
    (found,) = read_studies(tmp_path)
    assert found.prior_report == "Effusion." and part_path(tmp_path, "train", 0) == path
    (row,) = pa.Table.from_pylist([to_row(Listed(found))], schema=LIST_SCHEMA).to_pylist()
    assert from_row(row, split="train").study == found


def test_real_indications(real_data: Path) -> None:
    studies = read(real_data / "iu_xray_r2gen")
    assert sum(bool(study.indication) for study in studies) == 2907
    assert sum(bool(study.comparison) for study in studies) == 2645
