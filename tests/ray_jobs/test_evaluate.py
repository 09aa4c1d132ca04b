"""evaluate: predictions/ → metrics.json, per_study.parquet, index.html.

- the three files, by their contract; each study once; failed ones counted; films of the studies table on the page
- references that the predictions lack are taken from `studies`
- running again finds nothing to do; another cleaner on the same output is refused
- no folder, not predictions, not finished, a study twice, no reference, no study: exit code 2 and the next command
- --dry-run writes nothing; --limit takes the first N; what could not be computed is said
- no report text on the screen
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from megpt.config import Config, load_config
from megpt.data.studies import write_studies
from megpt.errors import InputError
from megpt.evaluation.statistics import SCORES
from megpt.evaluation.table import PER_STUDY_SCHEMA
from megpt.study import PREDICTIONS_SCHEMA, Study, View
from ray_jobs import evaluate
from ray_jobs.__main__ import main

TEXTS = ("Small left pleural effusion.", "The heart is enlarged.", "The lungs are clear. No effusion.", "Pacemaker.")


def row(number: int, **changes: Any) -> dict[str, Any]:
    text = TEXTS[number % len(TEXTS)]
    base = {"study_id": f"s{number}", "subject_id": f"p{number}", "image_ids": [f"i{number}"], "report": text}
    base |= {"reference": text, "prompt_id": 0, "num_tokens": 5, "finish_reason": "stop", "error": None, "model": "abc"}
    return {**base, **changes}


def predictions(folder: Path, rows: list[dict[str, Any]], *, finished: bool = True) -> Path:
    """A predictions/ folder of two files."""
    (folder / "reports").mkdir(parents=True)
    half = (len(rows) + 1) // 2
    for part, chosen in enumerate((rows[:half], rows[half:])):
        table = pa.Table.from_pylist(chosen, schema=PREDICTIONS_SCHEMA)
        pq.write_table(table, folder / "reports" / f"part-{part:05d}.parquet")
    if finished:
        (folder / "_SUCCESS").write_text("{}\n")
    return folder


def studies(folder: Path) -> Path:
    film = folder / "film.png"
    folder.mkdir()
    Image.new("L", (64, 64), 128).save(film)
    train = [Study(f"t{i}", report=TEXTS[i % len(TEXTS)], split="train") for i in range(10)]
    test = [Study(f"s{i}", views=(View("v", uri=str(film)),), report=TEXTS[i % len(TEXTS)]) for i in range(8)]
    write_studies(folder / "table", "train", train, 0)
    write_studies(folder / "table", "test", test, 0)
    return folder / "table"


def config(tmp_path: Path, *more: str) -> Config:
    paths = [f"predictions={tmp_path / 'predictions'}", f"output={tmp_path / 'out'}"]
    return load_config(None, [*paths, "evaluate.meteor=false", "evaluate.bootstrap=50", *more])


@pytest.mark.slow
def test_three_files(tmp_path: Path, ray_cluster: None, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [row(i) for i in range(8)]
    rows[1] |= {"report": None, "error": "film is truncated", "finish_reason": "error"}
    rows[2] |= {"reference": None}
    rows.append(row(99, reference=None))
    predictions(tmp_path / "predictions", rows)
    wanted = config(tmp_path, f"studies={studies(tmp_path / 'studies')}", "data.cleaner=r2gen-iu")
    assert evaluate.run(wanted) == 0

    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert (metrics["n"], metrics["n_failed"], metrics["n_without_reference"]) == (8, 1, 1)
    assert metrics["cleaner"] == "r2gen-iu" and list(metrics["scores"]) == list(SCORES)
    assert metrics["scores"]["ROUGE_L"] == pytest.approx(7 / 8)
    assert metrics["scores"]["clinical_micro_f1"] > metrics["baselines"]["permuted"]["clinical_micro_f1"]
    assert metrics["baselines"]["constant"]["BLEU_1"] > 0

    table = pq.read_table(tmp_path / "out/per_study.parquet")
    assert table.schema.equals(PER_STUDY_SCHEMA) and table["study_id"].to_pylist() == [f"s{i}" for i in range(8)]
    assert (tmp_path / "out/index.html").read_text().count("data:image/jpeg") == 8
    assert "effusion" not in capfd.readouterr().err

    assert evaluate.run(wanted) == 0
    assert "nothing to do" in capfd.readouterr().err
    with pytest.raises(InputError, match="exists from another config") as error:
        evaluate.run(wanted.overridden({"data.cleaner": "none"}))
    assert "cleaner: 'r2gen-iu' → 'none'" in str(error.value)


@pytest.mark.slow
def test_limit_and_no_studies(tmp_path: Path, ray_cluster: None, capfd: pytest.CaptureFixture[str]) -> None:
    predictions(tmp_path / "predictions", [row(i) for i in range(8)])
    assert evaluate.run(config(tmp_path, "limit=3")) == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["n"] == 3 and metrics["baselines"]["constant"] is None and "constant" in metrics["notes"]
    assert "no film at hand" in (tmp_path / "out/index.html").read_text()
    said = capfd.readouterr().err
    assert "evaluate: constant: the training split's reports are not known; set studies=PATH\n" in said


def test_dry_run_writes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    predictions(tmp_path / "predictions", [row(i) for i in range(4)])
    assert evaluate.run(config(tmp_path), dry_run=True) == 0
    assert "would score 4 studies, 0 of them failed, 0 without reference" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


BAD = {
    "no predictions at": lambda folder: None,
    "is not a predictions/ folder": lambda folder: folder.mkdir(),
    "are not finished": lambda folder: predictions(folder, [row(0)], finished=False),
    "holds no study": lambda folder: predictions(folder, []),
    "1 studies are in the predictions more than once": lambda folder: predictions(folder, [row(0), row(1), row(0)]),
    "none of the 2 studies in": lambda folder: predictions(folder, [row(i, reference=" .") for i in range(2)]),
    "cannot be read as Parquet": lambda folder: (predictions(folder, [row(0)]) / "reports/part-1.parquet").write_text(
        "x"
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input(tmp_path: Path, what: str, capfd: pytest.CaptureFixture[str]) -> None:
    BAD[what](tmp_path / "predictions")
    arguments = [f"predictions={tmp_path / 'predictions'}", f"output={tmp_path / 'out'}"]
    assert main(["evaluate", *arguments]) == 2
    said = capfd.readouterr().err
    assert what in said.replace("\n", " ") and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_no_predictions_key(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`predictions` is not set"):
        evaluate.run(load_config(None, [f"output={tmp_path / 'out'}"]))
