"""Everything that is scored of a set of studies, one row a study, and the scores of any weighting of the rows.

All scores follow from weighted sums of the columns: BLEU from summed counts, METEOR from summed statistics, ROUGE-L
and CIDEr from means, the clinical F1 from summed hits and misses. So the rows of a patient may be added up, and a
bootstrap is one matrix product (`intervals`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from megpt.evaluation import nlg
from megpt.evaluation.meteor import COLUMNS as METEOR_COLUMNS
from megpt.evaluation.meteor import meteor
from megpt.study import CHEXPERT

BLEU = tuple(f"BLEU_{n}" for n in range(1, nlg.ORDERS + 1))
CLINICAL = (
    "clinical_micro_f1",
    "clinical_macro_f1",
    "clinical_micro_f1_14",
    "clinical_micro_f1_5",
    "clinical_micro_f1_uncertain",
    "clinical_side_accuracy",
)
SCORES = (*BLEU, "METEOR", "ROUGE_L", "CIDEr", *CLINICAL)
"""The names in metrics.json, in the order they are shown."""

PRESENT, UNCERTAIN = 1, -1
"""Label codes that count; every other code (absent, not mentioned) is a negative."""
ALL = len(CHEXPERT)
FINDINGS = np.array([name != "No Finding" for name in CHEXPERT])
"""(14,) bool: the 13 observations of the headline. No Finding is left out: a model that calls every film normal would
earn as much by it as by its own permutation."""
FIVE = np.isin(CHEXPERT, ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"])
"""(14,) bool: CheXpert's competition tasks."""


@dataclass(frozen=True)
class Statistics:
    """N studies, one row each. `meteor`, `found`, `truth` and `sides` may be absent."""

    bleu: np.ndarray
    """(N, 10) int32, see `nlg.bleu_statistics`."""
    rouge: np.ndarray
    """(N,)"""
    cider: np.ndarray
    """(N,) scores within this very set; a resample keeps them, so its document frequencies are the set's."""
    meteor: np.ndarray | None = None
    """(N, 23), see `meteor.meteor_statistics`."""
    found: np.ndarray | None = None
    """(N, 14) labels of the generated report: PRESENT, UNCERTAIN, or any other code; bool is taken as present."""
    truth: np.ndarray | None = None
    """(N, 14) labels of the reference, coded alike."""
    sides: np.ndarray | None = None
    """(N, 2) observations whose side both reports say: those of the same side, and all of them."""

    def __len__(self) -> int:
        return len(self.rouge)

    def rows(self) -> Rows:
        """The columns whose sums give every score."""
        columns = {
            "n": np.ones((len(self), 1)),
            "bleu": self.bleu,
            "rouge": self.rouge[:, None],
            "cider": self.cider[:, None],
        }
        if self.meteor is not None:
            columns["meteor"] = self.meteor.reshape(-1, METEOR_COLUMNS)
        if self.found is not None and self.truth is not None:
            columns["clinical"] = _hits(self.found == PRESENT, self.truth == PRESENT)
            either = (np.isin(labels, (PRESENT, UNCERTAIN)) for labels in (self.found, self.truth))
            columns["uncertain"] = _hits(*either)
        if self.sides is not None:
            columns["sides"] = self.sides
        widths = {name: column.shape[1] for name, column in columns.items()}
        return Rows(np.hstack([np.asarray(c, dtype=np.float64) for c in columns.values()]), widths)

    def scores(self) -> dict[str, float | None]:
        """Name → score of the whole set, in [0, 1] but for CIDEr (0 to 10); None where it was not computed."""
        return self.rows().scores()

    def per_study(self) -> dict[str, np.ndarray]:
        """Name → (N,) score of each study alone; `clinical_f1` is over 14 and 1 where both reports name nothing."""
        scores = dict(zip(BLEU, nlg.bleu(self.bleu).T, strict=True))
        if self.meteor is not None:
            scores["METEOR"] = meteor(self.meteor)
        scores |= {"ROUGE_L": self.rouge, "CIDEr": self.cider}
        if self.found is not None and self.truth is not None:
            found, truth = self.labels
            hits, wrong = (found & truth).sum(1), (found ^ truth).sum(1)
            total = 2 * hits + wrong
            scores["clinical_f1"] = np.where(total > 0, 2 * hits / np.maximum(total, 1), 1.0)
        return scores

    @property
    def labels(self) -> tuple[np.ndarray, np.ndarray]:
        """(N, 14) bool each, what is called present: found, truth."""
        if self.found is None or self.truth is None:
            raise ValueError("these statistics have no clinical labels")
        return self.found == PRESENT, self.truth == PRESENT

    def observations(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(14,) counts each: called present by both, by the generated report only, by the reference only."""
        found, truth = self.labels
        return (found & truth).sum(0), (found & ~truth).sum(0), (~found & truth).sum(0)


@dataclass(frozen=True)
class Rows:
    """R rows of columns that add up: `matrix` (R, K) float64, and how many columns each name has, in order."""

    matrix: np.ndarray
    widths: dict[str, int]

    @property
    def sizes(self) -> np.ndarray:
        """(R,) studies of each row."""
        return self.matrix[:, 0]

    def grouped(self, groups: np.ndarray) -> Rows:
        """The rows of each group added up; `groups` (R,) holds numbers from 0 on."""
        total = np.zeros((int(groups.max(initial=-1)) + 1, self.matrix.shape[1]))
        np.add.at(total, groups, self.matrix)
        return replace(self, matrix=total)

    def scores(self) -> dict[str, float | None]:
        """Name → score of all rows together; None where it was not computed or is not defined."""
        values = self.score(self.matrix.sum(0, keepdims=True))
        return {name: _finite(values[name][0]) if name in values else None for name in SCORES}

    def score(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Scores of B weighted sums of the rows (B, K): name → (B,); NaN where a score is not defined."""
        parts = dict(self._parts(sums))
        n = parts["n"][:, 0]
        with np.errstate(divide="ignore", invalid="ignore"):
            scores = dict(zip(BLEU, nlg.bleu(parts["bleu"]).T, strict=True))
            if "meteor" in parts:
                scores["METEOR"] = meteor(parts["meteor"])
            scores |= {"ROUGE_L": parts["rouge"][:, 0] / n, "CIDEr": parts["cider"][:, 0] / n}
            if "clinical" in parts:
                scores |= _clinical(*_thirds(parts["clinical"]))
                uncertain = (counts[:, FINDINGS].sum(1) for counts in _thirds(parts["uncertain"]))
                scores["clinical_micro_f1_uncertain"] = f1(*uncertain)
            if "sides" in parts:
                scores["clinical_side_accuracy"] = parts["sides"][:, 0] / parts["sides"][:, 1]
        return scores

    def observation_f1(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Observation → (B,) F1 of B weighted sums (B, K); NaN where neither report names it."""
        parts = dict(self._parts(sums))
        if "clinical" not in parts:
            return {}
        hits, extra, missed = _thirds(parts["clinical"])
        each = np.where(hits + extra + missed > 1e-9, f1(hits, extra, missed), np.nan)
        return dict(zip(CHEXPERT, each.T, strict=True))

    def _parts(self, sums: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        start = 0
        for name, width in self.widths.items():
            yield name, sums[:, start : start + width]
            start += width


def side_counts(
    found: np.ndarray, truth: np.ndarray, found_sides: np.ndarray, truth_sides: np.ndarray, *, unsaid: int = 0
) -> np.ndarray:
    """(N, 2) for `Statistics.sides`: over observations that both reports call present, and whose side both say.

    Args:
        found, truth: (N, 14) labels.
        found_sides, truth_sides: (N, 14) codes of the side; `unsaid` is the code of none.
    """
    both = (found == PRESENT) & (truth == PRESENT) & (found_sides != unsaid) & (truth_sides != unsaid)
    return np.stack([(both & (found_sides == truth_sides)).sum(1), both.sum(1)], axis=1)


def f1(hits: np.ndarray, extra: np.ndarray, missed: np.ndarray) -> np.ndarray:
    """2·hits / (2·hits + extra + missed); 0 where there is nothing to find and nothing found."""
    total = 2 * hits + extra + missed
    return np.where(total > 0, 2 * hits / np.maximum(total, 1e-12), 0.0)


def _clinical(hits: np.ndarray, extra: np.ndarray, missed: np.ndarray) -> dict[str, np.ndarray]:
    """The F1 of B counts (B, 14). The macro leaves out the observations that the references do not have."""
    chosen = {"clinical_micro_f1": FINDINGS, "clinical_micro_f1_14": np.ones(ALL, bool), "clinical_micro_f1_5": FIVE}
    scores = {
        name: f1(*(counts[:, columns].sum(1) for counts in (hits, extra, missed))) for name, columns in chosen.items()
    }
    there = (hits + missed > 1e-9)[:, FINDINGS]
    each = np.where(there, f1(hits, extra, missed)[:, FINDINGS], 0.0)
    scores["clinical_macro_f1"] = each.sum(1) / np.maximum(there.sum(1), 1)
    return scores


def _hits(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(N, 42): hits, extra and missed of 14 observations."""
    return np.hstack([found & truth, found & ~truth, ~found & truth])


def _thirds(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return counts[:, :ALL], counts[:, ALL : 2 * ALL], counts[:, 2 * ALL :]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
