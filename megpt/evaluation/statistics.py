"""Everything that is scored of a set of studies, one row a study, and the scores of any weighting of the rows.

All scores follow from weighted sums of the columns: BLEU from summed counts, METEOR from summed statistics, ROUGE-L
and CIDEr from means, the clinical F1 from summed hits and misses. So a bootstrap is one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megpt.evaluation import nlg
from megpt.evaluation.meteor import COLUMNS as METEOR_COLUMNS
from megpt.evaluation.meteor import meteor

BLEU = tuple(f"BLEU_{n}" for n in range(1, nlg.ORDERS + 1))
CLINICAL = ("clinical_micro_f1", "clinical_macro_f1")
SCORES = (*BLEU, "METEOR", "ROUGE_L", "CIDEr", *CLINICAL)
"""The names in metrics.json, in the order they are shown."""

_CHUNK_CELLS = 20_000_000


@dataclass(frozen=True)
class Statistics:
    """N studies, one row each. `meteor`, `found` and `truth` may be absent."""

    bleu: np.ndarray
    """(N, 10) int64, see `nlg.bleu_statistics`."""
    rouge: np.ndarray
    """(N,)"""
    cider: np.ndarray
    """(N,) scores within this very set; a resample keeps them, so its document frequencies are the set's."""
    meteor: np.ndarray | None = None
    """(N, 23), see `meteor.meteor_statistics`."""
    found: np.ndarray | None = None
    """(N, 14) bool: observations the generated report calls present."""
    truth: np.ndarray | None = None
    """(N, 14) bool: those the reference calls present."""

    def __len__(self) -> int:
        return len(self.rouge)

    def scores(self) -> dict[str, float | None]:
        """Name → score of the whole set, in [0, 1] but for CIDEr (0 to 10); None where it was not computed."""
        values = self._scores(np.ones((1, len(self))))
        return {name: float(values[name][0]) if name in values else None for name in SCORES}

    def per_study(self) -> dict[str, np.ndarray]:
        """Name → (N,) score of each study alone; `clinical_f1` is 1 where both reports name nothing."""
        scores = dict(zip(BLEU, nlg.bleu(self.bleu).T, strict=True))
        if self.meteor is not None:
            scores["METEOR"] = meteor(self.meteor)
        scores |= {"ROUGE_L": self.rouge, "CIDEr": self.cider}
        if self.found is not None and self.truth is not None:
            hits, wrong = (self.found & self.truth).sum(1), (self.found ^ self.truth).sum(1)
            total = 2 * hits + wrong
            scores["clinical_f1"] = np.where(total > 0, 2 * hits / np.maximum(total, 1), 1.0)
        return scores

    def intervals(self, *, resamples: int, confidence: float, seed: int) -> dict[str, list[float] | None]:
        """Name → [low, high], percentiles of the score over resamples of the studies with replacement.

        A macro F1 leaves out, in each resample, the observations that its references do not have.
        """
        rng = np.random.default_rng(seed)
        n, tail = len(self), 100 * (1 - confidence) / 2
        size = max(1, min(resamples, _CHUNK_CELLS // max(n, 1)))
        drawn: dict[str, list[np.ndarray]] = {}
        for start in range(0, resamples, size):
            rows = min(size, resamples - start)
            weights = rng.multinomial(n, np.full(n, 1 / n), size=rows).astype(np.float64)
            for name, values in self._scores(weights).items():
                drawn.setdefault(name, []).append(values)
        return {
            name: [float(v) for v in np.nanpercentile(np.concatenate(drawn[name]), [tail, 100 - tail])]
            if name in drawn
            else None
            for name in SCORES
        }

    @property
    def labels(self) -> tuple[np.ndarray, np.ndarray]:
        """(N, 14) bool each: found, truth."""
        if self.found is None or self.truth is None:
            raise ValueError("these statistics have no clinical labels")
        return self.found, self.truth

    def observations(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(14,) counts each: called present by both, by the generated report only, by the reference only."""
        found, truth = self.labels
        return (found & truth).sum(0), (found & ~truth).sum(0), (~found & truth).sum(0)

    def _scores(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Scores of B weightings (B, N) of the studies: name → (B,)."""
        n = weights.sum(1)
        scores = dict(zip(BLEU, nlg.bleu(weights @ self.bleu).T, strict=True))
        if self.meteor is not None:
            scores["METEOR"] = meteor(weights @ self.meteor.reshape(-1, METEOR_COLUMNS))
        scores |= {"ROUGE_L": weights @ self.rouge / n, "CIDEr": weights @ self.cider / n}
        if self.found is not None and self.truth is not None:
            hits, extra = weights @ (self.found & self.truth), weights @ (self.found & ~self.truth)
            missed = weights @ (~self.found & self.truth)
            scores["clinical_micro_f1"] = f1(hits.sum(1), extra.sum(1), missed.sum(1))
            each = np.where(hits + missed > 0, f1(hits, extra, missed), np.nan)
            there = np.maximum((hits + missed > 0).sum(1), 1)
            scores["clinical_macro_f1"] = np.nansum(each, axis=1) / there
        return scores


def f1(hits: np.ndarray, extra: np.ndarray, missed: np.ndarray) -> np.ndarray:
    """2·hits / (2·hits + extra + missed); 0 where there is nothing to find and nothing found."""
    total = 2 * hits + extra + missed
    return np.where(total > 0, 2 * hits / np.maximum(total, 1e-12), 0.0)
