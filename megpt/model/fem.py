"""FEM, the Feature Enhancement Module: three receptive fields on one feature map.

Source: the FEM of FFCA-YOLO (Zhang et al., 2024), which MeGPT puts between vision encoder and language model.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megpt.errors import InputError


def _norm(norm: str, channels: int) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    # Up to 8 groups of at least 4 channels: a group of one channel on a 1×1 map would erase its input.
    groups = next(g for g in range(min(8, max(1, channels // 4)), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


class ConvNorm(nn.Module):
    """Convolution without bias → norm → ReLU (unless `relu=False`)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int] = 1,
        *,
        padding: int | tuple[int, int] = 0,
        dilation: int = 1,
        norm: str = "group",
        relu: bool = True,
    ):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
        self.norm = _norm(norm, outputs)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return F.relu(x) if self.relu else x


class FEM(nn.Module):
    """(B, C, H, W) → (B, C, H, W): ReLU(shortcut + α · merged branches).

    Args:
        channels: C, a multiple of 4.
        norm: `group` (the same on any number of workers) or `batch` (the reference's).
        square_kernels: the reference's kernels, for its weights only. It gave the kernel sizes of the 1×3 / 3×1 pair
            as single integers, which makes them 1×1 / 3×3 with the padding of the pair.

    Raises:
        InputError: C is not a multiple of 4, or less than 8.
    """

    def __init__(self, channels: int, *, norm: str = "group", square_kernels: bool = False):
        super().__init__()
        if channels % 4 or channels < 8:
            raise InputError(
                f"FEM needs a multiple of 4 channels (8 or more), but gets {channels}",
                cause="its branches are a quarter as wide as its input",
                next="choose another `model.vision` (or width in `model.vision_args`), or set model.fem=false",
            )
        c = channels // 4
        middle = 3 * c // 2
        wide: int | tuple[int, int] = 1 if square_kernels else (1, 3)
        tall: int | tuple[int, int] = 3 if square_kernels else (3, 1)
        self.branch0 = nn.Sequential(
            ConvNorm(channels, 2 * c, norm=norm),
            ConvNorm(2 * c, 2 * c, 3, padding=1, norm=norm, relu=False),
        )
        self.branch1 = nn.Sequential(
            ConvNorm(channels, c, norm=norm),
            ConvNorm(c, middle, wide, padding=(0, 1), norm=norm),
            ConvNorm(middle, 2 * c, tall, padding=(1, 0), norm=norm),
            ConvNorm(2 * c, 2 * c, 3, padding=5, dilation=5, norm=norm, relu=False),
        )
        self.branch2 = nn.Sequential(
            ConvNorm(channels, c, norm=norm),
            ConvNorm(c, middle, tall, padding=(1, 0), norm=norm),
            ConvNorm(middle, 2 * c, wide, padding=(0, 1), norm=norm),
            ConvNorm(2 * c, 2 * c, 3, padding=5, dilation=5, norm=norm, relu=False),
        )
        self.merge = ConvNorm(6 * c, channels, norm=norm, relu=False)
        narrow = max(16, channels // 2)
        self.shortcut = nn.Sequential(
            ConvNorm(channels, narrow, norm=norm, relu=False), ConvNorm(narrow, channels, norm=norm, relu=False)
        )
        # One element instead of a scalar: DeepSpeed cannot send a tensor without dimensions.
        self.scale = nn.Parameter(torch.full((1,), 0.1))
        self.register_load_state_dict_pre_hook(_scalar_to_vector)

    def forward(self, x: Tensor) -> Tensor:
        merged = self.merge(torch.cat((self.branch0(x), self.branch1(x), self.branch2(x)), dim=1))
        return F.relu(self.shortcut(x) + self.scale * merged)


def _scalar_to_vector(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Load the reference's α, which is a scalar."""
    name = f"{prefix}scale"
    if name in state and state[name].ndim == 0:
        state[name] = state[name].view(1)


def token_side(hidden: int) -> int:
    """w = c = √H of the reference's reshape `b h (w c) → b w h c`.

    Raises:
        InputError: the width of the language model is not the square of a multiple of 4.
    """
    side = math.isqrt(hidden)
    if side * side != hidden or side % 4:
        raise InputError(
            f"model.fem_domain = token needs a language model whose width is w·c with w = c, but it is {hidden}",
            cause=f"the reference reshapes tokens of 4096 = 64·64 channels; √{hidden} is not a multiple of 4",
            next="set model.fem_domain=spatial, or choose another model.llm",
        )
    return side
