"""What the page's program draws: each study's texts with their findings marked, as plain JSON.

A *kind* says how the two reports of a study differ on one of the 14 observations: agreed, invented (only the generated
report states it), missed (only the reference does), wrong side, or doubted (one is sure, the other is not).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from megpt.evaluation.clinical import ABSENT, PRESENT, UNCERTAIN, Mention, labeler
from megpt.evaluation.page.alignment import aligned_sentences
from megpt.study import CHEXPERT

AGREED, INVENTED, MISSED, WRONG_SIDE, DOUBTED = range(5)
KINDS = ("agreed", "invented", "missed", "wrong side", "doubted")
NO_MARK = -1

Spans = list[list[int]]
"""[start, end, observation, status, kind] for each mention of a text: characters [start, end)."""


def described(texts: Sequence[str | None], references: Sequence[str | None]) -> list[dict[str, Any]]:
    """How each of N generated reports (None: it failed) compares with its reference (None: unknown).

    Returns:
        For each report: `mentions` and `refMentions` (see `Spans`), `kinds` [[observation, kind], …] and `rows`, the
        sentences of both side by side as [start, end, start, end], -1 where one side has none.
    """
    return [_described(text, reference) for text, reference in zip(texts, references, strict=True)]


def _described(text: str | None, reference: str | None) -> dict[str, Any]:
    ours = labeler().mentions(text) if text else []
    theirs = labeler().mentions(reference) if reference else []
    kinds = differences(ours, theirs) if reference is not None else {}
    return {
        "mentions": spans(ours, kinds),
        "refMentions": spans(theirs, kinds),
        "kinds": [[CHEXPERT.index(name), kind] for name, kind in sorted(kinds.items())],
        "rows": aligned_sentences(text, reference) if text and reference else None,
    }


def differences(generated: Iterable[Mention], reference: Iterable[Mention]) -> dict[str, int]:
    """Observation → its kind; what neither report states or doubts is left out."""
    ours, theirs = summary(generated), summary(reference)
    kinds = {}
    for name in ours.keys() | theirs.keys():
        (mine, my_sides), (its, its_sides) = (side.get(name, (ABSENT, frozenset())) for side in (ours, theirs))
        if (kind := _kind(mine, its, my_sides, its_sides)) is not None:
            kinds[name] = kind
    return kinds


def _kind(mine: int, its: int, my_sides: frozenset[str], its_sides: frozenset[str]) -> int | None:
    if mine == its == ABSENT:
        return None
    if UNCERTAIN in (mine, its) and mine != its:
        return DOUBTED
    if mine == its:
        return WRONG_SIDE if my_sides and its_sides and my_sides != its_sides else AGREED
    return INVENTED if mine == PRESENT else MISSED


def summary(mentions: Iterable[Mention]) -> dict[str, tuple[int, frozenset[str]]]:
    """Observation → what a report says of it (present over uncertain over absent), and on which sides."""
    rank = {PRESENT: 2, UNCERTAIN: 1, ABSENT: 0}
    found: dict[str, tuple[int, frozenset[str]]] = {}
    for mention in mentions:
        if mention.status is None:
            continue
        sides = {"left", "right"} if mention.side == "both" else {mention.side} - {""}
        before, known = found.get(mention.observation, (ABSENT, frozenset()))
        if rank[mention.status] > rank[before]:
            found[mention.observation] = (mention.status, frozenset(sides))
        else:
            same = sides if mention.status == before else set()
            found[mention.observation] = (before, known | same)
    return found


def spans(mentions: Iterable[Mention], kinds: dict[str, int]) -> Spans:
    """The mentions of one text as the page wants them; a denial that both reports share gets no mark."""
    rows = []
    for mention in mentions:
        if mention.status is None:
            continue
        kind = kinds.get(mention.observation, NO_MARK)
        if mention.status == ABSENT and kind in (AGREED, INVENTED, WRONG_SIDE):
            kind = NO_MARK
        rows.append([mention.start, mention.end, CHEXPERT.index(mention.observation), mention.status, kind])
    return rows
