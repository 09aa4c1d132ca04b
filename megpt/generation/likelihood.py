"""How likely a report is to the model that wrote it: the columns `logprob` and `sentence_logprobs`.

A low value marks a report, or a sentence of it, for a second look. It says nothing of the truth: `evaluate` shows
how far it orders the reports by their errors.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from statistics import fmean
from typing import Any

from tokenizers.decoders import DecodeStream

SENTENCE_END = r"(?<=[.!?])\s+"
"""Where a report is cut into the sentences of `sentence_logprobs`: `re.split(SENTENCE_END, report)`."""


def likelihood(
    tokenizer: Any, tokens: Sequence[int], logprobs: Sequence[float], text: str, *, ended: bool
) -> dict[str, Any]:
    """`logprob` and `sentence_logprobs` of a report: means over its tokens, in nats.

    Args:
        tokens: as written, with the end token if it was reached (`ended`); it counts for the report and for no
            sentence. logprobs: of each.
        text: the report.

    Returns:
        `logprob` None without tokens; `sentence_logprobs` None where the tokenizer is none of the `tokenizers` library.
    """
    if not tokens:
        return {"logprob": None, "sentence_logprobs": None}
    inside = len(tokens) - ended
    return {
        "logprob": fmean(logprobs),
        "sentence_logprobs": _by_sentence(tokenizer, tokens[:inside], logprobs[:inside], text),
    }


def _by_sentence(
    tokenizer: Any, tokens: Sequence[int], logprobs: Sequence[float], text: str
) -> tuple[float | None, ...] | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    # Characters are counted without white space, which decoding a whole text may tidy up.
    ends = list(accumulate(map(_visible, re.split(SENTENCE_END, text))))
    if not ends[-1]:
        return ()
    found: list[list[float]] = [[] for _ in ends]
    stream, seen = DecodeStream(skip_special_tokens=True), 0
    for token, logprob in zip(tokens, logprobs, strict=True):
        found[min(bisect_right(ends, seen), len(ends) - 1)].append(logprob)
        seen += _visible(stream.step(backend, token) or "")
    return tuple(fmean(part) if part else None for part in found)


def _visible(text: str) -> int:
    return len("".join(text.split()))
