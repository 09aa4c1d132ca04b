"""Models that look at no film, or only at how alike films are. A model that does not beat them has not looked either.

constant: the one training report that, given to every study of the training split, has the highest BLEU-4 there.
permuted: each generated report scored against the reference of another patient's study, many times over.
nearest: the report of the training study whose films are closest by an encoder's features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from megpt.evaluation import nlg
from megpt.evaluation.ngrams import ngrams, number_words

MAX_TRAINING_REPORTS = 20_000
"""Training reports that are read for the constant one, drawn by seed; BLEU-4 of a constant hardly moves beyond."""

PERMUTATIONS, MAX_PERMUTED_PAIRS = 100, 1_000_000
"""How often reports are permuted; in a large set less often, since there one permutation says as much."""
MAX_PERMUTED_METEOR_PAIRS = 3_000
"""METEOR reads fewer permutations: it takes 3 ms a pair."""
_ROUNDS = 1_000
_CHUNK = 4_096


def derangement(n: int, seed: int, groups: np.ndarray | None = None) -> np.ndarray | None:
    """(n,) indices, a permutation in which row i gets the report of row `result[i]`, never one of its own group.

    Args:
        groups: (n,) number of each study's patient; by default each study is a group of its own.

    Returns:
        None where there is no such permutation: one group holds more than half of the rows.
    """
    groups = np.arange(n) if groups is None else groups
    most = int(np.bincount(groups).max(initial=0))
    if n < 2 or 2 * most > n:
        return None
    rng = np.random.default_rng(seed)
    result = rng.permutation(n)
    for _ in range(_ROUNDS):
        wrong = np.flatnonzero(groups[result] == groups)
        if not len(wrong):
            return result
        for i in wrong.tolist():
            j = int(rng.integers(n))
            if groups[result[j]] != groups[i] and groups[result[i]] != groups[j]:
                result[i], result[j] = result[j], result[i]
    # Hardly any permutation is left: patients side by side, turned by at least the largest of them, are one.
    order = np.lexsort((rng.permutation(n), rng.permutation(int(groups.max()) + 1)[groups]))
    result[order] = np.roll(order, int(rng.integers(most, n - most + 1)))
    return result


def derangements(n: int, seed: int, groups: np.ndarray | None = None) -> np.ndarray | None:
    """(K, n) permutations as `derangement` gives them: PERMUTATIONS of them, fewer in a large set, at least one."""
    count = max(1, min(PERMUTATIONS, MAX_PERMUTED_PAIRS // max(n, 1)))
    found = [derangement(n, seed + k, groups) for k in range(count)]
    return None if any(order is None for order in found) else np.array(found)


def nearest(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """(N,) index of the candidate with the highest cosine to each query; the first of equals.

    Exact, and in blocks: nothing of size N × M exists.

    Args:
        queries: (N, C) features.
        candidates: (M, C) features, M ≥ 1.

    Raises:
        ValueError: no candidate, or features of another length.
    """
    if not len(candidates):
        raise ValueError("no candidate to be near to")
    if queries.ndim != 2 or queries.shape[1:] != candidates.shape[1:]:
        raise ValueError(f"features of shape {queries.shape} and {candidates.shape} cannot be compared")
    ours, theirs = _unit(queries), _unit(candidates)
    best = np.full(len(ours), -np.inf, dtype=np.float32)
    found = np.zeros(len(ours), dtype=np.int64)
    for start in range(0, len(ours), _CHUNK):
        rows = slice(start, start + _CHUNK)
        for first in range(0, len(theirs), _CHUNK):
            cosines = ours[rows] @ theirs[first : first + _CHUNK].T
            place = cosines.argmax(axis=1)
            value = cosines[np.arange(len(place)), place]
            better = value > best[rows]
            best[rows] = np.where(better, value, best[rows])
            found[rows] = np.where(better, place + first, found[rows])
    return found


def constant_report(reports: Sequence[str], seed: int) -> str | None:
    """The report that scores the highest corpus BLEU-4 when given to all studies of `reports`; None without any.

    Exact for every candidate and linear in the text: how often a candidate's n-gram that occurs k times is matched in
    all references is the sum, for j = 1…k, of the references that hold it at least j times.
    """
    texts = sample([t for t in reports if t], MAX_TRAINING_REPORTS, seed)
    if not texts:
        return None
    candidates = sorted(set(texts))
    words, nothing = number_words(candidates, [])
    times = np.array([count for _, count in sorted(Counter(texts).items())], dtype=np.float64)
    rows = np.zeros((len(candidates), nlg.BLEU_COLUMNS))
    for grams in ngrams(words, nothing):
        counts = grams.generated.tocoo()
        rows[:, grams.order - 1] = _matches(counts.row, counts.col, counts.data, times)
    for n in range(nlg.ORDERS):
        rows[:, nlg.ORDERS + n] = len(texts) * np.maximum(words.lengths - n, 0)
    rows[:, -2], rows[:, -1] = len(texts) * words.lengths, times @ words.lengths
    return candidates[int(np.argmax(nlg.bleu(rows)[:, -1]))]


def _matches(texts: np.ndarray, grams: np.ndarray, counts: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(U,) n-grams of each text that all references match; `times` (U,) is how often each text is a reference."""
    found = np.zeros(len(times))
    level = 1
    while len(texts):
        _, grams = np.unique(grams, return_inverse=True)
        held = np.bincount(grams, weights=times[texts])
        found += np.bincount(texts, weights=held[grams], minlength=len(times))
        level += 1
        more = counts >= level
        texts, grams, counts = texts[more], grams[more], counts[more]
    return found


def sample(texts: Sequence[str], most: int, seed: int) -> list[str]:
    """At most `most` of the texts, drawn evenly by seed, in their order."""
    if len(texts) <= most:
        return list(texts)
    chosen = np.sort(np.random.default_rng(seed).choice(len(texts), size=most, replace=False))
    return [texts[i] for i in chosen]


def _unit(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, dtype=np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
