"""predictions/ → scores beside two baselines, and a page to read them on. See docs/evaluation.md."""

from megpt.evaluation.metrics import Evaluation, evaluate, score_reports

__all__ = ["Evaluation", "evaluate", "score_reports"]
