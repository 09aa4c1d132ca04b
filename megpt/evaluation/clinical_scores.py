"""Clinical scores of what two sets of reports say: F1 over several sets of observations, and sides.

    columns = clinical_columns(generated, references)      # two `clinical.Findings` of the same N studies: (N, 47)
    clinical_scores(columns.sum(0, keepdims=True))         # name → (1,)
    verdicts(generated, references)                        # (N, 14): agreed, invented, missed, wrong side, doubted

Every score follows from sums of the columns, so that the studies of a patient may be added up, and any resampling is a
matrix product (`statistics`, `intervals`).
"""

from __future__ import annotations

import numpy as np

from megpt.evaluation.clinical import PRESENT, UNCERTAIN, Findings
from megpt.study import CHEXPERT

ALL = len(CHEXPERT)
THIRTEEN = np.array([name != "No Finding" for name in CHEXPERT])
"""(14,) bool: the observations of the headline. No Finding is left out: a model that calls every film normal would earn
as much by it as by its own permutation."""
FIVE = np.isin(CHEXPERT, ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"])
"""(14,) bool: the observations of CheXpert's competition (Irvin et al., 2019)."""

SIDE = "clinical_side_accuracy"
CLINICAL = (
    "clinical_micro_f1",
    "clinical_macro_f1",
    "clinical_micro_f1_14",
    "clinical_micro_f1_5",
    "clinical_micro_f1_uncertain",
    SIDE,
)
"""The names in metrics.json: micro-F1 over 13 observations without No Finding, the mean of their F1 over those that the
references have, micro-F1 over all 14, over CheXpert's five, over 13 with uncertain counted as present; and of the
(study, observation) that both reports call present, the reference on a stated side, the share on the same side."""

COLUMNS = 3 * ALL + 3 + 2
"""Hits, extra and missed of each observation; the same of 13 together with uncertain as present; sides right, sides."""
SIDED = -1
"""The column of the findings whose side is judged."""

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


def clinical_columns(generated: Findings, references: Findings) -> np.ndarray:
    """(N, 47) int16, a row a study, see `COLUMNS`.

    Raises:
        ValueError: as many generated reports as references are needed.
    """
    if len(generated) != len(references):
        raise ValueError(f"{len(generated)} generated reports against {len(references)} references")
    sure = _hits(generated.labels == PRESENT, references.labels == PRESENT)
    doubts = _hits(abs(generated.labels[:, THIRTEEN]) == PRESENT, abs(references.labels[:, THIRTEEN]) == PRESENT)
    sided = sure[0] & (references.sides != 0)
    same = sided & (generated.sides == references.sides)
    together = [column.sum(1, keepdims=True) for column in (*doubts, same, sided)]
    return np.hstack([*sure, *together], dtype=np.int16, casting="unsafe")


def clinical_scores(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of B weighted sums of the columns (B, 47): name → (B,); NaN for a side accuracy of nothing."""
    counts, doubts, (same, sided) = _thirds(sums), sums[:, 3 * ALL : -2].T, sums[:, -2:].T
    there = (counts[0] + counts[2] > 1e-9)[:, THIRTEEN]
    each = np.where(there, f1(*counts)[:, THIRTEEN], 0.0)
    return {
        "clinical_micro_f1": _micro(counts, THIRTEEN),
        "clinical_macro_f1": each.sum(1) / np.maximum(there.sum(1), 1),
        "clinical_micro_f1_14": _micro(counts, np.ones(ALL, dtype=bool)),
        "clinical_micro_f1_5": _micro(counts, FIVE),
        "clinical_micro_f1_uncertain": f1(*doubts),
        "clinical_side_accuracy": np.where(sided > 1e-9, same / np.maximum(sided, 1e-12), np.nan),
    }


def observation_f1(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Observation → (B,) F1 of B weighted sums (B, 47); NaN where neither report calls it present."""
    counts = _thirds(sums)
    each = np.where(sum(counts) > 1e-9, f1(*counts), np.nan)
    return dict(zip(CHEXPERT, each.T, strict=True))


def observation_counts(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(14,) each of one sum (47,): called present by both, by the generated report only, by the reference only."""
    both, extra, missed = _thirds(sums[None])
    return both[0], extra[0], missed[0]


def study_f1(columns: np.ndarray) -> np.ndarray:
    """(N,) F1 of each study over all 14 observations; 1 where both reports name nothing."""
    both, extra, missed = (counts.sum(1, dtype=np.float64) for counts in _thirds(columns))
    return np.where(both + extra + missed > 0, f1(both, extra, missed), 1.0)


def f1(hits: np.ndarray, extra: np.ndarray, missed: np.ndarray) -> np.ndarray:
    """2·hits / (2·hits + extra + missed); 0 where there is nothing to find and nothing found."""
    total = 2 * hits + extra + missed
    return np.where(total > 0, 2 * hits / np.maximum(total, 1e-12), 0.0)


def _hits(found: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return found & truth, found & ~truth, ~found & truth


def _thirds(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return sums[:, :ALL], sums[:, ALL : 2 * ALL], sums[:, 2 * ALL : 3 * ALL]


def _micro(counts: tuple[np.ndarray, np.ndarray, np.ndarray], which: np.ndarray) -> np.ndarray:
    return f1(*(one[:, which].sum(1) for one in counts))
