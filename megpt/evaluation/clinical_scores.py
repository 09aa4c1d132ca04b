"""Clinical scores of what two sets of reports say: F1 over several sets of observations, and sides.

    counts = ClinicalCounts.of(generated, references)      # two `clinical.Findings` of the same N studies
    counts.scores()                                        # name → value
    counts.weighted(weights)                               # (B, N) weightings → name → (B,), for a bootstrap
    verdicts(generated, references)                        # (N, 14): agreed, invented, missed, wrong side, doubted

Every score follows from weighted sums of one row a study, so that any resampling is a matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megpt.evaluation.clinical import PRESENT, UNCERTAIN, Findings
from megpt.study import CHEXPERT

FIVE = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
"""The observations of CheXpert's competition (Irvin et al., 2019)."""

THIRTEEN = tuple(name for name in CHEXPERT if name != "No Finding")

SCORES = (
    "clinical_micro_f1",
    "clinical_macro_f1",
    "clinical_micro_f1_14",
    "clinical_micro_f1_5",
    "clinical_micro_f1_uncertain",
    "clinical_side_accuracy",
)
"""The names in metrics.json: micro-F1 over 13 observations without No Finding, the mean of their F1 over those that the
references have, micro-F1 over all 14, over CheXpert's five, over 13 with uncertain counted as present; and of the
(study, observation) that both reports call present, the reference on a stated side, the share on the same side."""

AGREED, INVENTED, MISSED, WRONG_SIDE, DOUBTED = 1, 2, 3, 4, 5
VERDICTS = {
    0: "",
    AGREED: "agreed",
    INVENTED: "invented",
    MISSED: "missed",
    WRONG_SIDE: "wrong side",
    DOUBTED: "doubted",
}


def verdicts(generated: Findings, references: Findings) -> np.ndarray:
    """(N, 14) int8, keys of `VERDICTS`: what to say of each observation of each study.

    Wrong side: both reports call it present and name different sides; a side that is not said is not wrong. Doubted:
    one report calls it uncertain and the other does not. 0 where neither calls it present or uncertain.
    """
    found, truth = generated.labels, references.labels
    there, wanted = found == PRESENT, truth == PRESENT
    doubt, doubted = found == UNCERTAIN, truth == UNCERTAIN
    other = (generated.sides != 0) & (references.sides != 0) & (generated.sides != references.sides)
    result = np.zeros(found.shape, dtype=np.int8)
    result[(there & wanted) | (doubt & doubted)] = AGREED
    result[there & wanted & other] = WRONG_SIDE
    result[there & ~wanted & ~doubted] = INVENTED
    result[wanted & ~there & ~doubt] = MISSED
    result[doubt ^ doubted] = DOUBTED
    return result


@dataclass(frozen=True)
class ClinicalCounts:
    """N studies, one row each, int8."""

    hits: np.ndarray
    """(N, 14): called present by both."""
    extra: np.ndarray
    """(N, 14): by the generated report only."""
    missed: np.ndarray
    """(N, 14): by the reference only."""
    uncertain: np.ndarray
    """(N, 14, 3): hits, extra and missed with uncertain counted as present."""
    sided: np.ndarray
    """(N, 14): called present by both, the reference on a stated side."""
    same_side: np.ndarray
    """(N, 14): of these, those on the same side in the generated report."""

    @classmethod
    def of(cls, generated: Findings, references: Findings) -> ClinicalCounts:
        """Counts of N generated reports against their N references.

        Raises:
            ValueError: as many generated reports as references are needed.
        """
        if len(generated) != len(references):
            raise ValueError(f"{len(generated)} generated reports against {len(references)} references")
        sure = _hits(generated.labels == PRESENT, references.labels == PRESENT)
        doubts = _hits(abs(generated.labels) == PRESENT, abs(references.labels) == PRESENT)
        sided = sure[0] & (references.sides != 0)
        same = sided & (generated.sides == references.sides)
        columns = (*sure, np.stack(doubts, axis=-1), sided, same)
        return cls(*(column.astype(np.int8) for column in columns))

    def __len__(self) -> int:
        return len(self.hits)

    def scores(self) -> dict[str, float | None]:
        """Name → score of the whole set in [0, 1]; None for a side accuracy where no side can be compared."""
        weighted = self.weighted(np.ones((1, len(self))))
        return {name: None if np.isnan(value[0]) else float(value[0]) for name, value in weighted.items()}

    def weighted(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Scores of B weightings (B, N) of the studies: name → (B,); NaN for a side accuracy of nothing."""
        hits, extra, missed = (weights @ column for column in (self.hits, self.extra, self.missed))
        doubts = np.tensordot(weights, self.uncertain, axes=1)
        each, known = _f1(hits, extra, missed)[:, _columns(THIRTEEN)], (hits + missed)[:, _columns(THIRTEEN)] > 0
        sided, same = (weights @ self.sided).sum(1), (weights @ self.same_side).sum(1)
        return {
            "clinical_micro_f1": _micro(hits, extra, missed, THIRTEEN),
            "clinical_macro_f1": (each * known).sum(1) / np.maximum(known.sum(1), 1),
            "clinical_micro_f1_14": _micro(hits, extra, missed, CHEXPERT),
            "clinical_micro_f1_5": _micro(hits, extra, missed, FIVE),
            "clinical_micro_f1_uncertain": _micro(doubts[..., 0], doubts[..., 1], doubts[..., 2], THIRTEEN),
            "clinical_side_accuracy": np.where(sided > 0, same / np.maximum(sided, 1e-12), np.nan),
        }

    def by_observation(self, weights: np.ndarray | None = None) -> np.ndarray:
        """(B, 14) F1 of each observation under B weightings, (14,) of the whole set; 0 where there is nothing."""
        used = np.ones((1, len(self))) if weights is None else weights
        f1 = _f1(used @ self.hits, used @ self.extra, used @ self.missed)
        return f1[0] if weights is None else f1


def _hits(found: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return found & truth, found & ~truth, ~found & truth


def _columns(names: tuple[str, ...]) -> list[int]:
    return [CHEXPERT.index(name) for name in names]


def _micro(hits: np.ndarray, extra: np.ndarray, missed: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    columns = _columns(names)
    return _f1(*(counts[:, columns].sum(1) for counts in (hits, extra, missed)))


def _f1(hits: np.ndarray, extra: np.ndarray, missed: np.ndarray) -> np.ndarray:
    total = 2 * hits + extra + missed
    return np.where(total > 0, 2 * hits / np.maximum(total, 1e-12), 0.0)
