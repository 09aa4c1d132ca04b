"""From the encoder's feature map to the language model's width: FEM, DOConv, linear, LayerNorm, and the L2 term."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megpt.model.doconv import DOConv2d
from megpt.model.fem import FEM, token_side


class PenalisedLinear(nn.Linear):
    """A linear layer that also returns ‖W‖².

    Under ZeRO-3 a parameter is whole only inside the forward of the module that owns it; read anywhere else it is an
    empty shard, and the penalty would silently be 0.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # pyrefly: ignore[bad-override-param-name]
        return F.linear(x, self.weight, self.bias), self.weight.float().square().sum()


class PenalisedLayerNorm(nn.LayerNorm):
    """A LayerNorm that also returns ‖γ‖² (see `PenalisedLinear`)."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # pyrefly: ignore[bad-override-param-name]
        y = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return y, self.weight.float().square().sum()


class Enhancer(nn.Module):
    """FEM then DOConv on a map of C channels; either may be absent. (B, C, H, W) → (B, C, H, W)."""

    def __init__(
        self,
        channels: int,
        *,
        fem: bool,
        doconv: bool,
        kernel: int = 3,
        norm: str = "group",
        square_kernels: bool = False,
        folded: bool = False,
    ):
        super().__init__()
        self.fem = FEM(channels, norm=norm, square_kernels=square_kernels) if fem else None
        self.doconv: nn.Module | None = None
        if doconv and folded:
            self.doconv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
        elif doconv:
            self.doconv = DOConv2d(channels, channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.fem is not None:
            x = self.fem(x)
        return x if self.doconv is None else self.doconv(x)

    def fold(self) -> None:
        """Replace DOConv by its ordinary convolution, in place."""
        if isinstance(self.doconv, DOConv2d):
            self.doconv = self.doconv.fold()


class Projector(nn.Module):
    """Feature maps (B, C, h, w) → tokens (B, h·w, H) and the L2 term λ(‖W‖² + ‖γ‖²), a scalar.

    Args:
        channels: C of the encoder. hidden: H of the language model. l2: λ.
        domain: `spatial`: FEM and DOConv on the feature map, before the linear layer; `token`: on the projected
            tokens reshaped as the reference does, `b n (w c) → b w n c` with w = c = √H, before the LayerNorm.

    The remaining keywords are `Enhancer`'s. Raises InputError where C or H do not fit.
    """

    def __init__(self, channels: int, hidden: int, *, l2: float, domain: str = "spatial", **enhancer: Any):
        super().__init__()
        self.l2, self.domain = l2, domain
        on = bool(enhancer.get("fem") or enhancer.get("doconv"))
        self.side = token_side(hidden) if on and domain == "token" else 0
        self.enhancer = Enhancer(self.side or channels, **enhancer) if on else None
        self.linear = PenalisedLinear(channels, hidden)
        self.norm = PenalisedLayerNorm(hidden)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        if self.enhancer is not None and not self.side:
            features = self.enhancer(features)
        tokens, weight = self.linear(features.flatten(2).transpose(1, 2))
        if self.enhancer is not None and self.side:
            picture = tokens.unflatten(2, (self.side, self.side)).transpose(1, 2)  # (B, w, N, c)
            tokens = self.enhancer(picture).transpose(1, 2).flatten(2)
        tokens, gamma = self.norm(tokens)
        return tokens, self.l2 * (weight + gamma)

    def fold(self) -> None:
        """Fold DOConv, in place."""
        if self.enhancer is not None:
            self.enhancer.fold()


def reset(module: nn.Module, generator_seed: int) -> None:
    """Draw the parameters of `module` again from a seed, whatever was drawn before it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_seed)
        for part in module.modules():
            draw = getattr(part, "reset_parameters", None)
            if callable(draw):
                draw()
