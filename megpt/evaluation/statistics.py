"""Everything that is scored of a set of studies, one row a study, and the scores of any weighting of the rows.

All scores follow from weighted sums of the columns: BLEU from summed counts, METEOR from summed statistics, ROUGE-L
and CIDEr from means, the clinical F1 from summed hits and misses. So the rows of a patient may be added up, and a
bootstrap is one matrix product (`intervals`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from megpt.evaluation import nlg
from megpt.evaluation.clinical import Findings
from megpt.evaluation.clinical_scores import (
    CLINICAL,
    SIDE,
    SIDED,
    clinical_columns,
    clinical_scores,
    observation_f1,
    study_f1,
)
from megpt.evaluation.meteor import COLUMNS as METEOR_COLUMNS
from megpt.evaluation.meteor import meteor

BLEU = tuple(f"BLEU_{n}" for n in range(1, nlg.ORDERS + 1))
SCORES = (*BLEU, "METEOR", "ROUGE_L", "CIDEr", *CLINICAL)
"""The names in metrics.json, in the order they are shown; further scores come after them."""
_FURTHER = "further "


@dataclass(frozen=True)
class Statistics:
    """N studies, one row each. `meteor`, `found` and `truth` may be absent."""

    bleu: np.ndarray
    """(N, 10) int32, see `nlg.bleu_statistics`."""
    rouge: np.ndarray
    """(N,)"""
    cider: np.ndarray
    """(N,) scores within this very set; a resample keeps them, so its document frequencies are the set's."""
    meteor: np.ndarray | None = None
    """(N, 23), see `meteor.meteor_statistics`."""
    found: Findings | None = None
    """What the N generated reports say."""
    truth: Findings | None = None
    """What the N references say."""
    further: dict[str, np.ndarray] = field(default_factory=dict)
    """Name → (N,) of a score that was asked for by name (`further_scores`)."""

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
            columns["clinical"] = clinical_columns(self.found, self.truth)
        columns |= {_FURTHER + name: values[:, None] for name, values in self.further.items()}
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
            scores["clinical_f1"] = study_f1(clinical_columns(self.found, self.truth))
        return scores | self.further


@dataclass(frozen=True)
class Rows:
    """R rows of columns that add up: `matrix` (R, K) float64, and how many columns each name has, in order."""

    matrix: np.ndarray
    widths: dict[str, int]

    @property
    def names(self) -> tuple[str, ...]:
        """The scores in the order they are shown: `SCORES`, then the further ones."""
        return (*SCORES, *(name.removeprefix(_FURTHER) for name in self.widths if name.startswith(_FURTHER)))

    def sizes(self, score: str) -> np.ndarray:
        """(R,) what each row weighs in a score: its findings with a side for the side accuracy, else its studies."""
        parts = dict(self._parts(self.matrix))
        return parts["clinical"][:, SIDED] if score == SIDE and "clinical" in parts else parts["n"][:, 0]

    def with_meteor(self, statistics: np.ndarray) -> Rows:
        """The rows with METEOR's columns (R, 23)."""
        return self._with("meteor", statistics)

    def with_further(self, name: str, values: np.ndarray) -> Rows:
        """The rows with a further score, whose sums are (R,)."""
        return self._with(_FURTHER + name, values[:, None])

    def _with(self, name: str, columns: np.ndarray) -> Rows:
        return Rows(np.hstack([self.matrix, columns]), {**self.widths, name: columns.shape[1]})

    def grouped(self, groups: np.ndarray) -> Rows:
        """The rows of each group added up; `groups` (R,) holds numbers from 0 on."""
        total = np.zeros((int(groups.max(initial=-1)) + 1, self.matrix.shape[1]))
        np.add.at(total, groups, self.matrix)
        return replace(self, matrix=total)

    def scores(self) -> dict[str, float | None]:
        """Name → score of all rows together; None where it was not computed or is not defined."""
        values = self.score(self.matrix.sum(0, keepdims=True))
        return {name: _finite(values[name][0]) if name in values else None for name in self.names}

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
                scores |= clinical_scores(parts["clinical"])
            further = [name for name in parts if name.startswith(_FURTHER)]
            scores |= {name.removeprefix(_FURTHER): parts[name][:, 0] / n for name in further}
        return scores

    def observation_f1(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Observation → (B,) F1 of B weighted sums (B, K); NaN where neither report names it."""
        parts = dict(self._parts(sums))
        return observation_f1(parts["clinical"]) if "clinical" in parts else {}

    def clinical(self) -> np.ndarray:
        """(47,) the columns of `clinical_columns`, summed over all rows."""
        return dict(self._parts(self.matrix.sum(0, keepdims=True)))["clinical"][0]

    def _parts(self, sums: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        start = 0
        for name, width in self.widths.items():
            yield name, sums[:, start : start + width]
            start += width


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
