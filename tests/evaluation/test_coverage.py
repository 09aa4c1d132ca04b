"""Risk against coverage, by what a model says of its own reports.

- each row scores exactly the studies that are kept, and names the last value among them; the whole is the whole score
- the least likely, the most novel, and those without a value are set aside first
- reports that come without the columns have no such table
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from megpt.config import EvaluateConfig
from megpt.evaluation.coverage import COVERAGES
from megpt.evaluation.metrics import evaluate
from megpt.evaluation.page.summary import coverage_table
from megpt.evaluation.pairs import Pair, Pairs
from megpt.evaluation.table import per_study

RIGHT, WRONG = "There is a small left effusion.", "The heart is enlarged."
SETTINGS = EvaluateConfig(meteor=False, bootstrap=20)


def evaluated(pairs: list[Pair]) -> Any:
    return evaluate(Pairs(pairs), training_reports=None, cleaner="none", settings=SETTINGS, seed=1)


def pairs() -> list[Pair]:
    """Of 20 studies 16 are right, and the more likely they are the less novel."""
    return [
        Pair(f"s{n}", RIGHT if n < 16 else WRONG, RIGHT, f"p{n // 2}", logprob=-0.1 - n / 20, novelty=0.2 + n / 10)
        for n in range(20)
    ]


def test_what_is_kept() -> None:
    found = evaluated(pairs())
    assert found.metrics["risk_coverage"].keys() == {"logprob", "novelty"}
    for name, rows in found.metrics["risk_coverage"].items():
        assert [row["coverage"] for row in rows] == list(COVERAGES)
        assert [row["n"] for row in rows] == [20, 18, 15, 10, 5]
        assert rows[0]["scores"] == {score: found.metrics["scores"][score] for score in rows[0]["scores"]}
        # 16 hits, 4 invented, 4 missed; 16, 2, 2; then nothing wrong
        assert [row["scores"]["clinical_micro_f1"] for row in rows] == pytest.approx([16 / 20, 16 / 18, 1, 1, 1])
        assert [row["threshold"] for row in rows] == pytest.approx(
            [-0.1 - n / 20 if name == "logprob" else 0.2 + n / 10 for n in (19, 17, 14, 9, 4)]
        )
        low, high = rows[1]["intervals"]["clinical_micro_f1"]
        assert low <= 16 / 18 <= high
        assert coverage_table(rows).columns[2] == ("at least" if name == "logprob" else "at most")
    table = per_study(found)
    assert table["logprob"].to_pylist() == pytest.approx([-0.1 - n / 20 for n in range(20)])
    assert table["novelty"].to_pylist() == pytest.approx([0.2 + n / 10 for n in range(20)])


def test_without_a_value() -> None:
    known = pairs()
    known[0] = replace(known[0], generated=None, error="empty file", logprob=None, novelty=None)
    rows = evaluated(known).metrics["risk_coverage"]["logprob"]
    assert rows[0]["threshold"] is None and rows[1]["threshold"] == pytest.approx(-0.1 - 18 / 20)
    assert rows[2]["scores"]["clinical_micro_f1"] == 1
    assert coverage_table(rows).columns[2] == "at least"


def test_reports_without_the_columns() -> None:
    found = evaluated([replace(pair, logprob=None, novelty=None) for pair in pairs()])
    assert found.metrics["risk_coverage"] == {}
    assert per_study(found)["logprob"].null_count == 20
