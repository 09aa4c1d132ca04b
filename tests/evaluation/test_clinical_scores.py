"""Clinical scores of label arrays.

- micro and macro F1 are scikit-learn's, over 13, 14 and 5 observations; uncertain counted as present
- a film called normal earns nothing in the headline
- side accuracy asks where the reference states a side, and an unsaid side is not the same one
- weights are resamples; verdicts name what is wrong
"""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from megpt.evaluation.clinical import MISSING, SIDES, Findings, label_findings
from megpt.evaluation.clinical_scores import FIVE, SCORES, THIRTEEN, VERDICTS, ClinicalCounts, verdicts
from megpt.study import CHEXPERT

ALL = list(CHEXPERT)
EFFUSION = CHEXPERT.index("Pleural Effusion")


def drawn(seed: int, n: int = 60) -> Findings:
    rng = np.random.default_rng(seed)
    labels = rng.choice([1, 0, -1, MISSING], p=[0.3, 0.2, 0.1, 0.4], size=(n, 14)).astype(np.int8)
    sides = np.where(labels == 1, rng.choice(list(SIDES), size=(n, 14)), 0).astype(np.int8)
    return Findings(labels, sides, np.zeros_like(sides), np.zeros(n, np.int32), np.zeros(n, bool))


def expected(found: np.ndarray, truth: np.ndarray, names: tuple[str, ...], average: str) -> float:
    columns = [ALL.index(name) for name in names]
    return f1_score(truth[:, columns], found[:, columns], average=average, zero_division=0)


def test_f1_is_that_of_scikit_learn() -> None:
    found, truth = drawn(1), drawn(2)
    scores = ClinicalCounts.of(found, truth).scores()
    present = found.labels == 1, truth.labels == 1
    assert scores["clinical_micro_f1"] == pytest.approx(expected(*present, THIRTEEN, "micro"))
    assert scores["clinical_macro_f1"] == pytest.approx(expected(*present, THIRTEEN, "macro"))
    assert scores["clinical_micro_f1_14"] == pytest.approx(expected(*present, CHEXPERT, "micro"))
    assert scores["clinical_micro_f1_5"] == pytest.approx(expected(*present, FIVE, "micro"))
    doubts = np.isin(found.labels, (1, -1)), np.isin(truth.labels, (1, -1))
    assert scores["clinical_micro_f1_uncertain"] == pytest.approx(expected(*doubts, THIRTEEN, "micro"))
    assert tuple(scores) == SCORES


def test_each_observation_is_that_of_scikit_learn() -> None:
    found, truth = drawn(3), drawn(4)
    wanted = f1_score(truth.labels == 1, found.labels == 1, average=None, zero_division=0)
    assert ClinicalCounts.of(found, truth).by_observation() == pytest.approx(wanted)


def test_macro_leaves_out_what_no_reference_has() -> None:
    found = label_findings(["Cardiomegaly. Left effusion.", "Fracture."])
    truth = label_findings(["Cardiomegaly.", "No fracture."])
    assert ClinicalCounts.of(found, truth).scores()["clinical_macro_f1"] == 1.0


def test_calling_every_film_normal_earns_nothing_in_the_headline() -> None:
    reports = ["Normal chest.", "Normal chest.", "Left effusion."]
    scores = ClinicalCounts.of(label_findings(["Normal chest."] * 3), label_findings(reports)).scores()
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
    counts = ClinicalCounts.of(label_findings(found), label_findings(truth))
    assert counts.sided[:, EFFUSION].tolist() == [1, 1, 0, 1, 0, 0]
    assert counts.scores()["clinical_side_accuracy"] == pytest.approx(1 / 3)


def test_no_side_to_compare_is_no_score() -> None:
    normal = label_findings(["Normal chest.", "Left effusion."])
    assert (
        ClinicalCounts.of(normal, label_findings(["Left effusion.", "Normal chest."])).scores()[
            "clinical_side_accuracy"
        ]
        is None
    )


def test_weights_are_resamples() -> None:
    found, truth = drawn(5), drawn(6)
    rows = np.random.default_rng(7).integers(0, len(found), size=(3, len(found)))
    weights = np.stack([np.bincount(r, minlength=len(found)) for r in rows]).astype(float)
    drawn_scores = ClinicalCounts.of(found, truth).weighted(weights)
    for i, row in enumerate(rows):
        again = ClinicalCounts.of(found[row], truth[row])
        assert {name: values[i] for name, values in drawn_scores.items()} == pytest.approx(again.scores())
        assert ClinicalCounts.of(found, truth).by_observation(weights)[i] == pytest.approx(again.by_observation())


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
        ClinicalCounts.of(label_findings(["Effusion."]), label_findings(["Effusion.", "Normal."]))
