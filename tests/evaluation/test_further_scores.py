"""Scores that need packages of their own.

- an unknown name lists the known ones; a missing package says what to install
- a package's entry point is found and used; what it returns must be one number a study
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from megpt.errors import InputError
from megpt.evaluation.further_scores import INSTALL, RADEVAL, further_score, known_scores

PLUGIN = """
def lengths(generated, references):
    return {"length_ratio": [len(g) / len(r) for g, r in zip(generated, references)]}

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
    names = ("lengths", "short", "broken")
    (info / "entry_points.txt").write_text("[megpt.scores]\n" + "".join(f"{n} = length_scores:{n}\n" for n in names))
    monkeypatch.syspath_prepend(tmp_path)


def test_unknown_score() -> None:
    with pytest.raises(InputError, match="unknown score 'radgraf'") as error:
        further_score("radgraf")
    assert error.value.next == "did you mean radgraph?"


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
