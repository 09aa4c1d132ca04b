"""Clinical scores of label arrays.

- micro and macro F1 are scikit-learn's, over 13, 14 and 5 observations; uncertain counted as present
- a film called normal earns nothing in the headline
- side accuracy asks where the reference states a side, and an unsaid side is not the same one
- sums of the columns are the scores of the studies together; verdicts name what is wrong
- each study's own F1 is over 14, and 1 where both reports name nothing
"""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from megpt.evaluation.clinical import MISSING, SIDES, Findings, label_findings
from megpt.evaluation.clinical_scores import (
    CLINICAL,
    COLUMNS,
    FIVE,
    THIRTEEN,
    VERDICTS,
    clinical_columns,
    clinical_scores,
    observation_f1,
    study_f1,
    verdicts,
)
from megpt.study import CHEXPERT

ALL = np.ones(14, dtype=bool)
EFFUSION = CHEXPERT.index("Pleural Effusion")


def drawn(seed: int, n: int = 60) -> Findings:
    rng = np.random.default_rng(seed)
    labels = rng.choice([1, 0, -1, MISSING], p=[0.3, 0.2, 0.1, 0.4], size=(n, 14)).astype(np.int8)
    sides = np.where(labels == 1, rng.choice(list(SIDES), size=(n, 14)), 0).astype(np.int8)
    return Findings(labels, sides, np.zeros_like(sides), np.zeros(n, np.int32), np.zeros(n, bool))


def scores_of(found: Findings, truth: Findings) -> dict[str, float]:
    sums = clinical_columns(found, truth).sum(0, keepdims=True)
    return {name: float(values[0]) for name, values in clinical_scores(sums).items()}


def expected(found: np.ndarray, truth: np.ndarray, columns: np.ndarray, average: str) -> float:
    return f1_score(truth[:, columns], found[:, columns], average=average, zero_division=0)


def test_f1_is_that_of_scikit_learn() -> None:
    found, truth = drawn(1), drawn(2)
    scores = scores_of(found, truth)
    present = found.labels == 1, truth.labels == 1
    assert scores["clinical_micro_f1"] == pytest.approx(expected(*present, THIRTEEN, "micro"))
    assert scores["clinical_macro_f1"] == pytest.approx(expected(*present, THIRTEEN, "macro"))
    assert scores["clinical_micro_f1_14"] == pytest.approx(expected(*present, ALL, "micro"))
    assert scores["clinical_micro_f1_5"] == pytest.approx(expected(*present, FIVE, "micro"))
    doubts = np.isin(found.labels, (1, -1)), np.isin(truth.labels, (1, -1))
    assert scores["clinical_micro_f1_uncertain"] == pytest.approx(expected(*doubts, THIRTEEN, "micro"))
    assert tuple(scores) == CLINICAL


def test_each_observation_is_that_of_scikit_learn() -> None:
    found, truth = drawn(3), drawn(4)
    wanted = f1_score(truth.labels == 1, found.labels == 1, average=None, zero_division=0)
    columns = clinical_columns(found, truth)
    each = observation_f1(columns.sum(0, keepdims=True))
    assert list(each) == list(CHEXPERT) and np.concatenate([*each.values()]) == pytest.approx(wanted)
    assert columns.shape == (60, COLUMNS)


def test_a_study_alone() -> None:
    found, truth = drawn(3), drawn(4)
    own = study_f1(clinical_columns(found, truth))
    wanted = f1_score(truth.labels == 1, found.labels == 1, average="samples", zero_division=1)
    assert own.mean() == pytest.approx(wanted)
    nothing = label_findings([""])
    assert study_f1(clinical_columns(nothing, nothing)).tolist() == [1]


def test_macro_leaves_out_what_no_reference_has() -> None:
    found = label_findings(["Cardiomegaly. Left effusion.", "Fracture."])
    truth = label_findings(["Cardiomegaly.", "No fracture."])
    assert scores_of(found, truth)["clinical_macro_f1"] == 1.0


def test_calling_every_film_normal_earns_nothing_in_the_headline() -> None:
    reports = ["Normal chest.", "Normal chest.", "Left effusion."]
    scores = scores_of(label_findings(["Normal chest."] * 3), label_findings(reports))
    assert scores["clinical_micro_f1"] == 0 and scores["clinical_micro_f1_14"] == pytest.approx(2 / 3)


def test_side_accuracy() -> None:
    truth = [
        "Left effusion.",
        "Right effusion.",
        "Effusion.",
        "Bilateral effusions.",
        "No left effusion.",
        "Left nodule.",
    ]
    found = ["Left effusion.", "Left effusion.", "Left effusion.", "Effusions.", "Left effusion.", "Left effusion."]
    findings = label_findings(found), label_findings(truth)
    assert clinical_columns(*findings)[:, -2:].tolist() == [[1, 1], [0, 1], [0, 0], [0, 1], [0, 0], [0, 0]]
    assert scores_of(*findings)["clinical_side_accuracy"] == pytest.approx(1 / 3)


def test_no_side_to_compare_is_no_score() -> None:
    normal, other = label_findings(["Normal chest.", "Left effusion."]), label_findings(["Left effusion.", "Normal."])
    assert np.isnan(scores_of(normal, other)["clinical_side_accuracy"])


def test_sums_are_the_studies_together() -> None:
    found, truth = drawn(5), drawn(6)
    rows = np.random.default_rng(7).integers(0, len(found), size=(3, len(found)))
    weights = np.stack([np.bincount(r, minlength=len(found)) for r in rows]).astype(float)
    sums = weights @ clinical_columns(found, truth)
    together, each = clinical_scores(sums), observation_f1(sums)
    for i, row in enumerate(rows):
        again = clinical_columns(found[row], truth[row]).sum(0, keepdims=True)
        assert {name: values[i] for name, values in together.items()} == pytest.approx(
            scores_of(found[row], truth[row])
        )
        assert {name: v[i] for name, v in each.items()} == pytest.approx(
            {name: v[0] for name, v in observation_f1(again).items()}, nan_ok=True
        )


@pytest.mark.parametrize(
    ("generated", "reference", "verdict"),
    [
        ("Left effusion.", "Left effusion.", "agreed"),
        ("Left effusion.", "Right effusion.", "wrong side"),
        ("Left effusion.", "Bilateral effusions.", "wrong side"),
        ("Effusion.", "Left effusion.", "agreed"),
        ("Left effusion.", "No effusion.", "invented"),
        ("Left effusion.", "Normal chest.", "invented"),
        ("No effusion.", "Left effusion.", "missed"),
        ("Normal chest.", "Left effusion.", "missed"),
        ("Possible effusion.", "Left effusion.", "doubted"),
        ("Left effusion.", "Possible effusion.", "doubted"),
        ("Possible effusion.", "Normal chest.", "doubted"),
        ("Possible effusion.", "Possible effusion.", "agreed"),
        ("No effusion or pneumothorax.", "No pneumothorax or effusion.", ""),
        ("Normal chest.", "No effusion.", ""),
    ],
)
def test_verdict(generated: str, reference: str, verdict: str) -> None:
    found = verdicts(label_findings([generated]), label_findings([reference]))
    assert VERDICTS[int(found[0, EFFUSION])] == verdict


def test_as_many_reports_as_references() -> None:
    with pytest.raises(ValueError, match="1 generated reports against 2 references"):
        clinical_columns(label_findings(["Effusion."]), label_findings(["Effusion.", "Normal."]))
