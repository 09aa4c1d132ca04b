"""predictions/ → scores beside two baselines, and a page to read them on. See docs/evaluation.md."""

from megpt.evaluation.metrics import Evaluation, evaluate, score_reports
from megpt.evaluation.page import write_page

__all__ = ["Evaluation", "evaluate", "score_reports", "write_page"]
