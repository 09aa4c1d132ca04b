"""Word n-grams of many texts, counted once, and the overlap of any text with any other.

Every score here needs the same few numbers of a pair: how many n-grams both texts hold, and their weighted products.
Texts become sparse count matrices over a shared vocabulary, one order of n-grams at a time, so that 100 permutations
of a test set cost 100 sparse minima instead of 100 passes over the words. Memory follows the distinct texts.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

ORDERS = 4


@dataclass(frozen=True)
class NGrams:
    """The n-grams of one order: counts of the distinct texts, as scipy's CSR arrays."""

    order: int
    generated: Any
    """(U, V)"""
    references: Any
    """(W, V)"""


@dataclass(frozen=True)
class Words:
    """Texts as word numbers: the distinct ones, and where each of the N texts is found among them."""

    flat: np.ndarray
    """(T,) int32 word numbers of all distinct texts, one after another."""
    lengths: np.ndarray
    """(U,) words of each distinct text."""
    rows: np.ndarray
    """(N,) the distinct text of each text."""


def number_words(*sides: Sequence[str], separator: str | None = None) -> list[Words]:
    """`Words` of several lists of texts over one vocabulary.

    Args:
        separator: between words, as `str.split` takes it: any run of blanks by default.
    """
    vocabulary: defaultdict[str, int] = defaultdict()
    vocabulary.default_factory = vocabulary.__len__
    return [_number(side, vocabulary, separator) for side in sides]


def _number(texts: Sequence[str], vocabulary: defaultdict[str, int], separator: str | None) -> Words:
    rows, distinct = pd.factorize(np.array(texts, dtype=object)) if len(texts) else (np.zeros(0, np.int64), [])
    lengths: list[int] = []

    def split() -> Iterator[list[str]]:
        # One text at a time: all words of a large set as strings would be most of the memory.
        for text in distinct:
            words = text.split(separator)
            lengths.append(len(words))
            yield words

    flat = np.fromiter(map(vocabulary.__getitem__, itertools.chain.from_iterable(split())), dtype=np.int32)
    return Words(flat, np.array(lengths, dtype=np.int64), np.asarray(rows, dtype=np.int64))


def ngrams(generated: Words, references: Words) -> Iterator[NGrams]:
    """The n-gram counts of both sides for n = 1…4, one order alive at a time."""
    flat = np.concatenate([generated.flat, references.flat])
    lengths = np.concatenate([generated.lengths, references.lengths])
    words = int(flat.max(initial=0)) + 1
    # Words of the text that begin here and later: an n-gram needs n of them.
    left = (np.repeat(np.cumsum(lengths), lengths) - np.arange(len(flat))).astype(np.int32)
    texts = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    keys = flat
    starts = np.arange(len(flat), dtype=np.int32)
    split = len(generated.lengths)
    for order in range(1, ORDERS + 1):
        if order > 1:
            longer = left[starts] >= order
            starts = starts[longer]
            keys = keys[longer].astype(np.int64) * words + flat[starts + order - 1]
        codes, distinct = pd.factorize(keys)
        keys, width = codes.astype(np.int32), max(1, len(distinct))
        del codes, distinct
        ends = np.searchsorted(texts[starts], np.arange(len(lengths) + 1)).astype(np.int32)
        yield NGrams(order, _counts(keys, ends[: split + 1], width), _counts(keys, ends[split:], width))


def _counts(keys: np.ndarray, ends: np.ndarray, width: int) -> Any:
    """(U, width) counts of the texts that lie in `keys` between one of `ends` (U + 1,) and the next."""
    columns = keys[ends[0] : ends[-1]].copy()
    counts = csr_array((np.ones(len(columns), np.float32), columns, ends - ends[0]), shape=(len(ends) - 1, width))
    counts.sum_duplicates()
    return counts
