"""DOConv, held against its formula written out with loops.

- The kernel is W'[o,i,m] = Σ_s D[i,m,s]·W[o,i,s], for plain, grouped and depthwise layers, 1×1 and 1×3 kernels, and
  D_mul above M·N; the output is the convolution with it, for any stride, padding and dilation.
- A fresh layer is the convolution with kernel W; D is stored as a zero difference from the identity.
- `fold()` gives an ordinary Conv2d with outputs equal to 1e-6; evaluation folds by itself and sees every change.
- Both W and D get gradients; D_mul below M·N and indivisible groups are refused.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megpt.model import DOConv2d

CASES: list[dict[str, Any]] = [
    {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 1},
    {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "groups": 2, "stride": 2},
    {"in_channels": 4, "out_channels": 8, "kernel_size": 3, "groups": 4, "dilation": 2},
    {"in_channels": 3, "out_channels": 3, "kernel_size": (1, 3), "groups": 3, "bias": False, "padding": (0, 1)},
    {"in_channels": 4, "out_channels": 2, "kernel_size": 3, "d_mul": 13},
    {"in_channels": 4, "out_channels": 5, "kernel_size": 1},
    {"in_channels": 4, "out_channels": 5, "kernel_size": 1, "d_mul": 4},
    {"in_channels": 2, "out_channels": 2, "kernel_size": 5, "padding": 2, "stride": (2, 1)},
]


def build(case: dict[str, Any]) -> DOConv2d:
    torch.manual_seed(0)
    layer = DOConv2d(**case)
    nn.init.normal_(layer.d_diff, std=0.3)
    return layer


def kernel_by_loops(layer: DOConv2d) -> Tensor:
    rows, columns = layer.kernel_size
    per_group = layer.in_channels // layer.groups
    out = torch.zeros(layer.out_channels, per_group, rows, columns)
    for o, i, m in itertools.product(range(layer.out_channels), range(per_group), range(rows * columns)):
        channel = o // (layer.out_channels // layer.groups) * per_group + i
        value = 0.0
        for s in range(layer.d_mul):
            d = float(layer.d_diff[channel, m, s]) + (1.0 if m == s else 0.0)
            value += d * float(layer.weight[o, i, s])
        out[o, i, m // columns, m % columns] = value
    return out


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernel_is_the_formula(case: dict[str, Any]) -> None:
    layer = build(case)
    kernel = kernel_by_loops(layer)
    assert torch.allclose(layer.kernel(), kernel, atol=1e-6)
    x = torch.randn(2, layer.in_channels, 9, 8)
    wanted = F.conv2d(x, kernel, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    assert torch.allclose(layer(x), wanted, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_fold_gives_equal_outputs(case: dict[str, Any]) -> None:
    layer = build(case)
    folded = layer.fold()
    assert type(folded) is nn.Conv2d
    x = torch.randn(2, layer.in_channels, 9, 8)
    assert (folded(x) - layer(x)).abs().max() <= 1e-6
    assert folded.weight.shape == (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)


def test_fresh_layer_is_an_ordinary_convolution() -> None:
    layer = DOConv2d(4, 6, 3)
    assert layer.d_mul == 9 and not layer.d_diff.any()
    assert torch.equal(layer.kernel(), layer.weight.reshape(6, 4, 3, 3))


def test_both_factors_learn() -> None:
    layer = DOConv2d(4, 4, 3, padding=1)
    layer(torch.randn(2, 4, 6, 6)).square().mean().backward()
    assert layer.weight.grad is not None and layer.weight.grad.abs().max() > 0
    assert layer.d_diff.grad is not None and layer.d_diff.grad.abs().max() > 0


def test_evaluation_folds_and_sees_every_change() -> None:
    layer = build(CASES[0]).eval()
    x = torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        first = layer(x)
        assert layer._kernel() is layer._kernel()  # one folded kernel, not one per call
        layer.weight.mul_(2)
        assert not torch.allclose(layer(x), first)
        changed = layer(x)
        layer.train()
        layer.weight.data = layer.weight.data * 3  # as an optimizer does that leaves no version behind
        layer.eval()
        assert not torch.allclose(layer(x), changed)
        layer.load_state_dict(build(CASES[0]).state_dict())
        assert torch.equal(layer(x), first)


@pytest.mark.parametrize("case", [{"kernel_size": 3, "d_mul": 8}, {"kernel_size": 3, "groups": 3}], ids=str)
def test_impossible_layers_are_refused(case: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        DOConv2d(4, 6, **case)
