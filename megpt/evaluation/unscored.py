"""An evaluation without a single reference: nothing to score, and still a table and a page to look at."""

from __future__ import annotations

from typing import Any

import numpy as np

from megpt.config import EvaluateConfig
from megpt.evaluation import nlg
from megpt.evaluation.clinical import label_reports
from megpt.evaluation.metrics import Evaluation, versions
from megpt.evaluation.pairs import Pairs
from megpt.evaluation.statistics import SCORES, Statistics
from megpt.evaluation.texts import Cleaning, signature


def without_scores(pairs: Pairs, *, cleaning: Cleaning, settings: EvaluateConfig, seed: int) -> Evaluation:
    """The evaluation of predictions that nobody has references for: `n` is 0, every score None, all studies listed.

    Args:
        pairs: `unscored` holds the studies.
    """
    studies = pairs.unscored
    found = label_reports([pair.generated or "" for pair in studies])
    unknown = np.full(len(studies), np.nan)
    statistics = Statistics(
        bleu=np.full((len(studies), nlg.BLEU_COLUMNS), np.nan),
        rouge=unknown,
        cider=unknown,
        found=found,
        truth=np.zeros_like(found),
    )
    failed = sum(pair.generated is None for pair in studies)
    reason = "no study has a reference report; set references=PATH to a file that has them"
    metrics: dict[str, Any] = {
        "n": 0,
        "unit": "study",
        "cleaner": str(cleaning),
        "tokenizer": cleaning.tokenizer,
        "signature": signature(cleaning, 0),
        "versions": versions(),
        "scores": dict.fromkeys(SCORES),
        "intervals": dict.fromkeys(SCORES),
        "baselines": {"constant": None, "permuted": None},
        "warnings": [f"nothing is scored: none of {len(studies)} studies has a reference report"],
        "notes": {"scores": reason},
        "confidence": settings.confidence,
        "bootstrap": settings.bootstrap,
        "seed": seed,
        "n_failed": failed,
        "n_without_reference": len(studies),
        "model": pairs.models,
        "constant_report": None,
        "clinical": {},
    }
    return Evaluation(metrics, statistics, Pairs(studies, len(studies), pairs.models, studies, pairs.said))
