"""Scores that need packages of their own.

- an unknown name lists the known ones; a missing package says what to install
- a package's entry point is found and used; what it returns must be one number a study, or such numbers by name
- `evaluate.scores` puts its mean, interval, baselines and lead into metrics.json and a column into the table
- a name that is another score's is refused
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from megpt.config import EvaluateConfig
from megpt.errors import InputError
from megpt.evaluation import evaluate
from megpt.evaluation.compare import compare
from megpt.evaluation.further_scores import INSTALL, RADEVAL, further_score, known_scores
from megpt.evaluation.pairs import Pair, Pairs
from megpt.evaluation.table import per_study

PLUGIN = """
def lengths(generated, references):
    return {"length_ratio": [len(g) / len(r) for g, r in zip(generated, references)]}

def words(generated, references):
    return [len(g.split()) for g in generated]

def thief(generated, references):
    return {"BLEU_4": [1.0] * len(generated)}

def short(generated, references):
    return {"x": [1.0]}

def broken(generated, references):
    return {"x": [float("nan")] * len(generated)}
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package as pip would have installed it."""
    (tmp_path / "length_scores.py").write_text(PLUGIN)
    info = tmp_path / "length_scores-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: length-scores\nVersion: 1.0\n")
    names = ("lengths", "words", "thief", "short", "broken")
    (info / "entry_points.txt").write_text("[megpt.scores]\n" + "".join(f"{n} = length_scores:{n}\n" for n in names))
    monkeypatch.syspath_prepend(tmp_path)


def test_unknown_score() -> None:
    with pytest.raises(InputError, match="unknown score 'radgraf'") as error:
        further_score("radgraf")
    assert error.value.next == "did you mean radgraph?"
    assert error.value.cause == f"known are {', '.join(known_scores())}"


@pytest.mark.skipif(importlib.util.find_spec("radeval") is not None, reason="RadEval is installed")
@pytest.mark.parametrize("name", RADEVAL)
def test_a_missing_package_says_what_to_install(name: str) -> None:
    with pytest.raises(InputError, match=f"score '{name}' needs the package radeval, which is not installed") as error:
        further_score(name)
    assert error.value.next == INSTALL


def test_an_entry_point_is_a_score(plugin: None) -> None:
    assert "lengths" in known_scores()
    found = further_score("lengths")(["ab", "abc"], ["abcd", "abc"])
    assert {name: values.tolist() for name, values in found.items()} == {"length_ratio": [0.5, 1.0]}
    assert found["length_ratio"].dtype == np.float64 and further_score("lengths")([], []) == {}


def test_one_value_a_study(plugin: None) -> None:
    with pytest.raises(InputError, match="score 'short' gave 1 values of 'x' for 2 reports"):
        further_score("short")(["a", "b"], ["a", "b"])


def test_values_are_numbers(plugin: None) -> None:
    with pytest.raises(InputError, match="score 'broken' gave 2 values of 'x' that are no numbers"):
        further_score("broken")(["a", "b"], ["a", "b"])


def test_a_name_of_another_score(plugin: None) -> None:
    with pytest.raises(InputError, match="score 'thief' gave values of 'BLEU_4', which is another score's name"):
        further_score("thief")(["a"], ["a"])


def test_scores_that_evaluate_is_asked_for(plugin: None) -> None:
    texts, wanted = ["a b c", "a", "a b", "b c"], ["a b c", "a b", "a b c d", "b c"]
    pairs = Pairs([Pair(f"s{i}", t, r, f"p{i // 2}") for i, (t, r) in enumerate(zip(texts, wanted, strict=True))])
    settings = EvaluateConfig(meteor=False, bootstrap=50, scores=("words", "lengths"))
    made = {"training_reports": ["a b", "a b c d e"], "cleaner": "none", "seed": 0}
    found = evaluate(pairs, settings=settings, neighbours={"nearest": {"s0": "a b c d"}}, **made)
    metrics = found.metrics
    assert list(metrics["scores"])[-2:] == ["words", "length_ratio"] == list(metrics["intervals"])[-2:]
    assert metrics["scores"]["words"] == 2 and metrics["scores"]["length_ratio"] == pytest.approx(
        (1 + 1 / 3 + 3 / 7 + 1) / 4
    )
    low, high = metrics["intervals"]["words"]
    assert low <= 2 <= high and metrics["notes"]["intervals"].startswith("2 patients")
    constant = len(metrics["constant_report"].split())
    assert {name: values["words"] for name, values in metrics["baselines"].items()} == {
        "constant": constant, "permuted": 2, "nearest": 1
    }  # fmt: skip
    assert metrics["paired"]["permuted"]["words"] is not None
    low, high = metrics["paired"]["nearest"]["words"]
    assert low <= 1 <= high
    assert any("words" in warning for warning in metrics["warnings"])
    table = per_study(found)
    assert table["words"].to_pylist() == [3, 1, 2, 2] and table.column_names[-2:] == ["words", "length_ratio"]


def test_scores_of_compared_systems(plugin: None) -> None:
    one, two = (Pairs([Pair(f"s{i}", text, "a b", f"p{i}") for i in range(4)]) for text in ("a b c", "a"))
    settings = EvaluateConfig(meteor=False, bootstrap=50, scores=("words",))
    found = compare({"one": one, "two": two}, cleaner="none", settings=settings, seed=0, draws=99)
    row = found.result["comparisons"][0]["scores"]["words"]
    assert row["difference"] == 2 and row["interval"] == [2, 2] and 0 < row["p"] <= row["p_holm"]
    assert found.table()["words:two"].to_pylist() == [1] * 4
