"""Baselines.

- the constant report is the one whose BLEU-4 on the training split is highest, by brute force too
- a permutation gives no study a report of its own patient; where there is none, that is said
- many permutations: 100, fewer in a large set, by seed
- the nearest candidate by cosine, exactly, whatever the block size
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_metrics import reports

from megpt.evaluation import baselines as module
from megpt.evaluation import nlg
from megpt.evaluation.baselines import constant_report, derangement, derangements, nearest, sample


def test_constant_report_by_brute_force() -> None:
    texts = [*reports(25, 3), "no no no .", ""]
    best = constant_report(texts, seed=0)
    kept = [t for t in texts if t]
    bleu = {c: nlg.bleu(nlg.bleu_statistics([c] * len(kept), kept).sum(0))[-1] for c in set(kept)}
    assert best is not None and bleu[best] == max(bleu.values())
    assert constant_report([], 0) is None
    assert sample(texts, 5, 1) == sample(texts, 5, 1) and len(sample(texts, 5, 1)) == 5


@given(st.integers(2, 200), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_derangement(n: int, seed: int) -> None:
    order = derangement(n, seed)
    assert order is not None and sorted(order) == list(range(n)) and not (order == np.arange(n)).any()


@given(st.lists(st.integers(0, 6), min_size=2, max_size=60), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_no_study_gets_a_report_of_its_own_patient(groups: list[int], seed: int) -> None:
    own = np.array(groups)
    order = derangement(len(own), seed, own)
    if 2 * np.bincount(own).max() > len(own):
        assert order is None
    else:
        assert order is not None and sorted(order) == list(range(len(own)))
        assert not (own[order] == own).any()


def test_permutations_differ_and_come_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = derangements(30, 5)
    assert orders is not None and orders.shape == (100, 30) and len({tuple(o) for o in orders.tolist()}) == 100
    assert (orders == derangements(30, 5)).all() and (orders != derangements(30, 6)).any()
    # Each study meets each other one about equally often.
    met = np.bincount(np.concatenate([derangement(4, s) for s in range(900)])[::4], minlength=4)
    assert met[0] == 0 and (np.abs(met[1:] - 300) < 60).all()
    monkeypatch.setattr(module, "MAX_PERMUTED_PAIRS", 100)
    assert derangements(30, 5).shape == (3, 30) and derangements(200, 5).shape == (1, 200)
    assert derangements(1, 0) is None


@pytest.mark.parametrize("chunk", [3, 1000])
def test_nearest(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", chunk)
    rng = np.random.default_rng(0)
    queries, candidates = rng.normal(size=(11, 8)).astype(np.float32), rng.normal(size=(17, 8)).astype(np.float32)
    cosines = (queries / np.linalg.norm(queries, axis=1)[:, None]) @ (
        candidates / np.linalg.norm(candidates, axis=1)[:, None]
    ).T
    assert nearest(queries, candidates).tolist() == cosines.argmax(1).tolist()
    assert nearest(candidates * 7, candidates).tolist() == list(range(17))  # length does not count
    assert nearest(np.zeros((2, 8)), candidates).tolist() == [0, 0]
    assert nearest(queries[:1], np.concatenate([candidates, candidates])).max() < 17  # the first of equals


def test_nearest_refuses_what_it_cannot_compare() -> None:
    with pytest.raises(ValueError, match=r"features of shape \(2, 3\) and \(4, 5\)"):
        nearest(np.zeros((2, 3)), np.zeros((4, 5)))
    with pytest.raises(ValueError, match="no candidate"):
        nearest(np.zeros((2, 3)), np.zeros((0, 3)))
