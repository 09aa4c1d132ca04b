"""DOConv: a depthwise over-parameterised convolution that folds into an ordinary one.

Source: Cao et al., "DO-Conv: Depthwise Over-parameterized Convolutional Layer", 2020.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DOConv2d(nn.Module):
    """Convolution whose kernel is the product of two trained tensors.

    For a kernel M×N and s = `d_mul` ≥ M·N, the kernel used is

        W'[o, i, m] = Σ_s D[i, m, s] · W[o, i, s],   D = identity + `d_diff`

    with W (C_out, C_in / groups, s) and D (C_in, M·N, s). With groups, `i` runs over the input channels of the
    output channel's own group. `d_diff` starts at zero, so a fresh layer is an ordinary convolution with kernel W, and
    weight decay pulls D towards the identity instead of towards zero.

    Input (B, C_in, H, W), output (B, C_out, H', W'). Raises ValueError for `d_mul` < M·N or indivisible groups.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        d_mul: int | None = None,
    ):
        super().__init__()
        size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else (kernel_size[0], kernel_size[1])
        area = size[0] * size[1]
        d_mul = area if d_mul is None else d_mul
        if d_mul < area:
            raise ValueError(f"d_mul = {d_mul} is smaller than the kernel's {size[0]}×{size[1]} = {area} taps")
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"groups = {groups} must divide in_channels {in_channels} and out_channels {out_channels}")
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, size
        self.stride, self.padding, self.dilation, self.groups, self.d_mul = stride, padding, dilation, groups, d_mul
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, d_mul))
        self.d_diff = nn.Parameter(torch.zeros(in_channels, area, d_mul))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self._folded: tuple[Any, Tensor] | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """W like an ordinary convolution's kernel, D the identity."""
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        nn.init.zeros_(self.d_diff)
        if self.bias is not None:
            bound = (self.weight.shape[1] * self.kernel_size[0] * self.kernel_size[1]) ** -0.5
            nn.init.uniform_(self.bias, -bound, bound)

    def kernel(self) -> Tensor:
        """The kernel in use, (C_out, C_in / groups, M, N)."""
        groups, (rows, columns) = self.groups, self.kernel_size
        eye = torch.eye(rows * columns, self.d_mul, dtype=self.d_diff.dtype, device=self.d_diff.device)
        d = (self.d_diff + eye).unflatten(0, (groups, -1))  # (g, i, m, s)
        w = self.weight.unflatten(0, (groups, -1))  # (g, o, i, s)
        product = torch.einsum("gims,gois->goim", d, w)
        return product.flatten(0, 1).unflatten(-1, (rows, columns))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self._kernel(), self.bias, self.stride, self.padding, self.dilation, self.groups)

    def _kernel(self) -> Tensor:
        """`kernel()`. In evaluation without gradients it is computed once and kept until a weight changes."""
        if self.training or torch.is_grad_enabled():
            return self.kernel()
        state = tuple((p.data_ptr(), p._version, p.dtype, p.device) for p in (self.weight, self.d_diff))
        if self._folded is None or self._folded[0] != state:
            self._folded = (state, self.kernel())
        return self._folded[1]

    def train(self, mode: bool = True) -> DOConv2d:
        # Optimizers that write through `.data` do not change `_version`, but training calls train() first.
        self._folded = None
        return super().train(mode)

    def fold(self) -> nn.Conv2d:
        """An ordinary convolution with equal outputs (to 1e-6 in float32)."""
        with torch.no_grad():
            kernel = self.kernel()
            conv = nn.Conv2d(
                self.in_channels,
                self.out_channels,
                self.kernel_size,
                stride=self.stride,
                padding=self.padding,
                dilation=self.dilation,
                groups=self.groups,
                bias=self.bias is not None,
                device=kernel.device,
                dtype=kernel.dtype,
            )
            conv.weight.copy_(kernel)
            if self.bias is not None and conv.bias is not None:
                conv.bias.copy_(self.bias)
        for p in conv.parameters():
            p.requires_grad_(self.weight.requires_grad)
        return conv.train(self.training)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, d_mul={self.d_mul}"
        )
