"""FEM, the projector and its L2 term.

- FEM keeps the map's shape on maps of any size, is ReLU(s + α·m) with α = 0.1 at the start, sees 1×3 and 3×1 neighbours
  apart, and with group norm treats each study alone.
- The reference's square kernels keep the shape too; a channel count it cannot split is refused.
- The token domain is the reference's reshape `b n (w c) → b w n c`; a width that is no such square is refused.
- The L2 term is λ(‖W‖² + ‖γ‖²), value and gradient, in both domains.
- Folding DOConv in place changes nothing.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from megpt.errors import InputError
from megpt.model import FEM, DOConv2d, MeGPTConfig, Projector


@pytest.mark.parametrize("size", [(7, 7), (1, 1), (2, 5), (12, 3)], ids=str)
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_fem_keeps_the_shape(size: tuple[int, int], norm: str) -> None:
    x = torch.randn(2, 24, *size)
    for square in (False, True):
        if square and min(size) < 3:
            continue  # the reference's 3×3 without padding in width needs three columns
        fem = FEM(24, norm=norm, square_kernels=square)
        assert fem(x).shape == x.shape
        assert (fem(x) >= 0).all()


def test_fem_is_its_formula() -> None:
    torch.manual_seed(0)
    fem = FEM(32).eval()
    assert fem.scale.item() == pytest.approx(0.1)
    assert [layer.conv.kernel_size for layer in fem.branch1] == [(1, 1), (1, 3), (3, 1), (3, 3)]
    assert [layer.conv.kernel_size for layer in fem.branch2] == [(1, 1), (3, 1), (1, 3), (3, 3)]
    assert [layer.conv.out_channels for layer in fem.branch1] == [8, 12, 16, 16]
    assert [layer.conv.out_channels for layer in fem.branch0] == [16, 16]
    assert fem.branch1[3].conv.dilation == (5, 5) and fem.merge.conv.in_channels == 48
    assert fem.shortcut[0].conv.out_channels == 16
    for part in (fem.branch0, fem.branch1, fem.branch2):
        assert [layer.relu for layer in part] == [True] * (len(part) - 1) + [False]
    assert [layer.relu for layer in (*fem.shortcut, fem.merge)] == [False] * 3
    x = torch.randn(2, 32, 6, 6)

    def run(layers: nn.Sequential) -> torch.Tensor:
        y = x
        for layer in layers:
            y = layer.norm(nn.functional.conv2d(y, layer.conv.weight, None, 1, layer.conv.padding, layer.conv.dilation))
            y = y.clamp(min=0) if layer.relu else y
        return y

    m = torch.cat([run(fem.branch0), run(fem.branch1), run(fem.branch2)], 1)
    m = fem.merge.norm(nn.functional.conv2d(m, fem.merge.conv.weight))
    assert torch.allclose(fem(x), (run(fem.shortcut) + 0.1 * m).clamp(min=0), atol=1e-6)


def test_fem_with_group_norm_treats_each_study_alone() -> None:
    torch.manual_seed(0)
    fem = FEM(16).train()
    x = torch.randn(5, 16, 4, 4)
    assert torch.allclose(fem(x)[2:3], fem(x[2:3]), atol=1e-6)


@pytest.mark.parametrize("channels", [4, 30])
def test_fem_refuses_what_it_cannot_split(channels: int) -> None:
    with pytest.raises(InputError, match="multiple of 4"):
        FEM(channels)


def test_token_domain_is_the_references_reshape() -> None:
    torch.manual_seed(0)
    projector = Projector(12, 64, MeGPTConfig(fem_domain="token"))
    maps = torch.randn(2, 12, 3, 5)
    tokens = nn.functional.linear(maps.flatten(2).mT, projector.linear.weight, projector.linear.bias)
    picture = torch.empty(2, 8, 15, 8)
    for b in range(2):
        for n in range(15):
            for w in range(8):
                for c in range(8):
                    picture[b, w, n, c] = tokens[b, n, w * 8 + c]
    assert projector.enhancer is not None
    picture = projector.enhancer(picture)
    back = torch.stack([picture[:, w, :, :] for w in range(8)], dim=2).reshape(2, 15, 64)
    assert torch.allclose(projector(maps)[0], projector.norm(back)[0], atol=1e-5)


@pytest.mark.parametrize("hidden", [48, 36, 100 * 3])
def test_token_domain_needs_a_square_width(hidden: int) -> None:
    with pytest.raises(InputError, match=r"model\.fem_domain"):
        Projector(12, hidden, MeGPTConfig(fem_domain="token", doconv=False))


@pytest.mark.parametrize("domain", ["spatial", "token"])
def test_l2_value_and_gradient(domain: str) -> None:
    torch.manual_seed(0)
    projector = Projector(12, 64, MeGPTConfig(l2=0.01, fem_domain=domain))
    _, l2 = projector(torch.randn(2, 12, 4, 4))
    weight, gamma = projector.linear.weight, projector.norm.weight
    assert l2.item() == pytest.approx(0.01 * (weight.square().sum() + gamma.square().sum()).item(), rel=1e-6)
    l2.backward()
    assert torch.allclose(weight.grad, 0.02 * weight) and torch.allclose(gamma.grad, 0.02 * gamma)
    assert projector.linear.bias.grad is None or not projector.linear.bias.grad.any()


@pytest.mark.parametrize("domain", ["spatial", "token"])
def test_folding_in_place_changes_nothing(domain: str) -> None:
    torch.manual_seed(0)
    projector = Projector(12, 64, MeGPTConfig(fem_domain=domain)).eval()
    assert projector.enhancer is not None and isinstance(projector.enhancer.doconv, DOConv2d)
    nn.init.normal_(projector.enhancer.doconv.d_diff, std=0.2)
    maps = torch.randn(2, 12, 4, 4)
    before = projector(maps)[0]
    projector.fold()
    assert type(projector.enhancer.doconv) is nn.Conv2d
    assert (projector(maps)[0] - before).abs().max() <= 1e-5
