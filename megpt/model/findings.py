"""What the films of a study show, said to the language model: a head on the encoder's features, and a token a finding.

A decoder writes what is likeliest, and in a table of mostly normal studies no finding is likelier than not, however
well the encoder sees it. Here a head decides which observations are present, at a threshold of its own, and a learnt
token for each of them stands in front of the visual ones. In training the tokens say what the report says, so the
language model learns to write what it is told, and `train.label_loss` teaches the head (and in mode deep the encoder).

Source: diagnosis-driven prompts (Jin et al., "PromptMRG", AAAI 2024), with learnt tokens in place of words.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megpt.model.vision import VisualFeatures
from megpt.study import CHEXPERT

FINDINGS = tuple(name for name in CHEXPERT if name != "No Finding")
"""The observations that are told: all but No Finding, which is the absence of the others."""
THRESHOLD = 0.2
"""Where none was chosen. Of right probabilities, the best F1 is reached at half its value (Lipton et al., 2014)."""
COLUMNS = [CHEXPERT.index(name) for name in FINDINGS]


class _Words(nn.Embedding):
    """Embeddings as large as those of the language model's words."""

    def __init__(self, count: int, width: int, std: float):
        self.std = std
        super().__init__(count, width)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.std)


class FindingsHead(nn.Module):
    """Features of a study (B, C) → logits of its observations (B, 13), and tokens for them (B, 13, H).

    Args:
        channels: C of the encoder. hidden: H of the language model.
        std: standard deviation of the tokens at the start, that of the language model's embeddings.
    """

    def __init__(self, channels: int, hidden: int, *, std: float = 0.02):
        super().__init__()
        self.scale = 0.0
        """The weight of `loss` beside that of the text (`train.label_loss`)."""
        self.norm = nn.LayerNorm(channels, elementwise_affine=False)
        self.head = nn.Linear(channels, len(FINDINGS))
        self.tokens = _Words(2 * len(FINDINGS), hidden, std)  # of each observation: absent, present

    def forward(
        self, visual: VisualFeatures, features: Tensor, threshold: float | None, stated: Tensor | None = None
    ) -> VisualFeatures:
        """`visual` with its logits (B, 13) float32, and with 13 tokens that say what is present, in front.

        Args:
            features: (B, C), the mean of the study's feature maps.
            threshold: probability from which an observation is told as present; `THRESHOLD` by default.
            stated: (B, 14) 1 or 0, what the report says, which is then told; NaN where nobody knows.
        """
        logits = self.head(self.norm(features.to(self.head.weight.dtype))).float()
        present = logits.sigmoid() >= (THRESHOLD if threshold is None else threshold)
        if stated is not None:
            known = stated[:, COLUMNS]
            present = torch.where(known.isnan(), present, known > 0)
        tokens = self.tokens(2 * torch.arange(len(FINDINGS), device=present.device) + present)
        return replace(
            visual,
            tokens=torch.cat((tokens, visual.tokens), 1),
            token_mask=F.pad(visual.token_mask, (len(FINDINGS), 0), value=True),
            findings=logits,
        )

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
