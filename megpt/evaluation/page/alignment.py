"""Sentences of two reports side by side, whatever their order."""

from __future__ import annotations

import re
from itertools import product

_SENTENCE = re.compile(r"[^\s.!?;][^.!?;\n]*(?:[.!?;]+(?!\s)[^.!?;\n]*)*[.!?;]*")
_WORD = re.compile(r"[^\W_]+")
LEAST_LIKENESS = 0.2
MOST_SENTENCES = 60
"""Longer reports are shown as a whole: comparing all pairs of a looping report's sentences would take for ever."""

Row = tuple[int, int, int, int]


def aligned_sentences(generated: str, reference: str) -> list[Row] | None:
    """(start, end) of a generated sentence beside (start, end) of the reference's that is most like it.

    The rows follow the reference; a sentence without a partner has -1, -1 beside it. Every sentence is in one row.
    Likeness is the share of common words (Jaccard). None for reports of more than `MOST_SENTENCES` sentences.
    """
    ours, theirs = sentence_spans(generated), sentence_spans(reference)
    if max(len(ours), len(theirs)) > MOST_SENTENCES:
        return None
    my_words = [_words(generated, span) for span in ours]
    its_words = [_words(reference, span) for span in theirs]
    places = product(range(len(ours)), range(len(theirs)))
    pairs = sorted(((_likeness(my_words[i], its_words[j]), -abs(i - j), -i, -j) for i, j in places), reverse=True)
    partner: dict[int, int] = {}
    taken: set[int] = set()
    for likeness, _, minus_i, minus_j in pairs:
        if likeness < LEAST_LIKENESS:
            break
        if -minus_j not in partner and -minus_i not in taken:
            partner[-minus_j] = -minus_i
            taken.add(-minus_i)
    rows: list[Row] = []
    placed = -1
    for j, span in enumerate(theirs):
        i = partner.get(j)
        if i is not None and i > placed:
            rows += [(*ours[k], -1, -1) for k in range(placed + 1, i) if k not in taken]
            placed = i
        rows.append((*ours[i], *span) if i is not None else (-1, -1, *span))
    return rows + [(*ours[k], -1, -1) for k in range(placed + 1, len(ours)) if k not in taken]


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of each sentence; together they hold every character that is not white space between them."""
    return [match.span() for match in _SENTENCE.finditer(text)]


def _words(text: str, span: tuple[int, int]) -> frozenset[str]:
    return frozenset(word.lower() for word in _WORD.findall(text[slice(*span)]))


def _likeness(one: frozenset[str], two: frozenset[str]) -> float:
    return len(one & two) / (len(one | two) or 1)
