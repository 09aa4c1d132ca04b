"""The names that people know the scores by."""

from __future__ import annotations

TITLES = {
    **{f"BLEU_{n}": f"BLEU-{n}" for n in range(1, 5)},
    "ROUGE_L": "ROUGE-L",
    "logprob": "log-probability",
    "novelty": "novelty",
    "clinical_f1": "clinical F1",
    "clinical_micro_f1": "clinical micro-F1, 13 findings",
    "clinical_macro_f1": "clinical macro-F1",
    "clinical_micro_f1_14": "clinical micro-F1, with No Finding",
    "clinical_micro_f1_5": "clinical micro-F1, CheXpert's five",
    "clinical_micro_f1_uncertain": "clinical micro-F1, doubts as present",
    "clinical_side_accuracy": "clinical side accuracy",
}
