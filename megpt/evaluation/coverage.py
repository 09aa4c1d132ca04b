"""Risk against coverage: what the scores are where the reports that a model is least sure of are set aside.

A column that orders reports by their errors can decide which ones a person looks at first; one that does not, cannot.
Source: selective classification (El-Yaniv and Wiener, JMLR 2010; Geifman and El-Yaniv, NeurIPS 2017).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from megpt.config import EvaluateConfig
from megpt.evaluation.intervals import Bootstrap
from megpt.evaluation.pairs import Pair
from megpt.evaluation.statistics import Rows

SIGNALS = {"logprob": -1, "novelty": 1}
"""The columns of predictions that order reports; -1: the lowest values are set aside first, 1: the highest."""
COVERAGES = (1.0, 0.9, 0.75, 0.5, 0.25)
"""Shares of the scored studies that are kept."""
SHOWN = ("clinical_micro_f1", "BLEU_4", "CIDEr")


def risk_coverage(
    rows: Rows, pairs: Sequence[Pair], groups: np.ndarray, settings: EvaluateConfig, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """Signal → a row for each coverage; empty for reports that come without such columns.

    A study without a value, such as one that failed, is set aside first. CIDEr keeps the document frequencies of the
    whole set.

    Args:
        rows: of the N scored studies. pairs: the same. groups: (N,) number of each study's patient.

    Returns:
        Rows of `coverage`, `n`, `threshold` (the last value that is kept), and `scores` and `intervals` of `SHOWN`.
    """
    found = {}
    for name, worst in SIGNALS.items():
        values = np.array([math.nan if (v := getattr(pair, name)) is None else v for pair in pairs], dtype=float)
        if np.isnan(values).all():
            continue
        order = np.argsort(np.where(np.isnan(values), np.inf, worst * values), kind="stable")
        found[name] = [_kept(rows, values, order, groups, share, settings, seed) for share in COVERAGES]
    return found


def _kept(
    rows: Rows,
    values: np.ndarray,
    order: np.ndarray,
    groups: np.ndarray,
    share: float,
    settings: EvaluateConfig,
    seed: int,
) -> dict[str, Any]:
    kept = order[: math.ceil(share * len(order))]
    part = replace(rows, matrix=rows.matrix[kept])
    patients = part.grouped(np.unique(groups[kept], return_inverse=True)[1])
    several = len(patients.matrix) > 1
    bootstrap = Bootstrap({"kept": patients}, resamples=settings.bootstrap, seed=seed) if several else None
    scores, last = part.scores(), float(values[kept[-1]])
    return {
        "coverage": share,
        "n": len(kept),
        "threshold": None if math.isnan(last) else last,
        "scores": {name: scores[name] for name in SHOWN},
        "intervals": {
            name: bootstrap.interval(name, settings.confidence, of="kept") if bootstrap else None for name in SHOWN
        },
    }
