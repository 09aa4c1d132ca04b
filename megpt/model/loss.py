"""Token cross-entropy that computes vocabulary logits for a few positions at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORED_LABEL = -100
"""Pads the labels of shorter reports: PyTorch's `ignore_index`, which transformers uses as well."""


def report_cross_entropy(
    hidden: Tensor, labels: Tensor, head: Callable[[Tensor], Tensor], *, chunk: int, items: int | Tensor | None
) -> Tensor:
    """The cross-entropy of reports `labels` (B, L), from the hidden states (B, T + L, H) of the prompt and the report.

    The sum over all labels except `IGNORED_LABEL` is divided by `items`, or by their number.
    """
    known = labels != IGNORED_LABEL
    # Position t predicts token t + 1: the last position of the prompt predicts the first token of the report.
    before = hidden[:, hidden.shape[1] - labels.shape[1] - 1 : -1]
    total = chunked_cross_entropy(before[known], labels[known], head, chunk=chunk)
    return total / (known.sum().clamp(min=1) if items is None else items)


def chunked_cross_entropy(hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], *, chunk: int) -> Tensor:
    """Sum of the cross-entropies of `targets` (M,) given hidden states (M, H), a float32 scalar.

    `head` maps (m, H) to logits (m, vocabulary). At most `chunk` rows of logits exist at a time: the logits of a chunk
    are dropped after the forward pass and recomputed in the backward pass.
    """
    total = hidden.new_zeros((), dtype=torch.float32)
    for rows, wanted in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        if torch.is_grad_enabled() and rows.requires_grad:
            total = total + checkpoint(_sum, rows, wanted, head, use_reentrant=False, preserve_rng_state=False)
        else:
            total = total + _sum(rows, wanted, head)
    return total


def _sum(rows: Tensor, wanted: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
    return F.cross_entropy(head(rows).float(), wanted, reduction="sum")
