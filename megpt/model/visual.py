"""What a batch of studies looks like: padding of views, pooling, and the features prompts are chosen by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megpt.errors import InputError
from megpt.model.vision import VisionEncoder


@dataclass
class VisualFeatures:
    """What a batch of studies looks like to the language model.

    tokens (B, N, H); token_mask (B, N) bool, the real ones first; prompt_id (B,) long; l2: the penalty, a scalar.
    """

    tokens: Tensor
    token_mask: Tensor
    prompt_id: Tensor
    l2: Tensor | None = None


def check_films(films: Tensor, view_mask: Tensor, size: int) -> None:
    """Raise InputError for films (R, 3, S, S) of another size or with NaN pixels, and for a study without views."""
    if films.ndim != 4 or films.shape[-2:] != (size, size):
        raise InputError(
            f"pixel_values are {tuple(films.shape[1:])}, and this encoder takes (3, {size}, {size})",
            next="prepare films with the checkpoint's own processor",
        )
    if films.is_meta:
        return
    # One transfer for both checks: each would stall a GPU.
    some, finite = torch.stack((view_mask.any(1).all(), films.isfinite().all())).tolist()
    if not some:
        raise InputError("view_mask: a study of the batch has no view", next="leave studies without films out")
    if not finite:
        raise InputError("pixel_values hold NaN or infinite pixels", next="leave the broken film out")


def spread(rows: Tensor, view_mask: Tensor) -> Tensor:
    """Rows of the real views (R, …) → (B, V, …), zero where there is no view."""
    out = rows.new_zeros(*view_mask.shape, *rows.shape[1:])
    return out.masked_scatter(view_mask.view(*view_mask.shape, *[1] * (rows.ndim - 1)), rows)


def view_mean(maps: Tensor, view_mask: Tensor) -> Tensor:
    """Maps of the real views (R, C, h, w) → their mean for each study (B, C, h, w)."""
    return spread(maps, view_mask).sum(1) / view_mask.sum(1).to(maps.dtype).view(-1, 1, 1, 1)


def in_sequence(tokens: Tensor, view_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens of the real views (R, n, H) → of each study (B, V·n, H), the real ones first, and their mask."""
    order = view_mask.long().argsort(dim=1, descending=True, stable=True)
    padded = spread(tokens, view_mask)
    padded = padded.gather(1, order[:, :, None, None].expand_as(padded))
    mask = view_mask.gather(1, order)[:, :, None].expand(-1, -1, tokens.shape[1])
    return padded.flatten(1, 2), mask.flatten(1, 2)


def pooled(maps: Tensor, view_mask: Tensor) -> Tensor:
    """Maps of the real views (R, C, h, w) → one vector per study (B, C) float32, the mean over its views."""
    return spread(maps.float().mean((2, 3)), view_mask).sum(1) / view_mask.sum(1, keepdim=True)


@torch.no_grad()
def prompt_features(encoder: VisionEncoder, pixel_values: Tensor, view_mask: Tensor) -> Tensor:
    """The vector of each study that prompts are chosen by: (B, V, 3, S, S) → (B, C) float32."""
    films = pixel_values[view_mask]
    check_films(films, view_mask, encoder.image_size)
    return pooled(encoder(films), view_mask)
