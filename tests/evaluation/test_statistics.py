"""Scores of summed rows.

- rows of a patient add up: grouped or not, the scores are the same
- a further score is the mean of its values, and comes after the others
- what was not computed is None
"""

from __future__ import annotations

import numpy as np
import pytest
from test_clinical_scores import drawn

from megpt.evaluation.statistics import SCORES, Statistics

RNG = np.random.default_rng(0)


def made(n: int = 60, **more: np.ndarray) -> Statistics:
    counts = RNG.integers(1, 9, (n, 10))
    return Statistics(counts, RNG.random(n), RNG.random(n), RNG.random((n, 23)), drawn(1, n), drawn(2, n), more)


def test_rows_of_a_patient_add_up() -> None:
    rows = made(radgraph=RNG.random(60)).rows()
    groups = RNG.permutation(np.arange(60) % 7)
    grouped = rows.grouped(groups)
    assert grouped.matrix.shape[0] == 7 and grouped.sizes("BLEU_1").tolist() == np.bincount(groups).tolist()
    assert grouped.scores() == pytest.approx(rows.scores()) and None not in rows.scores().values()
    # the side accuracy is a share of the findings with a side, of which a patient may have none
    sided = np.bincount(groups, rows.sizes("clinical_side_accuracy"))
    assert grouped.sizes("clinical_side_accuracy").tolist() == sided.tolist() != grouped.sizes("CIDEr").tolist()
    same = rows.scores()["clinical_side_accuracy"] * sided.sum()
    assert same == pytest.approx(round(same))


def test_a_further_score_is_a_mean() -> None:
    values = RNG.random(60)
    statistics = made(radgraph=values)
    assert list(statistics.scores()) == [*SCORES, "radgraph"] == list(statistics.rows().names)
    assert statistics.scores()["radgraph"] == pytest.approx(values.mean())
    assert statistics.per_study()["radgraph"].tolist() == values.tolist()


def test_what_was_not_computed_is_none() -> None:
    zeros = np.zeros(3)
    scores = Statistics(np.ones((3, 10)), zeros, zeros).scores()
    assert [name for name, value in scores.items() if value is None] == ["METEOR", *(s for s in SCORES if "clin" in s)]
