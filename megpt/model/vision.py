"""From films to feature maps: any timm encoder, and how the maps of a study's views are combined."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from megpt.errors import InputError
from megpt.model.trunks import build_trunk

Layout = dict[str, Any]
"""{"channels": C, "grid": [h, w], "order": "nchw" | "nhwc" | "tokens", "prefix": tokens before the grid's, "idle":
names of parameters that no feature depends on, such as a classifier's norm, "films": channels of a film, if not 3}."""

CPU_PIXELS = 8 * 224 * 224
"""Pixels of the films that a frozen encoder takes at a time on a CPU. The activations of more do not fit its caches: 32
films of 224 × 224 at once take 1.1 to 1.4 times as long as 8, and four times the memory, for the same maps (Swin-T,
ViT-S, ResNet-50). The limit counts pixels, not films, so that small films go in larger batches and the fixed cost of
each layer does not dominate."""


class VisionEncoder(nn.Module):
    """A timm model without its head: normalised films (B, 3, S, S) → maps (B, C, h, w).

    Hierarchical (NHWC), convolutional (NCHW) and plain transformers (class and register tokens dropped) alike.
    """

    def __init__(self, name: str, image_size: int | None = None, layout: Layout | None = None, **arguments: Any):
        super().__init__()
        self.trunk: Any = create(name, image_size, arguments)
        self.image_size = int(image_size or native_size(self.trunk))
        self.layout = layout or probe(self.trunk, name, self.image_size)

    @property
    def channels(self) -> int:
        return int(self.layout["channels"])

    def forward(self, pixels: Tensor) -> Tensor:
        at_once = max(1, CPU_PIXELS // self.image_size**2)
        if pixels.device.type == "cpu" and len(pixels) > at_once and not torch.is_grad_enabled():
            return torch.cat([self.one_pass(part) for part in pixels.split(at_once)])
        return self.one_pass(pixels)

    def one_pass(self, pixels: Tensor) -> Tensor:
        """The maps of all films in one forward pass, however many there are."""
        # Films are grey: an encoder of one channel gets one of the three equal ones.
        pixels = pixels[:, : self.layout.get("films", 3)]
        # Channels last is the order that convolutions and pooling are fastest in, on the CPU and on tensor cores.
        x = self.trunk.forward_features(pixels.contiguous(memory_format=torch.channels_last))
        if self.layout["order"] == "nhwc":
            return x.permute(0, 3, 1, 2)
        if self.layout["order"] == "tokens":
            return x[:, self.layout["prefix"] :].transpose(1, 2).unflatten(2, tuple(self.layout["grid"]))
        return x


def create(name: str, image_size: int | None, arguments: Mapping[str, Any]) -> Any:
    """The encoder without its head; its weights follow from torch's current seed.

    Raises:
        InputError: nobody knows the name (the text lists the nearest ones), or the size or arguments are refused.
    """
    arguments = dict(arguments)
    sized: dict[str, Any] = {"img_size": image_size} if image_size and "img_size" not in arguments else {}
    try:
        try:
            trunk = build_trunk(name, sized, arguments, pretrained=False)
        except TypeError:
            # Convolutional encoders take any size and have no `img_size`.
            trunk = build_trunk(name, {}, arguments, pretrained=False)
    except (TypeError, KeyError, ValueError, AssertionError, RuntimeError, OSError) as error:
        raise InputError(
            f"model.vision = {name!r} cannot be built with image_size = {image_size}, vision_args = {arguments}",
            cause=str(error).split("\n")[0] or type(error).__name__,
            next="choose model.image_size as a multiple of the patch size, or change model.vision_args",
        ) from error
    return trunk


def native_size(trunk: Any) -> int:
    """The side of the square films that the encoder was made for, in pixels."""
    size = getattr(getattr(trunk, "patch_embed", None), "img_size", None)
    if size is not None:
        return int(size[0] if isinstance(size, (tuple, list)) else size)
    return int(trunk.pretrained_cfg["input_size"][-1])


def pixel_statistics(trunk: Any) -> tuple[list[float], list[float]]:
    """Mean and standard deviation that the encoder expects in its three channels, for pixels in [0, 1]."""
    cfg: Any = trunk.pretrained_cfg
    return list(cfg["mean"]), list(cfg["std"])


def probe(trunk: Any, name: str, image_size: int) -> Layout:
    """How the encoder lays out its features, found by one forward pass.

    Raises:
        InputError: the encoder does not take this size, or does not return a grid.
    """
    device = next(trunk.parameters()).device
    first = next((part for part in trunk.modules() if isinstance(part, nn.Conv2d)), None)
    films = 1 if first is not None and first.in_channels == 1 else 3
    training = trunk.training
    try:
        with torch.enable_grad():
            x = trunk.eval().forward_features(torch.zeros(1, films, image_size, image_size, device=device))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(
            f"model.vision = {name!r} does not take films of {image_size}×{image_size}",
            cause=str(error).split("\n")[0] or type(error).__name__,
            next=f"set model.image_size={native_size(trunk)}",
        ) from error
    finally:
        trunk.train(training)
    layout = _grid(x, trunk)
    if layout is None:
        raise InputError(
            f"model.vision = {name!r} does not return one grid of features",
            cause=f"it returned {tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__}",
            next="choose an encoder with one feature map, such as a swin, vit, convnext or resnet",
        )
    return {**layout, "idle": _idle(x, trunk), **({"films": films} if films != 3 else {})}


@torch.enable_grad()  # also for a caller who builds a model inside no_grad
def _idle(features: Tensor, trunk: Any) -> list[str]:
    """The parameters that the features do not depend on: in training they would never get a gradient."""
    named = [(name, p) for name, p in trunk.named_parameters() if p.requires_grad]
    grads = torch.autograd.grad(features.sum(), [p for _, p in named], allow_unused=True)
    return [name for (name, _), grad in zip(named, grads, strict=True) if grad is None]


def _grid(x: Any, trunk: Any) -> Layout | None:
    known = int(trunk.num_features)
    if isinstance(x, Tensor) and x.ndim == 4:
        last = getattr(trunk, "output_fmt", None) == "NHWC" or (x.shape[1] != known and x.shape[3] == known)
        _, h, w, c = x.shape if last else (1, *x.shape[2:], x.shape[1])
        return {"channels": c, "grid": [h, w], "order": "nhwc" if last else "nchw", "prefix": 0}
    if isinstance(x, Tensor) and x.ndim == 3:
        declared = getattr(trunk, "num_prefix_tokens", None)
        for prefix in (0, 1) if declared is None else (int(declared),):
            side = math.isqrt(x.shape[1] - prefix)
            if side * side == x.shape[1] - prefix:
                return {"channels": x.shape[2], "grid": [side, side], "order": "tokens", "prefix": prefix}
    return None


def load_weights(encoder: VisionEncoder, name: str, weights: str, arguments: Mapping[str, Any]) -> None:
    """Put the weights that `model.vision_weights` names into the encoder: `pretrained` or a .safetensors file.

    The file may be that of a checkpoint whose encoder was trained (mode deep).

    Raises:
        InputError: they cannot be loaded, or do not fit.
    """
    if weights == "pretrained":
        takes_size = "img_size" not in arguments and encoder.trunk.pretrained_cfg.get("fixed_input_size")
        sized: dict[str, Any] = {"img_size": encoder.image_size} if takes_size else {}
        try:
            trunk = build_trunk(name, sized, arguments, pretrained=True)
        except Exception as error:
            raise InputError(
                f"the pretrained weights of model.vision = {name!r} could not be loaded",
                cause=f"{type(error).__name__}: no network, no such weights, or a changed architecture",
                next="set model.vision_weights=FILE.safetensors (timm's names), or =none for a random start",
            ) from error
        encoder.trunk.load_state_dict(trunk.state_dict())
        return
    path = Path(weights)
    if path.suffix != ".safetensors" or not path.is_file():
        raise InputError(
            f"model.vision_weights = {weights!r} is not a .safetensors file",
            next="give pretrained, none, or the path of a .safetensors file with timm's names",
        )
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except Exception as error:
        raise InputError(f"{path} cannot be read as safetensors", cause=type(error).__name__) from error
    for prefix in ("vision.trunk.", "trunk."):
        if any(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    own = encoder.trunk.state_dict()
    missing = sorted(own.keys() - state.keys())
    wrong = sorted(k for k in own.keys() & state.keys() if own[k].shape != state[k].shape)
    if missing or wrong:
        name_of = (missing or wrong)[0]
        raise InputError(
            f"{path} does not fit model.vision = {name!r}: {len(missing)} tensors missing, {len(wrong)} misshapen",
            where=name_of,
            next="give the weights of this architecture, or set model.vision_args to match them",
        )
    encoder.trunk.load_state_dict({key: state[key] for key in own})


@dataclass
class VisualFeatures:
    """The films of a batch of studies as the language model gets them.

    tokens (B, N, H); token_mask (B, N) bool, real tokens first; prompt_id (B,) long; l2: the penalty, a scalar;
    findings: the logits (B, 13) of `megpt.model.findings`, and told (B, 13) bool: those that the prompt names;
    novelty: (B,) float32 of `PromptBank.novelty`, where the prompt was chosen now by a bank that knows it.
    """

    tokens: Tensor
    token_mask: Tensor
    prompt_id: Tensor
    l2: Tensor | None = None
    findings: Tensor | None = None
    told: Tensor | None = None
    novelty: Tensor | None = None


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
    """Rows of the real views (R, …) → (B, V, …), zero for padding views."""
    out = rows.new_zeros(*view_mask.shape, *rows.shape[1:])
    return out.masked_scatter(view_mask.view(*view_mask.shape, *[1] * (rows.ndim - 1)), rows)


def view_mean(maps: Tensor, view_mask: Tensor) -> Tensor:
    """Maps of the real views (R, C, h, w) → their mean for each study (B, C, h, w)."""
    return spread(maps, view_mask).sum(1) / view_mask.sum(1).to(maps.dtype).view(-1, 1, 1, 1)


def in_sequence(tokens: Tensor, view_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens of the real views (R, n, H) → tokens of each study (B, V·n, H), real ones first, and their mask."""
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
    """The vector by which the prompt of each study is chosen: (B, V, 3, S, S) → (B, C) float32."""
    films = pixel_values[view_mask]
    check_films(films, view_mask, encoder.image_size)
    return pooled(encoder(films), view_mask)
