"""BLEU, ROUGE-L and CIDEr of report pairs as pycocoevalcap defines them, kept per study so that they add up.

Each function takes N generated and N reference texts (`texts.scored_text`) and returns one row a study. BLEU's rows
are integers whose sums give the corpus score exactly; ROUGE-L and CIDEr are means. CIDEr weighs words by how many
references hold them, so it needs the whole set at once.

The definitions are pycocoevalcap's to the letter (the tests compare with it); the arithmetic is not: n-grams are
counted once (`ngrams`), and the longest common subsequence is rapidfuzz's bit-parallel one, so that a report of
12,000 words takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rapidfuzz.distance import LCSseq

from megpt.evaluation.ngrams import ORDERS, NGrams, Words, ngrams, number_words

BLEU_COLUMNS = 2 * ORDERS + 2
ROUGE_BETA, CIDER_SIGMA = 1.2, 6.0

_CHUNK = 20_000
"""Texts or pairs whose products exist at one time."""
_SURROGATES = range(0xD800, 0xE000)


@dataclass(frozen=True)
class TextStatistics:
    """K assignments of generated texts to the N references: bleu (K, N, 10) int32, rouge (K, N), cider (K, N)."""

    bleu: np.ndarray
    rouge: np.ndarray
    cider: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[TextStatistics]) -> TextStatistics:
        """The sets of all parts, one after another."""
        columns = ([getattr(part, name) for part in parts] for name in ("bleu", "rouge", "cider"))
        return cls(*(np.concatenate(column) for column in columns))


def text_statistics(texts: Sequence[str], references: Sequence[str], picks: np.ndarray) -> TextStatistics:
    """Statistics of K sets at once.

    Args:
        texts: M generated texts to pick from.
        references: N.
        picks: (K, N) indices into `texts`: set k scores texts[picks[k, i]] against references[i].
    """
    made, wanted = number_words(texts, references)
    sets, n = picks.shape
    bleu = np.zeros((sets, n, BLEU_COLUMNS), dtype=np.int32)
    cider = np.zeros((sets, n))
    lengths = made.lengths[made.rows] if len(texts) else np.zeros(0, dtype=np.int64)
    reference_lengths = wanted.lengths[wanted.rows] if n else np.zeros(0, dtype=np.int64)
    for grams in ngrams(made, wanted):
        _add_order(grams, made, wanted, picks, bleu, cider)
    for k, pick in enumerate(picks):
        for order in range(ORDERS):
            bleu[k, :, ORDERS + order] = np.maximum(lengths[pick] - order, 0)
        bleu[k, :, -2], bleu[k, :, -1] = lengths[pick], reference_lengths
        # CIDEr's length is the number of bigrams.
        delta = np.maximum(lengths[pick] - 1, 0) - np.maximum(reference_lengths - 1, 0)
        cider[k] *= 10 / ORDERS * np.exp(-(delta.astype(np.float64) ** 2) / (2 * CIDER_SIGMA**2))
    return TextStatistics(bleu, _rouge(texts, references, picks, [made, wanted]), cider)


def _add_order(
    grams: NGrams, made: Words, wanted: Words, picks: np.ndarray, bleu: np.ndarray, cider: np.ndarray
) -> None:
    """Add the matches of one order to `bleu`, and its cosine to `cider`."""
    n = picks.shape[1]
    weights = _squared_weights(grams.references, np.bincount(wanted.rows, minlength=grams.references.shape[0]))
    norms = [_norms(side, weights) for side in (grams.generated, grams.references)]
    for k, pick in enumerate(picks):
        for rows in _blocks(n):
            ours, theirs = made.rows[pick[rows]], wanted.rows[rows]
            reference = grams.references[theirs]
            shared = grams.generated[ours].minimum(reference)
            bleu[k, rows, grams.order - 1] = np.rint(shared.sum(axis=1))
            scale = norms[0][ours] * norms[1][theirs]
            product = shared.astype(np.float64).multiply(reference).tocsr() @ weights
            cider[k, rows] += np.divide(product, scale, out=np.zeros(len(ours)), where=scale > 0)


def _squared_weights(references: Any, times: np.ndarray) -> np.ndarray:
    """(V,) squared inverse document frequency of each n-gram; row i stands for `times[i]` references."""
    held = np.zeros(references.shape[1])
    for rows in _blocks(len(times)):
        held += references[rows].sign().T @ times[rows]
    return (np.log(max(times.sum(), 1)) - np.log(np.maximum(held, 1))) ** 2


def _norms(counts: Any, weights: np.ndarray) -> np.ndarray:
    """(U,) lengths of the weighted counts."""
    blocks = [counts[rows].astype(np.float64).power(2) @ weights for rows in _blocks(counts.shape[0])]
    return np.sqrt(np.concatenate([np.zeros(0), *blocks]))


def _blocks(count: int) -> list[slice]:
    return [slice(start, start + _CHUNK) for start in range(0, count, _CHUNK)]


def bleu_statistics(generated: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """(N, 10) int32: n-grams matched and made for n = 1…4, then the lengths of the generated text and the reference."""
    return _one(generated, references).bleu[0]


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
    picks = _in_place(generated, references)
    return _rouge(generated, references, picks, number_words(generated, references))[0]


def cider(generated: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """(N,) CIDEr of each study among all N; their mean is the score of the set (0 for a single pair)."""
    return _one(generated, references).cider[0]


def _one(generated: Sequence[str], references: Sequence[str]) -> TextStatistics:
    return text_statistics(generated, references, _in_place(generated, references))


def _in_place(generated: Sequence[str], references: Sequence[str]) -> np.ndarray:
    if len(generated) != len(references):
        raise ValueError(f"{len(generated)} generated texts, but {len(references)} references")
    return np.arange(len(generated))[None]


def _rouge(texts: Sequence[str], references: Sequence[str], picks: np.ndarray, words: list[Words]) -> np.ndarray:
    """(K, N) ROUGE-L of the same `words` as strings of one character a word, on which rapidfuzz is fastest."""
    if any(text != " ".join(text.split()) for side in (texts, references) for text in side):
        # The field splits at each single blank, which makes empty words where there are two.
        words = number_words(texts, references, separator=" ")
    made, wanted = map(_as_characters, words)
    empty = [text == "" for text in texts], [text == "" for text in references]
    out = np.zeros(picks.shape)
    for row, pick in zip(out, picks.tolist(), strict=True):
        for i, (j, reference) in enumerate(zip(pick, wanted, strict=True)):
            text = made[j]
            if not (empty[0][j] or empty[1][i]) and (common := LCSseq.similarity(text, reference)):
                precision, recall = common / len(text), common / len(reference)
                row[i] = ((1 + ROUGE_BETA**2) * precision * recall) / (recall + ROUGE_BETA**2 * precision)
    return out


def _as_characters(words: Words) -> list[str]:
    """Each text as a string of one character a word, the same word always the same."""
    codes = np.where(words.flat < _SURROGATES.start, words.flat, words.flat + len(_SURROGATES)).astype("<u4")
    everything = codes.tobytes().decode("utf-32-le")
    ends = np.cumsum(words.lengths)
    distinct = [
        everything[end - length : end] for end, length in zip(ends.tolist(), words.lengths.tolist(), strict=True)
    ]
    return [distinct[row] for row in words.rows.tolist()]
