"""evaluate: predictions/ → metrics.json, per_study.parquet, index.html.

- the three files, by their contract; each study once; failed ones counted; films of the studies table on the page
- references that the predictions lack are taken from `studies`
- running again finds nothing to do; another cleaner on the same output is refused
- no folder, not predictions, not finished, a study twice, references of other studies: exit code 2, the next command
- anyone's file in one command; without a single reference there is a result without scores
- --dry-run writes nothing; --limit takes the first N; what could not be computed is said
- an unknown further score is refused with those that are known
- the page has the prompts and the training curves of the checkpoint
- no report text on the screen
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import save_file

from megpt.config import Config, load_config
from megpt.data.studies import write_studies
from megpt.errors import InputError
from megpt.evaluation.metrics import evaluate
from megpt.evaluation.pairs import Pair, Pairs
from megpt.evaluation.statistics import SCORES
from megpt.evaluation.table import PER_STUDY_SCHEMA
from megpt.study import PREDICTIONS_SCHEMA, Study, View
from ray_jobs.__main__ import main
from ray_jobs.evaluate import Evaluate, extras

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
def test_three_files(tmp_path: Path, in_both_places: str, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [row(i) for i in range(8)]
    rows[1] |= {"report": None, "error": "film is truncated", "finish_reason": "error"}
    rows[2] |= {"reference": None}
    rows.append(row(99, reference=None))
    predictions(tmp_path / "predictions", rows)
    wanted = config(tmp_path, f"studies={studies(tmp_path / 'studies')}", "data.cleaner=r2gen-iu")
    assert Evaluate.run(wanted) == 0

    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert (metrics["n"], metrics["n_failed"], metrics["n_without_reference"]) == (8, 1, 1)
    assert metrics["cleaner"] == "r2gen-iu" and list(metrics["scores"]) == list(SCORES)
    assert metrics["scores"]["ROUGE_L"] == pytest.approx(7 / 8)
    assert metrics["scores"]["clinical_micro_f1"] > metrics["baselines"]["permuted"]["clinical_micro_f1"]
    assert metrics["baselines"]["constant"]["BLEU_1"] > 0

    table, wanted_ids = pq.read_table(tmp_path / "out/per_study.parquet"), [f"s{i}" for i in range(8)]
    assert table.schema.equals(PER_STUDY_SCHEMA) and table["study_id"].to_pylist() == [*wanted_ids, "s99"]
    assert table["scored"].to_pylist() == [True] * 8 + [False] and table["split"].to_pylist() == ["test"] * 8 + [None]
    assert set(table["prompt_id"].to_pylist()) == {0}
    html = (tmp_path / "out/index.html").read_text()
    assert html.count("data:image/jpeg") == 8 and metrics["signature"] in html and '"s99"' in html
    assert not (tmp_path / "out/page").exists()
    assert "effusion" not in capfd.readouterr().err


@pytest.mark.slow
def test_limit_and_no_studies(tmp_path: Path, without_ray: None, capfd: pytest.CaptureFixture[str]) -> None:
    predictions(tmp_path / "predictions", [row(i) for i in range(8)])
    assert Evaluate.run(config(tmp_path, "limit=3")) == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["n"] == 3 and metrics["baselines"]["constant"] is None and "constant" in metrics["notes"]
    assert "no film at hand" in (tmp_path / "out/index.html").read_text()
    said = capfd.readouterr().err
    assert "evaluate: constant: the training split's reports are not known; set training=PATH or studies=PATH\n" in said


def test_dry_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    predictions(tmp_path / "predictions", [row(i) for i in range(4)])
    assert Evaluate.run(config(tmp_path), dry_run=True) == 0
    assert "would score 4 studies, 0 of them failed, 0 without reference" in capfd.readouterr().err


BAD = {
    "no predictions at": lambda folder: None,
    "is not a predictions/ folder": lambda folder: folder.mkdir(),
    "are not finished": lambda folder: predictions(folder, [row(0)], finished=False),
    "holds no study": lambda folder: predictions(folder, []),
    "1 studies are in the predictions more than once": lambda folder: predictions(folder, [row(0), row(1), row(0)]),
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


def test_references_of_other_studies(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    predictions(tmp_path / "predictions", [row(i, reference=None) for i in range(2)])
    (tmp_path / "refs.csv").write_text("study_id,report\nelsewhere,The heart is enlarged.\n")
    paths = [f"predictions={tmp_path / 'predictions'}", f"output={tmp_path / 'out'}"]
    for more in (["references=" + str(tmp_path / "refs.csv")], ["data.cleaner=r2gen-iu+unk3"]):
        assert main(["evaluate", *paths, *more]) == 2
    said = capfd.readouterr().err
    assert "none of the 2 predictions has a reference in" in said and "needs training reports" in said
    assert "enlarged" not in said and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_anyones_file(tmp_path: Path, without_ray: None, capfd: pytest.CaptureFixture[str]) -> None:
    """A CSV, R2Gen's annotation for truth and training, a recipe: one command, with the submission to ReXrank."""
    entries = {split: [{"id": f"{split}{i}", "report": TEXTS[i % 4]} for i in range(8)] for split in ("train", "test")}
    (tmp_path / "annotation.json").write_text(json.dumps(entries))
    rows = [f'test{i},"{TEXTS[i % 4]}"\n' for i in range(8)]
    (tmp_path / "results.csv").write_text("images_id;pred_report\nBLEU_4;0.4\n" + "".join(rows).replace(",", ";"))
    command = ["evaluate", f"predictions={tmp_path / 'results.csv'}", f"references={tmp_path / 'annotation.json'}"]
    command += [f"output={tmp_path / 'out'}", "data.cleaner=r2gen-iu+59+unk3", "evaluate.rexrank=true"]
    command += ["evaluate.meteor=false", "evaluate.bootstrap=20"]
    assert main(command) == 0
    said = capfd.readouterr().err
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["signature"].startswith("BLEU-4|n:8|clean:r2gen-iu+unk3+59|ref:cut59|v:")
    assert f"evaluate: {metrics['signature']}\n" in said and "evaluate: rexrank.json: 8 studies\n" in said
    assert metrics["scores"]["BLEU_1"] == pytest.approx(1) and metrics["baselines"]["constant"] is not None
    assert [line.split(",")[0] for line in metrics["inputs"]] == [
        "predictions: results.csv", "references: annotation.json", "training: annotation.json"
    ]  # fmt: skip
    assert "1 rows of scores left out" in said and "8 reports, split train" in said
    written = json.loads((tmp_path / "out/rexrank.json").read_text())
    assert list(written) == [f"test{i}" for i in range(8)] and written["test0"]["model_prediction"] == TEXTS[0]
    assert "effusion" not in said.lower()


def test_no_reference_at_all(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    predictions(tmp_path / "predictions", [row(i, reference=None) for i in range(3)])
    assert Evaluate.run(config(tmp_path, "evaluate.rexrank=true")) == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["n"] == 0 and set(metrics["scores"].values()) == {None}
    assert pq.read_table(tmp_path / "out/per_study.parquet")["reference"].null_count == 3
    assert (tmp_path / "out/index.html").exists() and len(json.loads((tmp_path / "out/rexrank.json").read_text())) == 3
    assert "nothing is scored: none of 3 studies has a reference report" in capfd.readouterr().err


def test_an_unknown_score(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    predictions(tmp_path / "predictions", [row(0)])
    paths = [f"predictions={tmp_path / 'predictions'}", f"output={tmp_path / 'out'}"]
    assert main(["evaluate", *paths, "evaluate.scores=[radgraf]"]) == 2
    said = capfd.readouterr().err
    assert "unknown score 'radgraf'" in said and "did you mean radgraph?" in said and "f1chexbert, green" in said
    assert not (tmp_path / "out").exists()


def test_prompts_and_curves_of_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    (checkpoint / "prompts.yaml").write_text("prompts: [{text: Describe the heart.}, {text: Describe the lungs.}]\n")
    save_file({"centroids": np.zeros((2, 3), np.float32)}, checkpoint / "centroids.safetensors")
    rows = [{"step": step, "loss": 3 / (1 + step), "total_steps": 9} for step in range(3)]
    rows[1]["val_best_metric"] = rows[2]["val_best_metric"] = 0.5
    (checkpoint / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 3, "lo')
    pairs = Pairs([Pair("s0", TEXTS[0], TEXTS[0])])
    settings = load_config(None, [f"checkpoint={checkpoint}", "evaluate.meteor=false"])
    evaluation = evaluate(pairs, training_reports=None, cleaner="none", settings=settings.evaluate, seed=0)
    found = extras(settings, [evaluation])
    assert found.prompts == {0: "Describe the heart.", 1: "Describe the lungs."} and list(found.films) == []
    assert found.curves == {"loss": [(0, 3.0), (1, 1.5), (2, 1.0)], "val_best_metric": [(1, 0.5), (2, 0.5)]}


def test_no_predictions_key(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`predictions` is not set"):
        Evaluate.run(load_config(None, [f"output={tmp_path / 'out'}"]))
