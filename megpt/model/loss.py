"""Token cross-entropy whose vocabulary logits exist for a few positions at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def chunked_cross_entropy(hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], *, chunk: int) -> Tensor:
    """Sum of the cross-entropies of `targets` (M,) given hidden states (M, H), a float32 scalar.

    `head` maps (m, H) to logits (m, vocabulary). At most `chunk` rows of logits exist at one time: each chunk's are
    thrown away after the forward pass and computed again in the backward pass.
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
