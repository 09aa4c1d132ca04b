"""Confidence intervals and tests over patients.

Studies of one patient resemble each other, and a test set may hold hundreds of studies of a few patients; so whatever
is resampled or swapped here is a patient with all its studies. Intervals are percentiles over resamples of patients,
expanded for few patients (Hesterberg, 2015): their number counts as Kish's effective one, since patients with many
studies weigh more. Two scores depend on a handful of patients and get a jackknife interval on the logit scale: the
macro F1 on those with rare findings, where percentiles hold 83 to 90 % of what they promise, and BCa 78 to 86 %; the
side accuracy on those whose findings have a side, who may be 26 effective patients of 289
(benchmarks/interval_coverage.py). The tests are paired randomisations (Noreen, 1989), corrected for many scores by
Holm's method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import norm, t

from megpt.evaluation.clinical_scores import SIDE
from megpt.evaluation.statistics import Rows

Scores = dict[str, np.ndarray]
_CHUNK_CELLS = 4_000_000
"""Weights (draws × patients) that exist at one time."""
JACKKNIFED = ("clinical_macro_f1", SIDE)
METHOD = {"all": "expanded percentile bootstrap", **dict.fromkeys(JACKKNIFED, "jackknife, logit scale")}
"""How the intervals come about, as metrics.json tells it; all but the named scores have the first."""


def patients(subject_ids: Sequence[str], study_ids: Sequence[str]) -> tuple[np.ndarray, int]:
    """(N,) number of each study's patient, and how many studies have none; such a study is a patient of its own."""
    keys = [("subject", s) if s else ("study", own) for s, own in zip(subject_ids, study_ids, strict=True)]
    numbers: dict[tuple[str, str], int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys]), sum(not s for s in subject_ids)


class Bootstrap:
    """Scores of resamples of patients, the same resamples for every set of reports.

    Args:
        sets: name → rows, one a patient (`Rows.grouped`), the same patients in the same order.
    """

    def __init__(self, sets: Mapping[str, Rows], *, resamples: int, seed: int):
        self._whole = {name: _score(rows, rows.matrix.sum(0, keepdims=True)) for name, rows in sets.items()}
        self._drawn = {name: _stack(parts) for name, parts in _draws(sets, resamples, seed).items()}
        self._without = {name: _jackknife(rows) for name, rows in sets.items()}
        self._sets = sets

    def interval(self, score: str, confidence: float, *, of: str, minus: str | None = None) -> list[float] | None:
        """[low, high] of a score of one set, or of its difference from another; None where it is not defined."""
        parts = []
        for table in (self._whole, self._drawn, self._without):
            ours, theirs = table[of].get(score), table[minus].get(score) if minus else 0.0
            if ours is None or theirs is None:
                return None
            parts.append(ours - theirs)
        value, drawn, without = float(parts[0][0]), parts[1], parts[2]
        if not np.isfinite(value):
            return None
        effective = effective_patients(self._sets[of].sizes(score))
        if score in JACKKNIFED:
            return jackknife_interval(value, without, confidence, effective, logit=minus is None)
        return expanded_percentiles(value, drawn, confidence, effective)


def _draws(sets: Mapping[str, Rows], resamples: int, seed: int) -> dict[str, list[Scores]]:
    rng = np.random.default_rng(seed)
    count = len(next(iter(sets.values())).matrix)
    drawn: dict[str, list[Scores]] = {name: [] for name in sets}
    for size in _chunks(resamples, count):
        weights = resample_weights(rng, size, count)
        for name, rows in sets.items():
            drawn[name].append(_score(rows, weights @ rows.matrix))
    return drawn


def resample_weights(rng: np.random.Generator, size: int, count: int) -> np.ndarray:
    """(size, count) how often each of `count` patients is in each resample."""
    chosen = rng.integers(count, size=(size, count)) + np.arange(size)[:, None] * count
    return np.bincount(chosen.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)


def effective_patients(sizes: np.ndarray) -> float:
    """Kish's effective number (Kish, 1965) of patients who weigh `sizes` (P,): P where all weigh the same."""
    return float(sizes.sum() ** 2 / np.sum(sizes**2))


def expanded_percentiles(value: float, drawn: np.ndarray, confidence: float, effective: float) -> list[float] | None:
    """[low, high]: percentiles of the resampled scores `drawn` (B,), as much wider as Student's t is than the normal.

    None where the score is not defined; NaN among `drawn` is left out.
    """
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn) or not np.isfinite(value):
        return None
    # The resamples' own variance is too small by (P - 1) / P as well.
    degrees = max(effective - 1, 1.0)
    tail = norm.cdf(-np.sqrt(effective / degrees) * t.ppf((1 + confidence) / 2, degrees))
    return [float(v) for v in np.quantile(drawn, [tail, 1 - tail])]


def jackknife_interval(
    value: float, without: np.ndarray, confidence: float, effective: float, *, logit: bool
) -> list[float] | None:
    """[low, high]: `value` ± t · jackknife error, from the scores without each patient (P,).

    Args:
        logit: on the logit scale, for a score in [0, 1]; False for a difference.
    """
    without = without[np.isfinite(without)]
    if not np.isfinite(value) or len(without) < 2:
        return None
    error = np.sqrt((len(without) - 1) / len(without) * np.sum((without - without.mean()) ** 2))
    reach = float(error * t.ppf((1 + confidence) / 2, max(effective - 1, 1.0)))
    if not logit or not 0 < value < 1:
        return [value - reach, value + reach]
    middle, reach = np.log(value / (1 - value)), reach / (value * (1 - value))
    return [float(1 / (1 + np.exp(reach - middle))), float(1 / (1 + np.exp(-reach - middle)))]


def randomisation(ours: Rows, theirs: Rows, *, draws: int, seed: int) -> dict[str, float]:
    """Score → two-sided p of "both systems are the same": the reports of each patient are swapped or not, by a coin.

    Args:
        ours, theirs: rows, one a patient, the same patients in the same order.
        draws: p is never below 1 / (draws + 1).
    """
    rng = np.random.default_rng(seed)
    gap = ours.matrix - theirs.matrix
    a, b = ours.matrix.sum(0), theirs.matrix.sum(0)
    observed = {name: v[0] - w[0] for (name, v), w in _zip(_score(ours, a[None]), _score(theirs, b[None]))}
    as_far = dict.fromkeys(observed, 0)
    for size in _chunks(draws, len(gap)):
        moved = rng.integers(2, size=(size, len(gap))).astype(np.float64) @ gap
        for (name, v), w in _zip(_score(ours, a - moved), _score(theirs, b + moved)):
            difference = np.nan_to_num(np.abs(v - w))
            as_far[name] += int(np.sum(difference >= abs(observed[name]) - 1e-12))
    return {name: (count + 1) / (draws + 1) for name, count in as_far.items() if np.isfinite(observed[name])}


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """p values corrected for their number by Holm's step-down method (Holm, 1979), in the order given."""
    corrected: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p, key=lambda n: p[n])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[name]))
        corrected[name] = largest
    return {name: corrected[name] for name in p}


def _jackknife(rows: Rows) -> Scores:
    """Score → (P,) without each patient."""
    total = rows.matrix.sum(0)
    size = max(1, _CHUNK_CELLS // rows.matrix.shape[1])
    starts = range(0, len(rows.matrix), size)
    return _stack([_score(rows, total - rows.matrix[i : i + size]) for i in starts])


def _score(rows: Rows, sums: np.ndarray) -> Scores:
    return {**rows.score(sums), **rows.observation_f1(sums)}


def _zip(ours: Scores, theirs: Scores):
    return (((name, values), theirs[name]) for name, values in ours.items() if name in theirs)


def _stack(parts: list[Scores]) -> Scores:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _chunks(draws: int, count: int) -> list[int]:
    size = max(1, min(draws, _CHUNK_CELLS // max(count, 1)))
    return [min(size, draws - start) for start in range(0, draws, size)]
