"""Scores over seeds.

- mean, standard deviation, interval and p are those of scipy's and the standard library's, whatever the values
- one run has a mean and no interval; no run has nothing
- equal values have an interval of no width; a difference of 0 in every seed has p = 1
- the interval covers the truth as often as it says
- a difference is taken seed by seed, and only where both have the seed
- pooled reports keep the patient as the unit, and a study without a patient is one patient over all seeds
"""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from megpt.evaluation.pairs import Pair, Pairs
from megpt.evaluation.seeds import OverSeeds, over_seeds, paired, pooled

VALUES = st.lists(st.floats(-10, 10).map(lambda v: round(v, 6)), min_size=2, max_size=8)


@given(VALUES, st.sampled_from([0.5, 0.9, 0.95]))
def test_as_scipy_has_it(values: list[float], confidence: float) -> None:
    found = over_seeds(values, confidence=confidence)
    assert found is not None and found.n == len(values)
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert found.sd == pytest.approx(statistics.stdev(values))
    if found.sd:
        low, high = stats.t.interval(confidence, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
        assert (found.low, found.high) == pytest.approx((low, high))
        assert found.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=1e-12)


@given(VALUES, st.data())
def test_differences_are_the_paired_t_test(ours: list[float], data: st.DataObject) -> None:
    theirs = data.draw(st.lists(st.floats(-10, 10), min_size=len(ours), max_size=len(ours)))
    gaps = paired(dict(enumerate(ours)), dict(enumerate(theirs)))
    found = over_seeds(gaps, confidence=0.95)
    assert found is not None and found.mean == pytest.approx(statistics.fmean(ours) - statistics.fmean(theirs))
    if found.sd and found.sd > 1e-6:
        assert found.p == pytest.approx(stats.ttest_rel(ours, theirs).pvalue, abs=1e-9)


def test_few_values() -> None:
    assert over_seeds([], confidence=0.95) is None
    assert over_seeds([0.25], confidence=0.95) == OverSeeds(1, 0.25)
    assert over_seeds([0.5, 0.5], confidence=0.95) == OverSeeds(2, 0.5, 0.0, 0.5, 0.5, None)
    assert over_seeds([0.0, 0.0, 0.0], confidence=0.95) == OverSeeds(3, 0.0, 0.0, 0.0, 0.0, 1.0)
    # By hand: mean 2, standard error 1/√3, t of two degrees at .975 is 4.30265.
    found = over_seeds([1.0, 2.0, 3.0], confidence=0.95)
    assert found is not None and found.low == pytest.approx(2 - 4.30265 / math.sqrt(3), abs=1e-5)


def test_the_interval_covers_what_it_says() -> None:
    rng = np.random.default_rng(0)
    found = [over_seeds(rng.normal(0.3, 0.02, 3).tolist(), confidence=0.9) for _ in range(2000)]
    covered = sum(one.low <= 0.3 <= one.high for one in found if one and one.low is not None and one.high is not None)
    assert 0.88 < covered / 2000 < 0.92


def test_a_seed_that_only_one_has_is_left_out() -> None:
    assert paired({1: 0.5, 2: 0.75, 4: 1.0}, {2: 0.25, 1: 0.25, 3: 0.0}) == [0.25, 0.5]
    assert paired({1: 0.5}, {2: 0.5}) == []


def test_pooled_reports_keep_the_patient() -> None:
    one = [Pair("a", "x", "y", subject_id="p"), Pair("b", "x", "y")]
    other = [Pair("a", "z", "y", subject_id="p"), Pair("b", None, "y")]
    found = pooled([(1, Pairs(one, 2, ["m1"])), (2, Pairs(other, 1, ["m2"]))])
    assert [(pair.study_id, pair.subject_id, pair.generated) for pair in found.pairs] == [
        ("a (seed 1)", "p", "x"),
        ("b (seed 1)", "b", "x"),
        ("a (seed 2)", "p", "z"),
        ("b (seed 2)", "b", None),
    ]
    assert (found.without_reference, found.models, found.failed) == (3, ["m1", "m2"], 1)
