"""Scores of several training runs that differ in their seed: means, intervals, and paired differences.

    over_seeds([0.171, 0.178, 0.169], confidence=0.95)          # mean and Student's t interval
    over_seeds(paired(ours, theirs), confidence=0.95)           # of the differences, seed by seed

The interval over seeds answers whether another training run would give the same; it says nothing of other patients.
For that, `pooled` makes one set of reports of the runs of all seeds, in which the patient stays the unit.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from scipy.stats import t

from megpt.evaluation.pairs import Pair, Pairs


@dataclass(frozen=True)
class OverSeeds:
    """Mean of `n` runs. `sd` (n − 1 in the denominator), `low` and `high` are None for a single run; `p`, two-sided,
    of a mean of 0, is None too where all values are one number other than 0."""

    n: int
    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None


def over_seeds(values: Sequence[float], *, confidence: float) -> OverSeeds | None:
    """Mean with Student's t interval of n − 1 degrees of freedom; None without values.

    Args:
        values: one score a seed, or one difference a seed (then `p` is that of the paired t test).
        confidence: coverage of the interval, in (0, 1).
    """
    n = len(values)
    if not n:
        return None
    mean = statistics.fmean(values)
    if n == 1:
        return OverSeeds(1, mean)
    sd = statistics.stdev(values)
    error = sd / math.sqrt(n)
    reach = float(t.ppf((1 + confidence) / 2, n - 1)) * error
    if error:
        p = float(2 * t.sf(abs(mean) / error, n - 1))
    else:
        p = 1.0 if mean == 0 else None
    return OverSeeds(n, mean, sd, mean - reach, mean + reach, p)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """Ours minus theirs for each seed that both have."""
    return [value - theirs[seed] for seed, value in ours.items() if seed in theirs]


def pooled(runs: Iterable[tuple[int, Pairs]]) -> Pairs:
    """The reports of several seeds as one set, in which a patient has each study once a seed.

    A study without a patient is its own patient, the same one for every seed: counting it once a seed would make
    differences look surer than they are.
    """
    pairs: list[Pair] = []
    models: list[str] = []
    without_reference = 0
    for seed, own in runs:
        pairs += [
            replace(pair, study_id=f"{pair.study_id} (seed {seed})", subject_id=pair.subject_id or pair.study_id)
            for pair in own.pairs
        ]
        models += [model for model in own.models if model not in models]
        without_reference += own.without_reference
    return Pairs(pairs, without_reference, models)
