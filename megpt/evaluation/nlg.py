"""BLEU, ROUGE-L and CIDEr of report pairs by pycocoevalcap, kept per study so that they add up.

Each function takes N generated and N reference texts (`texts.scored_text`) and returns one row a study. BLEU's rows
are integers whose sums give the corpus score exactly; ROUGE-L and CIDEr are means. CIDEr weighs words by how many
references hold them, so it needs the whole set at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

ORDERS = 4
BLEU_COLUMNS = 2 * ORDERS + 2


def bleu_statistics(generated: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """(N, 10) int64: n-grams matched and made for n = 1…4, then the lengths of the generated text and the reference."""
    rows = np.zeros((len(generated), BLEU_COLUMNS), dtype=np.int64)
    for row, text, reference in zip(rows, generated, references, strict=True):
        counts = cook_test(text, cook_refs([reference]))
        row[:] = (*counts["correct"], *counts["guess"], counts["testlen"], counts["reflen"][0])
    return rows


def bleu(sums: np.ndarray) -> np.ndarray:
    """BLEU-1…4 (…, 4) of summed statistics (…, 10), with pycocoevalcap's constants against division by zero."""
    small, tiny = 1e-9, 1e-15
    sums = np.asarray(sums, dtype=np.float64)
    precision = (sums[..., :ORDERS] + tiny) / (sums[..., ORDERS : 2 * ORDERS] + small)
    scores = np.cumprod(precision, axis=-1) ** (1 / np.arange(1, ORDERS + 1))
    ratio = (sums[..., -2] + tiny) / (sums[..., -1] + small)
    with np.errstate(over="ignore"):
        brevity = np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)
    return np.asarray(scores * brevity[..., None])


def rouge_l(generated: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """(N,) ROUGE-L with β = 1.2; 0 where nothing was generated."""
    scorer = Rouge()
    pairs = zip(generated, references, strict=True)
    return np.array([scorer.calc_score([g], [r]) if g and r else 0.0 for g, r in pairs], dtype=np.float64)


def cider(generated: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """(N,) CIDEr of each study among all N; their mean is the score of the set (0 for a single pair)."""
    if not generated:
        return np.zeros(0)
    keys = range(len(generated))
    _, scores = Cider().compute_score(
        {k: [r] for k, r in zip(keys, references, strict=True)},
        {k: [g] for k, g in zip(keys, generated, strict=True)},
    )
    return np.asarray(scores, dtype=np.float64)
