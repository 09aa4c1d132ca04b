"""METEOR.

- study and corpus scores as pycocoevalcap's own wrapper gives them, from statistics that add up
- awkward texts (line ends of all kinds, `|||`, empty, equal) get one answer each
- no Java, a silent program and one that answers nonsense are an error with a reason, never a wait
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pycocoevalcap.meteor.meteor import Meteor

from megpt.evaluation.meteor import MeteorUnavailable, meteor, meteor_statistics
from megpt.evaluation.metrics import score_reports

GENERATED = ["the heart is normal in size . no effusions are seen .", "small left pleural effusion .", "clear lungs ."]
REFERENCES = [
    "heart size is normal . there is no pleural effusion .",
    "there is a small right pleural effusion . no pneumothorax .",
    "the lungs are clear .",
]
AWKWARD = ["line\nend\r\n and\x0b \x0c\u2028 \x85 more", "a ||| bar", "", "é – ü", "the heart is normal"]


@pytest.mark.slow
def test_scores_are_pycocoevalcaps() -> None:
    texts, wanted = [*GENERATED, "the heart is normal"], [*REFERENCES, "the heart is normal"]
    statistics = meteor_statistics([*texts, *AWKWARD, "x"], [*wanted, *AWKWARD, ""])
    assert statistics.shape == (len(texts) + len(AWKWARD) + 1, 23)
    ours = statistics[: len(texts)]
    wrapper = Meteor()
    corpus, each = wrapper.compute_score({i: [t] for i, t in enumerate(wanted)}, {i: [t] for i, t in enumerate(texts)})
    assert meteor(ours) == pytest.approx(each, abs=1e-12)
    assert meteor(ours.sum(0)) == pytest.approx(corpus, abs=1e-12)
    assert meteor(np.stack([ours.sum(0), ours[0]])) == pytest.approx([corpus, each[0]], abs=1e-12)
    awkward = meteor(statistics[len(texts) :])
    assert awkward[0] == awkward[4] == 1 and awkward[2] == awkward[5] == 0


def test_nothing_matched_is_zero() -> None:
    assert meteor(np.zeros(23)) == 0


def test_no_java() -> None:
    with pytest.raises(MeteorUnavailable, match="Java is not installed"):
        meteor_statistics(["a"], ["a"], java="no-such-java")


@pytest.mark.parametrize(
    ("script", "reason"),
    [("exec sleep 60", "no answer within"), ("cat > /dev/null; echo oops; exit 3", "ended with code 3 and 1 answers")],
)
def test_bad_program(tmp_path: Path, script: str, reason: str) -> None:
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\n{script}\n")
    java.chmod(0o755)
    with pytest.raises(MeteorUnavailable, match=reason):
        meteor_statistics(["a"], ["a"], java=str(java), limit_s=2)


def test_scores_without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    scores = score_reports(GENERATED, REFERENCES, cleaner="none", clinical=False)
    assert "METEOR" not in scores and scores["BLEU_1"] > 0


def test_no_texts() -> None:
    assert meteor_statistics([], []).shape == (0, 23)
