"""The tables on disk, opened with other people's readers (docs/outputs.md).

- each line of the page reads the studies of prepare, and the reports of generate, and finds all of them once
- the folder holds nothing but Parquet, also while a job is writing and after one was killed
- labels are a struct of 14 numbers; the card names the splits; the page names every column
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import dask.dataframe
import datasets
import duckdb
import pandas
import polars
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import ray.data

from megpt.config import DataConfig
from megpt.data import prepare
from megpt.data.sources import open_source
from megpt.data.studies import write_rows, write_studies
from megpt.evaluation.table import PER_STUDY_SCHEMA
from megpt.generation.predictions import Predictions
from megpt.study import CHEXPERT, FAILED_SCHEMA, FILMS_FAILED_SCHEMA, PREDICTIONS_SCHEMA, STUDIES_SCHEMA, Study, View

PAGE = (Path(__file__).parents[2] / "docs" / "outputs.md").read_text(encoding="utf-8")
STUDIES, REPORTS, JOIN = (block.strip().splitlines() for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
LABELS: dict[str, dict[str, int] | None] = {"train": {"Edema": -1, "Pneumonia": 1}, "val": None, "test": {}}
TOOLS = {
    "pandas": pandas,
    "pyarrow": pyarrow,
    "polars": polars,
    "duckdb": duckdb,
    "dask": dask,
    "ray": ray,
    "datasets": datasets,
}


def studies(part: int, split: str, count: int) -> list[Study]:
    views = (View("film", "PA", b"encoded"),)
    texts = [None if n % 3 else "Clear." for n in range(count)]
    return [Study(f"{part}{split}{n}", f"p{n}", views, text, labels=LABELS[split]) for n, text in enumerate(texts)]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """prepare's and generate's folders with all that lies in them, and what a killed writer leaves."""
    here = tmp_path_factory.mktemp("tables")
    out = here / "studies"
    for part, (split, count) in enumerate((("train", 5), ("train", 2), ("val", 2), ("test", 3))):
        write_studies(out, split, studies(part, split, count), part)
    prepare.describe(out)
    write_rows(out / "failed.parquet", [Study("broken").failed_row("missing file")], FAILED_SCHEMA)
    (out / "_SUCCESS").touch()
    predictions = Predictions.create(here / "reports", open_source(out, data=DataConfig()), split="all", shard_size=5)
    for shard in predictions.left():
        rows = [{"study_id": entry.study.study_id, "finish_reason": "stop"} for entry in predictions.studies(shard)]
        predictions.write_shard(shard, rows)
    predictions.finish(seconds=1, config={})
    for folder in (out, here / "reports"):
        with pytest.raises(KeyboardInterrupt):
            write_rows(folder / "x.parquet", killed(folder), STUDIES_SCHEMA, aside=folder)
    names = [entry.study.study_id for shard in predictions.shards for entry in predictions.shards.read(shard)]
    scores = [{"study_id": name, "BLEU_1": 0.5, "scored": True} for name in names]
    write_rows(here / "evaluation" / "per_study.parquet", scores, PER_STUDY_SCHEMA)
    return here


def killed(folder: Path):
    assert [p.suffix for p in folder.glob(".*")] and not list((folder / "data").glob("**/*.tmp"))
    yield from ()
    raise KeyboardInterrupt


def ids(found: Any) -> list[str]:
    """The study ids that any of the readers found."""
    if isinstance(found, dict):  # datasets: a table a split
        return sorted(name for table in found.values() for name in table["study_id"])
    if isinstance(found, polars.LazyFrame):
        found = found.collect()
    if isinstance(found, duckdb.DuckDBPyRelation):
        found = found.df()
    if isinstance(found, dask.dataframe.DataFrame):
        found = found.compute()
    if isinstance(found, pyarrow.dataset.Dataset):
        return sorted(found.to_table()["study_id"].to_pylist())
    if isinstance(found, ray.data.Dataset):
        return sorted(row["study_id"] for row in found.take_all())
    return sorted(found["study_id"])


def run(line: str, out: Path) -> Any:
    return eval(line.replace("OUT", str(out)).replace("EVAL", str(out.parent / "evaluation")), dict(TOOLS))


def check(line: str, out: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    files = [path for path in out.glob("*/**/part-*.parquet") if "plan" not in path.parts]
    whole = sorted(name for path in files for name in pq.ParquetFile(path).read()["study_id"].to_pylist())
    assert len(set(whole)) == 12 and ids(run(line, out)) == whole


@pytest.mark.parametrize("line", [line for line in STUDIES if not line.startswith("ray")])
def test_studies(tables: Path, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check(line, tables / "studies", monkeypatch, tmp_path)


@pytest.mark.parametrize("line", [line for line in REPORTS if not line.startswith("ray")])
def test_reports(tables: Path, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check(line, tables / "reports", monkeypatch, tmp_path)


@pytest.mark.slow
def test_ray(tables: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for lines, folder in ((STUDIES, "studies"), (REPORTS, "reports")):
        (line,) = (line for line in lines if line.startswith("ray"))
        check(line, tables / folder, monkeypatch, tmp_path)


def test_scores_beside_reports(tables: Path) -> None:
    (line,) = JOIN
    joined = run(line, tables / "reports").df()
    assert len(joined) == 12 and set(joined["BLEU_1"]) == {0.5} and set(joined["finish_reason"]) == {"stop"}


def test_labels_and_splits(tables: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    found = datasets.load_dataset(str(tables / "studies"))
    assert {split: len(table) for split, table in found.items()} == {"train": 7, "val": 2, "test": 3}
    train = found["train"][0]["labels"]
    assert list(train) == list(CHEXPERT) and {n: v for n, v in train.items() if v is not None} == LABELS["train"]
    frame = pandas.read_parquet(tables / "studies" / "data")
    assert frame.groupby("split", observed=True).size().to_dict() == {"train": 7, "val": 2, "test": 3}
    read = {s.study_id: s.labels for s in open_source(tables / "studies", data=DataConfig()).studies()}
    assert (read["0train0"], read["2val0"], read["3test0"]) == (LABELS["train"], None, {})
    with pytest.raises(ValueError, match=r"^not observations of CheXpert: edema$"):
        Study("s", labels={"edema": 1}).to_row()


def test_nothing_but_parquet(tables: Path) -> None:
    for folder in (tables / "studies" / "data", tables / "reports" / "reports"):
        assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".parquet"}


def test_the_page_names_every_column() -> None:
    sections = dict(re.findall(r"## `OUT/(\S+)`: .*?\n(.*?)(?=\n## |\Z)", PAGE, re.DOTALL))
    schemas = {
        "data": [*STUDIES_SCHEMA.names, "split"],
        "reports": PREDICTIONS_SCHEMA.names,
        "per_study.parquet": PER_STUDY_SCHEMA.names,
        "failed.parquet": FAILED_SCHEMA.names,
        "films_failed.parquet": FILMS_FAILED_SCHEMA.names,
    }
    assert sections.keys() == schemas.keys()
    for name, columns in schemas.items():
        cells = re.findall(r"^\| (`.*?) \|", sections[name], re.MULTILINE)
        assert [column for cell in cells for column in re.findall(r"`(.*?)`", cell)] == columns
