"""Scores of summed rows.

- clinical F1 is scikit-learn's, over 13 observations (without No Finding), 14, CheXpert's five, and with doubts counted
- the side accuracy is over findings whose side both reports say
- rows of a patient add up: grouped or not, the scores are the same
- each study's own clinical F1
"""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from megpt.evaluation.statistics import FINDINGS, FIVE, SCORES, Statistics, side_counts
from megpt.study import CHEXPERT

RNG = np.random.default_rng(0)


def made(n: int = 50) -> Statistics:
    truth, found = (RNG.choice([1, 0, -1, -2], size=(n, 14), p=[0.3, 0.2, 0.2, 0.3]).astype(np.int8) for _ in range(2))
    guessed = RNG.integers(1, 9, (n, 10))
    sides = np.stack([RNG.integers(0, 2, n), np.full(n, 2)], axis=1)
    return Statistics(guessed, RNG.random(n), RNG.random(n), RNG.random((n, 23)), found, truth, sides)


def test_which_observations() -> None:
    assert FINDINGS.sum() == 13 and not FINDINGS[CHEXPERT.index("No Finding")]
    five = {name for name, there in zip(CHEXPERT, FIVE, strict=True) if there}
    assert five == {"Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"}


def test_clinical_f1_is_scikit_learns() -> None:
    statistics = made()
    assert statistics.found is not None and statistics.truth is not None
    truth, found = statistics.truth == 1, statistics.found == 1
    scores = statistics.scores()
    assert list(scores) == list(SCORES)
    for name, columns in (("clinical_micro_f1", FINDINGS), ("clinical_micro_f1_14", slice(None)), ("_5", FIVE)):
        full = name if name.startswith("clinical") else "clinical_micro_f1_5"
        assert scores[full] == pytest.approx(f1_score(truth[:, columns], found[:, columns], average="micro"))
    assert scores["clinical_macro_f1"] == pytest.approx(
        f1_score(truth[:, FINDINGS], found[:, FINDINGS], average="macro")
    )
    either = [np.isin(labels, (1, -1))[:, FINDINGS] for labels in (statistics.truth, statistics.found)]
    assert scores["clinical_micro_f1_uncertain"] == pytest.approx(f1_score(*either, average="micro"))
    samples = f1_score(truth, found, average="samples", zero_division=1)
    assert statistics.per_study()["clinical_f1"].mean() == pytest.approx(samples)
    both, extra, missed = statistics.observations()
    assert ((both + missed) == truth.sum(0)).all() and ((both + extra) == found.sum(0)).all()
    rows = statistics.rows()
    each = rows.observation_f1(rows.matrix.sum(0, keepdims=True))
    assert each["Edema"][0] == pytest.approx(f1_score(truth[:, 3], found[:, 3]))


def test_a_model_that_calls_every_film_normal_earns_nothing() -> None:
    truth = np.zeros((10, 14), dtype=np.int8)
    truth[:7, CHEXPERT.index("No Finding")] = 1
    truth[7:, CHEXPERT.index("Edema")] = 1
    found = np.zeros_like(truth)
    found[:, CHEXPERT.index("No Finding")] = 1
    scores = Statistics(np.zeros((10, 10)), np.zeros(10), np.zeros(10), found=found, truth=truth).scores()
    assert scores["clinical_micro_f1"] == scores["clinical_macro_f1"] == 0 and scores["clinical_micro_f1_14"] > 0.6


def test_macro_leaves_out_what_the_references_lack() -> None:
    truth, found = np.zeros((4, 14), dtype=np.int8), np.zeros((4, 14), dtype=np.int8)
    truth[:, 0] = found[:, 0] = found[0, 1] = 1
    scores = Statistics(np.zeros((4, 10)), np.zeros(4), np.zeros(4), found=found, truth=truth).scores()
    assert scores["clinical_macro_f1"] == 1 and scores["clinical_micro_f1"] == pytest.approx(8 / 9)


def test_sides() -> None:
    found, truth = np.zeros((2, 14), dtype=np.int8), np.zeros((2, 14), dtype=np.int8)
    ours, theirs = np.zeros_like(found), np.zeros_like(found)
    found[0, :4] = truth[0, :4] = 1
    ours[0, :4], theirs[0, :4] = (1, 2, 3, 0), (1, 1, 3, 1)  # same, other, same, not said
    found[1, 0], truth[1, 0], ours[1, 0], theirs[1, 0] = 1, 0, 1, 1  # no hit: no side to be right about
    counts = side_counts(found, truth, ours, theirs)
    assert counts.tolist() == [[2, 3], [0, 0]]
    zeros = np.zeros(2)
    statistics = Statistics(np.zeros((2, 10)), zeros, zeros, found=found, truth=truth, sides=counts)
    assert statistics.scores()["clinical_side_accuracy"] == pytest.approx(2 / 3)
    none = Statistics(np.zeros((2, 10)), zeros, zeros, found=found, truth=truth, sides=np.zeros((2, 2)))
    assert none.scores()["clinical_side_accuracy"] is None


def test_rows_of_a_patient_add_up() -> None:
    rows = made().rows()
    groups = RNG.permutation(np.arange(50) % 7)
    grouped = rows.grouped(groups)
    assert grouped.matrix.shape[0] == 7 and grouped.sizes.tolist() == np.bincount(groups).tolist()
    assert grouped.scores() == pytest.approx(rows.scores())


def test_labels_as_flags() -> None:
    flags = RNG.random((20, 14)) < 0.4
    zeros = np.zeros(20)
    scores = Statistics(np.zeros((20, 10)), zeros, zeros, found=flags, truth=flags).scores()
    assert scores["clinical_micro_f1"] == scores["clinical_micro_f1_uncertain"] == 1 and scores["METEOR"] is None
