"""Two models that look at no film. A model that does not beat both has not looked either.

constant: the one training report that, given to every study of the training split, has the highest BLEU-4 there.
permuted: each generated report scored against another study's reference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from megpt.evaluation import nlg

MAX_TRAINING_REPORTS = 20_000
"""Training reports that are read for the constant one, drawn by seed; BLEU-4 of a constant hardly moves beyond."""


def derangement(n: int, seed: int) -> np.ndarray:
    """(n,) indices with no fixed point: row i gets the report of row `result[i]`; needs n ≥ 2."""
    order = np.random.default_rng(seed).permutation(n)
    result = np.empty(n, dtype=np.int64)
    # One cycle through all studies in random order: nobody keeps its own.
    result[order] = np.roll(order, 1)
    return result


def constant_report(reports: Sequence[str], seed: int) -> str | None:
    """The report that scores the highest corpus BLEU-4 when given to all studies of `reports`; None without any.

    Exact for every candidate and linear in the text: how often a candidate's n-gram that occurs k times is matched in
    all references is looked up in a table of "references that hold it at least j times".
    """
    texts = sample([t for t in reports if t], MAX_TRAINING_REPORTS, seed)
    if not texts:
        return None
    at_least: Counter[tuple[tuple[str, ...], int]] = Counter()
    length = 0
    for text in texts:
        counts = Counter(_ngrams(text))
        length += len(text.split())
        at_least.update((gram, times) for gram, count in counts.items() for times in range(1, count + 1))
    candidates = sorted(set(texts))
    rows = np.zeros((len(candidates), nlg.BLEU_COLUMNS), dtype=np.int64)
    for row, text in zip(rows, candidates, strict=True):
        for gram, count in Counter(_ngrams(text)).items():
            row[len(gram) - 1] += sum(at_least[gram, times] for times in range(1, count + 1))
        words = len(text.split())
        row[nlg.ORDERS : 2 * nlg.ORDERS] = [len(texts) * max(0, words - n) for n in range(nlg.ORDERS)]
        row[-2:] = len(texts) * words, length
    return candidates[int(np.argmax(nlg.bleu(rows)[:, -1]))]


def sample(texts: Sequence[str], most: int, seed: int) -> list[str]:
    """At most `most` of the texts, drawn evenly by seed, in their order."""
    if len(texts) <= most:
        return list(texts)
    chosen = np.sort(np.random.default_rng(seed).choice(len(texts), size=most, replace=False))
    return [texts[i] for i in chosen]


def _ngrams(text: str) -> Iterator[tuple[str, ...]]:
    words = text.split()
    for n in range(1, nlg.ORDERS + 1):
        yield from zip(*(words[i:] for i in range(n)), strict=False)
