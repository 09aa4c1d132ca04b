"""What is known of a study before its films are read, as tokens of its prompt: indication, comparison, prior report, …

    …</Img> {instruction} Indication: chest pain. Comparison: None. \nAssistant:

    context = Context.of(config, tokenizer)
    ids = context.ids(study)                    # [] where the study has none: its prompt is then the ordinary one

The tokens stand between the bank's text and the frame's end. They depend on the study alone, never on its batch.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from megpt.model.findings import sentence
from megpt.model.loss import IGNORED_LABEL

HEADINGS = {
    "indication": "Indication",
    "comparison": "Comparison",
    "technique": "Technique",
    "prior_report": "Prior report",
}
# What de-identification leaves: XXXX in Indiana's reports, ___ in MIMIC-CXR's.
_REMOVED = re.compile(r"\b[xX]{3,}\b|_{2,}")


@dataclass
class Context:
    """Sections of studies as token ids; `counts` says of how many studies something was missing or cut off."""

    sections: tuple[str, ...]
    most: int
    tokenizer: Any
    counts: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, config: Any, tokenizer: Any) -> Context:
        """From a `ModelConfig` or `MeGPTConfig`."""
        return cls(tuple(config.context), config.context_tokens, tokenizer)

    def ids(self, study: Any) -> list[int]:
        """The ids of a study's sections, at most `most` of each, without special tokens."""
        if not self.sections:
            return []
        found: list[int] = []
        special, cut = set(self.tokenizer.all_special_ids), False
        for name in self.sections:
            if text := tidied(getattr(study, name, None)):
                ids = self.tokenizer(f" {HEADINGS[name]}: {text}", add_special_tokens=False)["input_ids"]
                ids = [i for i in ids if i not in special]  # a text may spell one
                cut |= len(ids) > self.most
                found += ids[: self.most]
        self.counts.update(studies=1, without=int(not found), cut=int(cut))
        return found

    def batch(self, studies: Iterable[Any]) -> Tensor:
        """`context_ids` (B, C) of the model, padded with `IGNORED_LABEL`."""
        rows = [torch.tensor(self.ids(study), dtype=torch.long) for study in studies]
        return pad_sequence(rows, batch_first=True, padding_value=IGNORED_LABEL)

    def told(self) -> str:
        """One line for the screen; empty for a model without context."""
        n = self.counts
        return (
            f"context ({', '.join(self.sections)}): {n['without']} of {n['studies']} studies have none; "
            f"in {n['cut']} a section was cut to {self.most} tokens"
            if n
            else ""
        )


def tidied(text: str | None) -> str:
    """A section on one line, without the marks of de-identification; empty if no word is left."""
    kept = " ".join(_REMOVED.sub(" ", text or "").split())
    kept = re.sub(r"\s+([.,;:?!])", r"\1", kept).lstrip(" -.,;:/")
    return kept if re.search(r"\w", kept) else ""


def suffix_with(
    prompts: dict[str, Any], prompt_id: int, context: Sequence[int], told: Sequence[bool] | None = None
) -> list[int]:
    """The ids after the visual tokens: those of the bank's prompt, with a study's context inside its frame.

    Args:
        told: which of the 13 observations its films show (`model.findings`), named behind the context.
    """
    known = [*context, *(sentence(prompts["findings"], told) if told is not None else [])]
    if not known:
        return list(prompts["suffixes"][prompt_id])
    return [*prompts["openings"][prompt_id], *known, *prompts["close"]]


def suffixes_with(
    prompts: dict[str, Any], prompt_ids: Tensor, context_ids: Tensor | None, told: Tensor | None
) -> list[list[int]]:
    """`suffix_with` for a batch: prompts (B,), contexts (B, C) as from `Context.batch`, observations told (B, 13)."""
    nothing = [None] * len(prompt_ids)
    contexts = nothing if context_ids is None else [row[row != IGNORED_LABEL].tolist() for row in context_ids]
    rows = zip(prompt_ids.tolist(), contexts, nothing if told is None else told.tolist(), strict=True)
    return [suffix_with(prompts, k, ids or (), shown) for k, ids, shown in rows]
