"""Tables that are made to fill the memory: each is refused with one error, or costs one study, in bounded memory.

- Parquet: rows, a text, a list, a page or a film that unfolds from kilobytes to gigabytes
- CSV and JSON: a line, a row, an entry or a text without end, also packed
- a study of 100,000 films fails alone; ids, paths and failed studies are held on disk or not at all
- a study that failed is written down without the texts and films of the others
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from local_jobs import LocalPrepare
from PIL import Image

from megpt.config import DataConfig, load_config
from megpt.data.ids import MAX_FILMS, FirstSeen, scratch
from megpt.data.parquet import read_rows
from megpt.data.sources import open_source
from megpt.errors import InputError, MegptError
from megpt.generation.predictions import Predictions

ROOM_MIB = 250
MEASURED = """
import resource, sys
from pathlib import Path
from megpt.config import DataConfig
from megpt.data.sources import open_source
from megpt.data.studies import with_films
from megpt.errors import InputError
import megpt.data.sources.manifest, megpt.data.sources.table, megpt.data.sources.rexrank
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
try:
    studies = open_source(sys.argv[1], data=DataConfig(format=sys.argv[2])).listed()
    for number, study in enumerate(with_films(studies)):
        if number == 50:
            break
    said = "no error"
except InputError as error:
    said = str(error)
print(peak() - before)
print(said)
"""


def listed(path: Path, format: str = "manifest") -> tuple[int, str]:
    """MiB that it took to list an archive and fetch the films of its first studies, and the error."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURED, str(path), format], capture_output=True, text=True, check=True
    )
    mib, _, said = run.stdout.partition("\n")
    return int(mib), said.strip()


def repeated(text: Any, times: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([0] * times, pa.int32()), [text])


def table_of(path: Path, rows: int, **columns: Any) -> Path:
    names = {"study_id": [f"s{n}" for n in range(rows)], "image_path": ["a.png"] * rows}
    pq.write_table(pa.table({**names, **columns}), path, compression="zstd")
    return path


BOMBS = {
    "rows": "rows that unfold to over 1,000 times its size",
    "text": "a text of 40 MiB",
    "list": "12,000,001 values in 2 rows",
    "page": "a column that unfolds to",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_parquet_that_unfolds(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "manifest.parquet"
    if kind == "rows":
        table_of(path, 50_000, report=repeated("x" * 100_000, 50_000))
        assert path.stat().st_size < 200_000
    elif kind == "text":
        table_of(path, 60, report=["short"] * 59 + ["x" * (40 << 20)])
    elif kind == "list":
        values = pa.DictionaryArray.from_arrays(pa.array(np.zeros(12_000_001, np.int32)), ["film.png"])
        lists = pa.ListArray.from_arrays(pa.array([0, 1, 12_000_001], pa.int32()), values)
        pq.write_table(pa.table({"study_id": ["a", "b"], "image_path": lists}), path)
    else:
        table = pa.table({"study_id": ["a"] * 300, "image_path": ["b"] * 300, "report": [" " * (1 << 20)] * 300})
        pq.write_table(table, path, compression="zstd", use_dictionary=False)
    mib, said = listed(path)
    assert said.startswith(f"{path} has {BOMBS[kind]}"), said
    assert "\n  where: " in said and "made to fill the memory" in said
    assert mib < ROOM_MIB


def test_films_that_unfold_are_read_one_at_a_time(tmp_path: Path) -> None:
    film = np.random.default_rng(0).bytes(1 << 20)
    path = tmp_path / "films.parquet"
    one = pa.array([{"bytes": film, "path": "a.png"}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    many = one.take(pa.array([0] * 1000))
    pq.write_table(pa.table({"study_id": [f"s{n}" for n in range(1000)], "image": many}), path)
    assert path.stat().st_size < 5 << 20
    mib, said = listed(path, "huggingface")
    assert said == "no error" and mib < ROOM_MIB


@pytest.mark.parametrize("kind", ["line", "header", "row"])
def test_csv_without_end(kind: str, tmp_path: Path) -> None:
    path, head = tmp_path / "manifest.csv.gz", "study_id,image_path,report\n"
    with gzip.open(path, "wt", compresslevel=1) as file:
        if kind == "row":  # each line ends, and the quotation mark does not
            file.write(head + "s1,a.png," + ('"' + "x" * (1 << 20) + '\n",') * 80 + "\n")
        else:
            file.write((head if kind == "line" else "") + "x" * (100 << 20))
    mib, said = listed(path)
    expected = {
        "line": "has a line that does not end",
        "header": "has no column of films",
        "row": "has a row of more than 64 MiB",
    }
    assert said.startswith(f"{path} {expected[kind]}"), said
    assert mib < ROOM_MIB and len(said) < 1000


@pytest.mark.parametrize("kind", ["text", "entry"])
def test_json_without_end(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "ReXRank.json"
    films = ["a.png"] * (400_000 if kind == "entry" else 1)
    report = "x" * ((60 << 20) if kind == "text" else 1)
    good = {"image_path": ["b.png"], "context": "", "report": "clear"}
    bad = {"image_path": films, "context": "", "report": report}
    path.write_text(json.dumps({"s1": good, "s2": bad}))
    mib, said = listed(path, "rexrank")
    assert said.startswith(f"{path} has an entry of more than 16 MiB\n"), said
    assert mib < ROOM_MIB


def test_a_study_of_100_000_films_fails_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    lines = ["study_id,image_path", "good,a.png", *(f"huge,f{n}.png" for n in range(100_000))]
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    job = [f"source={tmp_path}/manifest.csv", f"output={out}", "prepare.max_failed_fraction=1"]
    assert LocalPrepare.run(load_config(None, job)) == 0
    (failed,) = read_rows(out / "failed.parquet")
    assert (failed["study_id"], failed["error"]) == ("huge", "more than 1,000 films")
    assert len(failed["views"]) == MAX_FILMS
    # in one row of a table, too
    films = [
        [{"image_id": f"{n}", "position": "", "bytes": b"x", "uri": None} for n in range(1 + 100_000 * huge)]
        for huge in (0, 1)
    ]
    schema = pa.schema(
        [
            ("study_id", pa.string()),
            (
                "views",
                pa.list_(
                    pa.struct(
                        [
                            ("image_id", pa.string()),
                            ("position", pa.string()),
                            ("bytes", pa.binary()),
                            ("uri", pa.string()),
                        ]
                    )
                ),
            ),
        ]
    )
    pq.write_table(pa.table({"study_id": ["good", "huge"], "views": films}, schema), tmp_path / "table.parquet")
    job[:2] = [f"source={tmp_path}/table.parquet", f"output={tmp_path}/second"]
    with pytest.raises(InputError, match="not one of 2 studies"):
        LocalPrepare.run(load_config(None, job))


def test_a_failed_study_costs_its_own_row(tmp_path: Path) -> None:
    """The texts of the plan are overwritten: what does not read them does not notice."""
    lines = ["study_id,image_path,report", *(f"s{n},f{n}.png,{'text ' * 40}{n}" for n in range(8))]
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    source = open_source(tmp_path / "manifest.csv", data=DataConfig())
    predictions = Predictions.create(tmp_path / "out", source, split="all", shard_size=2)
    for shard in range(4):
        studies = [one.study.study_id for one in predictions.studies(shard)]
        predictions.write_shard(shard, ({"study_id": s, "error": "damaged" if shard == 2 else None} for s in studies))
    plan = tmp_path / "out" / "plan" / predictions.shards[0].file
    about = pq.ParquetFile(plan).metadata.row_group(0)
    (report,) = [about.column(n) for n in range(about.num_columns) if about.column(n).path_in_schema == "report"]
    with plan.open("rb+") as file:
        file.seek(report.dictionary_page_offset or report.data_page_offset)
        file.write(b"\xff" * report.total_compressed_size)
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        predictions.studies(2)
    assert predictions.write_failed() == 2
    rows = list(read_rows(tmp_path / "out" / "failed.parquet"))
    assert [(row["study_id"], row["views"][0]["image_id"]) for row in rows] == [("s4", "f4.png"), ("s5", "f5.png")]


def test_what_is_seen_is_held_on_disk(tmp_path: Path) -> None:
    seen = FirstSeen()
    assert [seen.setdefault(key, value) for key, value in ("a1", "b2", "a3")] == ["1", "2", "1"]
    seen.close()
    db = scratch("CREATE TABLE t (x BLOB)")
    db.execute("PRAGMA max_page_count = 10")
    with pytest.raises(MegptError, match="no space left for the temporary list of studies\n  where: "):
        for _ in range(100):
            db.execute("INSERT INTO t VALUES (?)", (b"x" * 4000,))
