"""An evaluation without a single reference: nothing to score, and still a table and a page to look at."""

from __future__ import annotations

import numpy as np

from megpt.config import EvaluateConfig
from megpt.evaluation.clinical import label_findings
from megpt.evaluation.metrics import Evaluation, figures, head
from megpt.evaluation.nlg import BLEU_COLUMNS
from megpt.evaluation.pairs import Pairs
from megpt.evaluation.scoring import Scored
from megpt.evaluation.sets import MODEL
from megpt.evaluation.statistics import Statistics
from megpt.evaluation.texts import Cleaning


def without_scores(pairs: Pairs, *, cleaner: Cleaning, settings: EvaluateConfig, seed: int) -> Evaluation:
    """The evaluation of predictions that nobody has references for: `n` is 0, every score None, all studies listed.

    Args:
        pairs: `unscored` holds the studies.
    """
    nothing = np.zeros(0)
    none = label_findings([])
    statistics = Statistics(np.zeros((0, BLEU_COLUMNS)), nothing, nothing, found=none, truth=none)
    scored = Scored({MODEL: statistics})
    n = len(pairs.unscored)
    metrics = {
        **head(0, 0, 0, cleaner=cleaner, settings=settings, seed=seed),
        **figures(scored, np.zeros(0, dtype=np.int64), settings, seed),
        "scores": dict.fromkeys(statistics.rows().names),
        "risk_coverage": {},
        "warnings": [f"nothing is scored: none of {n} studies has a reference report"],
        "notes": {"scores": "no study has a reference report; set references=PATH to a file that has them"},
        "n_failed": sum(pair.generated is None for pair in pairs.unscored),
        "n_without_reference": n,
        "model": pairs.models,
        "constant_report": None,
    }
    return Evaluation(metrics, statistics, pairs, label_findings([pair.generated or "" for pair in pairs.unscored]))
