"""What the page's program draws: each study's texts with their findings marked, as plain JSON.

A *kind* says how the two reports of a study differ on one of the 14 observations: agreed, invented (only the generated
report states it), missed (only the reference does), wrong side, or doubted (one is sure, the other is not).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from megpt.evaluation.clinical import ABSENT, Mention, mentions
from megpt.evaluation.clinical_scores import AGREED, INVENTED, VERDICTS, WRONG_SIDE
from megpt.evaluation.page.alignment import aligned_sentences
from megpt.study import CHEXPERT

KINDS = tuple(VERDICTS[code] for code in sorted(VERDICTS) if code)
"""The names of `clinical_scores.VERDICTS`; a kind is a verdict less 1, so that NO_MARK is none."""
NO_MARK = -1
_UNMARKED_DENIALS = tuple(verdict - 1 for verdict in (AGREED, INVENTED, WRONG_SIDE))
NO_FINDING = CHEXPERT.index("No Finding")

Spans = list[list[int]]
"""[start, end, observation, status, kind] for each mention of a text: characters [start, end)."""


def described(
    texts: Sequence[str | None], references: Sequence[str | None], verdicts: np.ndarray
) -> list[dict[str, Any]]:
    """How each of N generated reports (None: it failed) compares with its reference (None: unknown).

    Args:
        verdicts: (N, 14), see `clinical_scores.verdicts`; zeros where the reference is unknown.

    Returns:
        For each report: `mentions` and `refMentions` (see `Spans`), `kinds` [[observation, kind], …] and `rows`, the
        sentences of both side by side as [start, end, start, end], -1 where one side has none.
    """
    kinds = verdicts.astype(int) - 1
    kinds[:, NO_FINDING] = NO_MARK
    return [_described(*row) for row in zip(texts, references, kinds.tolist(), strict=True)]


def _described(text: str | None, reference: str | None, kinds: list[int]) -> dict[str, Any]:
    return {
        "mentions": spans(mentions(text) if text else [], kinds),
        "refMentions": spans(mentions(reference) if reference else [], kinds),
        "kinds": [[column, kind] for column, kind in enumerate(kinds) if kind != NO_MARK],
        "rows": aligned_sentences(text, reference) if text and reference else None,
    }


def spans(found: Iterable[Mention], kinds: Sequence[int]) -> Spans:
    """The mentions of one text as the page wants them; a denial that both reports share gets no mark.

    Args:
        kinds: (14,) of the study.
    """
    rows = []
    for mention in found:
        if mention.status is None:
            continue
        column = CHEXPERT.index(mention.observation)
        kind = kinds[column]
        if mention.status == ABSENT and kind in _UNMARKED_DENIALS:
            kind = NO_MARK
        rows.append([mention.start, mention.end, column, mention.status, kind])
    return rows
