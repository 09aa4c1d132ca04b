"""compare: systems on the studies that they share.

- a system against itself: difference 0 [0, 0], p = 1, for every score and observation
- a difference is the difference of the scores on the common studies, its interval and p over patients
- studies that not all have, whose references differ, or that are blank after cleaning are listed, not scored
- every two of three systems are compared; p is corrected over the scores
- nothing in common, one system, other references: errors that say what to do
- a failed study counts as an empty report; the table holds the texts side by side
"""

from __future__ import annotations

import pytest
from test_metrics import reports

from megpt.config import EvaluateConfig
from megpt.errors import InputError
from megpt.evaluation.compare import Comparison, compare
from megpt.evaluation.metrics import evaluate
from megpt.evaluation.pairs import Pair, Pairs
from megpt.study import CHEXPERT

SETTINGS = EvaluateConfig(meteor=False, bootstrap=100, baselines=False)
WANTED = reports(30, 1)


def system(texts: list[str | None], wanted: list[str] = WANTED, prefix: str = "s") -> Pairs:
    pairs = [
        Pair(f"{prefix}{i}", text, reference, f"p{i // 2}")
        for i, (text, reference) in enumerate(zip(texts, wanted, strict=True))
    ]
    return Pairs(pairs, models=["abc"])


def compared(cleaner: str = "none", **systems: Pairs) -> Comparison:
    return compare(systems, cleaner=cleaner, settings=SETTINGS, seed=0, draws=199)


def test_a_system_against_itself() -> None:
    own = system(list(reports(30, 2)))
    result = compared(a=own, b=own).result
    (pair,) = result["comparisons"]
    rows = [row for row in (*pair["scores"].values(), *pair["observations"].values()) if row is not None]
    assert len(rows) > 12
    assert all(row == {"difference": 0, "interval": [0, 0], "p": 1, "p_holm": 1} for row in rows)
    assert pair["scores"]["METEOR"] is None and list(pair["observations"]) == list(CHEXPERT)
    assert result["systems"]["a"] == result["systems"]["b"]


def test_a_difference() -> None:
    good, bad = system([*WANTED[:25], *reports(5, 3)]), system(list(reports(30, 4)))
    comparison = compared(good=good, bad=bad)
    result = comparison.result
    assert (result["n"], result["n_patients"], result["interval_unit"], result["draws"]) == (30, 15, "patient", 199)
    scores = [
        evaluate(own, training_reports=None, cleaner="none", settings=SETTINGS, seed=0).metrics for own in (good, bad)
    ]
    (pair,) = result["comparisons"]
    assert (pair["a"], pair["b"]) == ("good", "bad")
    for name in ("BLEU_4", "CIDEr", "clinical_micro_f1"):
        row = pair["scores"][name]
        assert result["systems"]["good"]["scores"][name] == pytest.approx(scores[0]["scores"][name])
        assert result["systems"]["good"]["intervals"][name] == pytest.approx(scores[0]["intervals"][name])
        assert row["difference"] == pytest.approx(scores[0]["scores"][name] - scores[1]["scores"][name])
        assert 0 < row["interval"][0] < row["difference"] < row["interval"][1]
        assert row["p"] == 1 / 200 and row["p"] < row["p_holm"] <= 12 / 200
    said = next(line for line in comparison.lines() if line.startswith("BLEU_4: good - bad = +"))
    assert "p = 0.0050, corrected 0.0" in said


def test_what_is_left_out_is_listed() -> None:
    first, second = system(list(WANTED)), system(list(WANTED))
    pairs = list(second.pairs)[2:]
    pairs[0] = Pair("s2", "x", "another reference", "p1")
    pairs[1] = Pair("s3", "x", " . ", "p1")
    first.pairs[3] = Pair("s3", "x", " . ", "p1")
    result = compared("r2gen-iu", a=first, b=Pairs([*pairs, Pair("extra", "x", "y")])).result
    assert result["n"] == 26 and result["left_out"] == {
        "not_in_all": {
            "a": {"n": 2, "study_ids": ["s0", "s1"]},
            "b": {"n": 1, "study_ids": ["extra"]},
        },
        "references_differ": {"n": 1, "study_ids": ["s2"]},
        "reference_blank_after_cleaning": {"n": 1, "study_ids": ["s3"]},
    }


def test_three_systems_and_a_failed_study() -> None:
    comparison = compared(a=system(list(WANTED)), b=system([None, *WANTED[1:]]), c=system(list(reports(30, 4))))
    result = comparison.result
    assert [(p["a"], p["b"]) for p in result["comparisons"]] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert result["systems"]["b"]["n_failed"] == 1
    assert result["comparisons"][0]["scores"]["ROUGE_L"]["difference"] == pytest.approx(1 / 30)
    assert comparison.evaluations["b"].pairs.failed == 1
    table = comparison.table().to_pylist()
    assert table[0]["generated:b"] is None and table[0]["ROUGE_L:b"] == 0 and table[0]["ROUGE_L:a"] == 1
    assert table[1]["generated:c"] == reports(30, 4)[1] and table[1]["reference"] == WANTED[1]
    assert table[1]["labels:a"] == table[1]["reference_labels"] and set(table[1]["reference_labels"]) == set(CHEXPERT)
    assert table[1]["sides:a"] == table[1]["reference_sides"]


def test_nothing_to_compare() -> None:
    own = system(list(WANTED))
    with pytest.raises(InputError, match=r"^nothing to compare\n  cause: one system only\n"):
        compared(a=own)
    with pytest.raises(InputError, match="no study in common") as error:
        compared(a=own, b=system(list(WANTED), prefix="t"))
    assert "where: study_id, for example a: 's0', b: 't0'" in str(error.value)
    with pytest.raises(InputError, match="no study has the same reference in all systems") as error:
        compared(a=own, b=system(list(WANTED), [f"{text} x" for text in WANTED]))
    assert "where: study s0, and 29 more" in str(error.value) and "next:  set references=PATH or studies=PATH" in str(
        error.value
    )
    with pytest.raises(InputError, match="no reference is left after cleaning with 'none'"):
        compared(a=system(["x"], ["."]), b=system(["x"], ["."]))
