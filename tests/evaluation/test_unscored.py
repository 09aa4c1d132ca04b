"""Predictions without a single reference.

- metrics.json has its usual names, every score null, n 0; the table lists all studies with null scores; the page opens
"""

from __future__ import annotations

import json
from pathlib import Path

from megpt.config import EvaluateConfig
from megpt.evaluation.metrics import evaluate
from megpt.evaluation.page import System, write_page
from megpt.evaluation.pairs import Pair, Pairs
from megpt.evaluation.statistics import SCORES
from megpt.evaluation.table import PER_STUDY_SCHEMA, per_study
from megpt.evaluation.texts import Cleaning
from megpt.evaluation.unscored import without_scores

TEXTS = ["Small left pleural effusion.", None, "<script>alert(1)</script> The lungs are clear."]


def test_without_scores(tmp_path: Path) -> None:
    settings = EvaluateConfig(meteor=False, bootstrap=20)
    pairs = Pairs([], 3, ["abc"], [Pair(f"s{i}", text, "") for i, text in enumerate(TEXTS)])
    evaluation = without_scores(pairs, cleaner=Cleaning.of("r2gen-iu"), settings=settings, seed=1)
    metrics = evaluation.metrics
    assert (metrics["n"], metrics["n_failed"], metrics["n_without_reference"]) == (0, 1, 3)
    assert metrics["signature"].startswith("BLEU-4|n:0|clean:r2gen-iu|ref:full|v:")
    assert metrics["scores"] == metrics["intervals"] == dict.fromkeys(SCORES)
    assert metrics["warnings"] == ["nothing is scored: none of 3 studies has a reference report"]
    scored = Pairs([Pair("a", "the lungs are clear", "the lungs are clear")])
    usual = evaluate(scored, training_reports=None, cleaner="none", settings=settings, seed=1)
    assert metrics.keys() == usual.metrics.keys()
    json.dumps(metrics, allow_nan=False)

    table = per_study(evaluation)
    assert table.schema == PER_STUDY_SCHEMA and table["generated"].to_pylist() == TEXTS
    assert table["reference"].null_count == table["BLEU_4"].null_count == table["CIDEr"].null_count == 3
    assert [row and row["Pleural Effusion"] for row in table["labels"].to_pylist()] == [1, None, None]
    assert not any(table["scored"].to_pylist())
    write_page(tmp_path / "index.html", [System("MeGPT", evaluation)])
    html = (tmp_path / "index.html").read_text()
    assert "<script>alert" not in html and "alert(1)" in html
    assert all(f"s{i}" in html for i in range(3))
