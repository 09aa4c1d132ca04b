"""What the films of a study show, said to the language model: a head on the encoder's features, and words for it.

    …</Img> {instruction} Findings: cardiomegaly, pleural effusion. \nAssistant:

A decoder writes what is likeliest, and in a table of mostly normal studies no finding is likelier than not, however
well the encoder sees it. Here a head decides which observations are present, at a threshold of its own, and the prompt
names them in words that the language model knows. In training they are those of the report, so the language model
learns to write what it is told, and `train.label_loss` teaches the head (and in mode deep the encoder).

Source: diagnosis-driven prompts (Jin et al., "PromptMRG", AAAI 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megpt.study import CHEXPERT

FINDINGS = tuple(name for name in CHEXPERT if name != "No Finding")
"""The observations that are told: all but No Finding, which is the absence of the others."""
THRESHOLD = 0.2
"""Where none was chosen. Of right probabilities, the best F1 is reached at half its value (Lipton et al., 2014)."""
TYPICAL_TOKENS = 8
"""Of the sentence that names a study's findings, about: most have none to three."""
COLUMNS = [CHEXPERT.index(name) for name in FINDINGS]


class FindingsHead(nn.Module):
    """Features of a study (B, C) → logits of its observations (B, 13)."""

    def __init__(self, channels: int):
        super().__init__()
        self.scale = 0.0
        """The weight of `loss` beside that of the text (`train.label_loss`)."""
        self.norm = nn.LayerNorm(channels, elementwise_affine=False)
        self.head = nn.Linear(channels, len(FINDINGS))

    def forward(self, features: Tensor) -> Tensor:
        """The mean of each study's feature maps (B, C) → logits (B, 13) float32."""
        return self.head(self.norm(features.to(self.head.weight.dtype))).float()

    def loss(self, logits: Tensor, stated: Tensor, studies: float) -> Tensor:
        """`scale` times the mean binary cross-entropy over studies and observations, a scalar.

        Args:
            logits: (B, 13). stated: (B, 14) 1 or 0; a row of NaN is a study without labels and adds nothing.
            studies: divides the sum: the studies of the whole optimizer step.
        """
        known = stated[:, COLUMNS]
        weight = (~known.isnan()).float()
        losses = F.binary_cross_entropy_with_logits(logits, known.nan_to_num(0), weight=weight, reduction="sum")
        return self.scale * losses / (known.shape[1] * studies)


def told(logits: Tensor, threshold: float | None, stated: Tensor | None = None) -> Tensor:
    """The observations that the prompt names, (B, 13) bool.

    Args:
        logits: (B, 13). threshold: probability from which one is told as present; `THRESHOLD` by default.
        stated: (B, 14) 1 or 0, what the report says, which is then told; NaN where nobody knows.
    """
    present = logits.sigmoid() >= (THRESHOLD if threshold is None else threshold)
    if stated is None:
        return present
    known = stated[:, COLUMNS]
    return torch.where(known.isnan(), present, known > 0)


def tokenised_words(ids: Callable[[str], list[int]]) -> dict[str, Any]:
    """The `findings` entry of a checkpoint's prompts: token ids of each observation's name, and what stands around."""
    words = [ids(f" {name.lower()}") for name in FINDINGS]
    return {"start": ids(" Findings:"), "words": words, "comma": ids(","), "none": ids(" none"), "end": ids(".")}


def sentence(vocabulary: dict[str, Any], present: Sequence[bool]) -> list[int]:
    """The token ids that tell a study's findings: ` Findings: cardiomegaly, pleural effusion.`

    Args:
        vocabulary: from `tokenised_words`. present: of the 13 observations.
    """
    named: list[int] = []
    for name, shown in zip(vocabulary["words"], present, strict=True):
        if shown:
            named += [*(vocabulary["comma"] if named else []), *name]
    return [*vocabulary["start"], *(named or vocabulary["none"]), *vocabulary["end"]]


def longest_sentence(prompts: dict[str, Any] | None) -> int:
    """Tokens of a sentence that names everything; 0 for prompts that tell no findings."""
    vocabulary = (prompts or {}).get("findings")
    return len(sentence(vocabulary, [True] * len(FINDINGS))) if vocabulary else 0


def best_threshold(probabilities: Tensor, stated: Tensor) -> tuple[float, float]:
    """The threshold, in hundredths, of the best micro-F1 over all observations, and that F1; of equal ones the middle.

    Args:
        probabilities: (N, 13). stated: (N, 14) 1 or 0.
    """
    truth = stated[:, COLUMNS] > 0
    steps = torch.arange(1, 100) / 100
    called = probabilities[None] >= steps[:, None, None]
    hits = (called & truth).sum((1, 2))
    f1 = 2 * hits / (called.sum((1, 2)) + truth.sum()).clamp(min=1)
    best = (f1 == f1.max()).nonzero().flatten()
    return (int(best[len(best) // 2]) + 1) / 100, float(f1.max())
