"""Intervals and tests over patients.

- intervals are percentiles of an explicit resampling of patients, as much wider as Student's t asks for
- the macro F1's and the side accuracy's are a jackknife's, inside [0, 1], with as many degrees of freedom as the
  patients leave that the score hangs on
- a difference has the resamples of both sides: nothing against itself is 0 [0, 0], p = 1
- p of two systems that are the same is uniform; of a clear difference small; never below 1 / (draws + 1)
- Holm's correction by hand
- memory does not grow with the draws
- in a simulation, an interval of nominally 95 % holds the truth in at least 90 % of the sets
"""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t
from test_clinical_scores import drawn

from megpt.evaluation import intervals
from megpt.evaluation.clinical import Findings
from megpt.evaluation.intervals import (
    Bootstrap,
    effective_patients,
    expanded_percentiles,
    holm,
    jackknife_interval,
    patients,
    randomisation,
)
from megpt.evaluation.statistics import SCORES, Rows, Statistics


def findings(present: np.ndarray) -> Findings:
    nothing = np.zeros(present.shape, dtype=np.int8)
    return Findings(
        present.astype(np.int8), nothing, nothing, np.zeros(len(present), int), np.zeros(len(present), bool)
    )


def rows(count: int, seed: int, *, quality: float = 0.5) -> Rows:
    rng = np.random.default_rng(seed)
    truth = rng.random((count, 14)) < 0.3
    found = np.where(rng.random((count, 14)) < quality, truth, rng.random((count, 14)) < 0.3)
    bleu = np.hstack([rng.integers(1, 9, (count, 4)), np.full((count, 4), 10), np.full((count, 2), 10)])
    return Statistics(
        bleu, rng.random(count) * quality, rng.random(count), found=findings(found), truth=findings(truth)
    ).rows()


def test_patients() -> None:
    numbers, alone = patients(["a", "", "a", ""], ["1", "a", "3", "4"])
    assert numbers.tolist() == [0, 1, 0, 2] and alone == 2


def test_intervals_are_those_of_resampled_patients() -> None:
    groups = np.repeat(np.arange(12), np.arange(1, 13))
    one_a_study = rows(len(groups), 1)
    grouped = one_a_study.grouped(groups)
    bootstrap = Bootstrap({"a": grouped}, resamples=60, seed=3)
    chosen = np.random.default_rng(3).integers(12, size=(60, 12))
    drawn = []
    for people in chosen:
        studies = np.concatenate([np.flatnonzero(groups == p) for p in people])
        drawn.append(Rows(one_a_study.matrix[studies], one_a_study.widths).scores())
    effective = effective_patients(np.arange(1, 13))
    assert effective == pytest.approx(78**2 / 650)
    for name in ("BLEU_4", "ROUGE_L", "CIDEr", "clinical_micro_f1"):
        expected = expanded_percentiles(0.5, np.array([d[name] for d in drawn]), 0.9, effective)
        assert bootstrap.interval(name, 0.9, of="a") == pytest.approx(expected)
    assert bootstrap.interval("METEOR", 0.9, of="a") is None


def test_few_patients_widen_an_interval() -> None:
    drawn = np.random.default_rng(0).normal(size=200_000)
    wide, narrow = (expanded_percentiles(0.0, drawn, 0.95, n) for n in (5, 1e6))
    assert narrow == pytest.approx([-1.96, 1.96], abs=0.02)
    assert wide == pytest.approx([-t.ppf(0.975, 4) * np.sqrt(5 / 4), t.ppf(0.975, 4) * np.sqrt(5 / 4)], abs=0.1)
    assert expanded_percentiles(0.0, np.array([np.nan, 1.0, np.nan]), 0.95, 9) == [1, 1]
    assert expanded_percentiles(0.0, np.array([np.nan]), 0.95, 9) is None


def test_jackknife() -> None:
    values = np.random.default_rng(0).random(40)
    without = (values.sum() - values) / 39
    low, high = jackknife_interval(values.mean(), without, 0.95, 40, logit=False)
    error = values.std(ddof=1) / np.sqrt(40)
    assert (high - low) / 2 == pytest.approx(error * t.ppf(0.975, 39))
    near_one = jackknife_interval(0.98, np.array([0.97, 0.99, 0.98]), 0.95, 3, logit=True)
    assert 0 < near_one[0] < 0.98 < near_one[1] < 1
    assert jackknife_interval(1.0, np.ones(5), 0.95, 5, logit=True) == [1, 1]


def test_the_side_accuracy_counts_patients_by_their_findings_with_a_side() -> None:
    own = drawn(1, 60), drawn(2, 60)
    zeros = np.zeros(60)
    one_a_study = Statistics(np.ones((60, 10)), zeros, zeros, found=own[0], truth=own[1]).rows()
    grouped = one_a_study.grouped(np.arange(60) % 12)
    name, bootstrap = "clinical_side_accuracy", Bootstrap({"a": grouped}, resamples=2, seed=0)
    sums = [np.delete(grouped.matrix, p, axis=0).sum(0, keepdims=True) for p in range(12)]
    without = np.array([grouped.score(total)[name][0] for total in sums])
    sided = grouped.matrix[:, -1]
    effective = sided.sum() ** 2 / (sided**2).sum()
    assert 1 < effective < 12 == effective_patients(grouped.sizes("CIDEr"))
    expected = jackknife_interval(grouped.scores()[name], without, 0.95, effective, logit=True)
    assert bootstrap.interval(name, 0.95, of="a") == pytest.approx(expected)


def test_nothing_against_itself() -> None:
    own = rows(40, 2)
    bootstrap = Bootstrap({"a": own, "b": own}, resamples=50, seed=0)
    for name in SCORES:
        if name not in ("METEOR", "clinical_side_accuracy"):
            assert bootstrap.interval(name, 0.95, of="a", minus="b") == [0, 0]
    assert set(randomisation(own, own, draws=99, seed=0).values()) == {1}


def test_a_clear_difference() -> None:
    good, bad = rows(200, 1, quality=0.95), rows(200, 1, quality=0.2)
    p = randomisation(good, bad, draws=199, seed=0)
    assert p["clinical_micro_f1"] == p["ROUGE_L"] == pytest.approx(1 / 200)
    low, high = Bootstrap({"a": good, "b": bad}, resamples=200, seed=0).interval("ROUGE_L", 0.95, of="a", minus="b")
    assert 0 < low < good.scores()["ROUGE_L"] - bad.scores()["ROUGE_L"] < high


def test_p_is_that_of_all_swaps() -> None:
    a, b = rows(8, 1), rows(8, 2)
    gap = (a.matrix - b.matrix)[:, a.widths["n"] + a.widths["bleu"]]
    signs = np.array([[1 if k >> i & 1 else -1 for i in range(8)] for k in range(256)])
    exact = np.mean(np.abs(signs @ gap) >= abs(gap.sum()) - 1e-12)
    assert randomisation(a, b, draws=20_000, seed=1)["ROUGE_L"] == pytest.approx(exact, abs=0.015)


def test_p_of_equal_systems_is_uniform() -> None:
    p = [randomisation(rows(30, 2 * i), rows(30, 2 * i + 1), draws=99, seed=i)["ROUGE_L"] for i in range(200)]
    assert 0.02 <= np.mean(np.array(p) <= 0.05) <= 0.1 and 0.4 < np.mean(p) < 0.6


def test_holm() -> None:
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1, "b": 1} and holm({}) == {}


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "_CHUNK_CELLS", 50_000)
    a, b = rows(500, 1), rows(500, 2)
    tracemalloc.start()
    randomisation(a, b, draws=4_000, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20  # all weights at once would be 16 MB, and the swapped sums more


@pytest.mark.slow
def test_coverage(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The short form of benchmarks/interval_coverage.py: fewer and smaller sets, without METEOR."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import interval_coverage as simulation

    splits = json.loads((real_data / "iu_xray/annotation.json").read_text())
    reports = [s["report"].lower().replace(".", " .") for split in splits.values() for s in split]
    people = simulation.population(reports, 600, np.random.default_rng(0), meteor=False)
    found = simulation.coverage(people, patients=120, draws=60, resamples=300, seed=1)["coverage"]
    # 60 sets say .95 to within .03, and sets of 120 patients are harder than those of 289.
    assert min(found["patients_shipped"].values()) >= 0.85
    assert found["studies"]["ROUGE_L"] < 0.8 < found["patients_shipped"]["ROUGE_L"]
