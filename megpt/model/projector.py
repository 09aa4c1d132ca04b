"""From the encoder's feature map to the language model's width: feature modules, linear layer, LayerNorm, L2 term.

Feature modules enhance the map: FEM and DOConv, then those that `model.extra_modules` names. A further module is a
factory in a package of its own, installed with an entry point in the group `megpt.modules`:

    def squeeze(channels: int, config: MeGPTConfig) -> nn.Module: ...    # (B, C, H, W) → (B, C, H, W)

    [project.entry-points."megpt.modules"]
    squeeze = "my_package:squeeze"
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megpt.errors import InputError, did_you_mean
from megpt.model.configuration import MeGPTConfig
from megpt.model.doconv import DOConv2d
from megpt.model.fem import FEM, token_side

MODULE_GROUP = "megpt.modules"
"""The entry-point group of further feature modules."""


def _fem(channels: int, config: MeGPTConfig) -> nn.Module:
    return FEM(channels, norm=config.fem_norm, square_kernels=config.square_kernels)


def _doconv(channels: int, config: MeGPTConfig) -> nn.Module:
    conv = nn.Conv2d if config.folded else DOConv2d
    return conv(channels, channels, config.doconv_kernel, padding=config.doconv_kernel // 2)


SWITCHED = ("fem", "doconv")
"""The modules that have a switch of their own, `model.fem` and `model.doconv`."""
MODULES: dict[str, Callable[[int, MeGPTConfig], nn.Module]] = {"fem": _fem, "doconv": _doconv}
"""Name → factory of a feature module for C channels; the module maps (B, C, H, W) to the same shape."""


def feature_modules(config: MeGPTConfig) -> list[str]:
    """The names of the feature modules that a config switches on, in the order in which they follow each other.

    Raises:
        InputError: `extra_modules` names a module twice, one that has a switch, or any in the token domain.
    """
    extra = list(config.extra_modules)
    if repeated := [name for name in extra if name in SWITCHED or extra.count(name) > 1]:
        raise InputError(
            f"model.extra_modules = {extra} adds {repeated[0]!r} a second time",
            cause=f"{' and '.join(SWITCHED)} are switched by model.fem and model.doconv, and each name is used once",
            next=f"remove {repeated[0]!r} from model.extra_modules",
        )
    if extra and config.fem_domain == "token":
        raise InputError(
            f"model.extra_modules = {extra} needs the encoder's feature map, and model.fem_domain = token has none",
            cause="the token domain is the reference's reshape of projected tokens, where neighbours have no meaning",
            next="set model.fem_domain=spatial, or model.extra_modules=[]",
        )
    return [name for name in SWITCHED if getattr(config, name)] + extra


def make_module(name: str, channels: int, config: MeGPTConfig) -> nn.Module:
    """A feature module by its name in `MODULES` or in the entry-point group.

    Raises:
        InputError: an unknown name (the text lists the choices), or a package that cannot be imported.
    """
    if name in MODULES:
        return MODULES[name](channels, config)
    # The name becomes an attribute of `Enhancer`, so it must not be one already.
    found = [e for e in entry_points(group=MODULE_GROUP) if "." not in e.name and not hasattr(Enhancer, e.name)]
    installed = {entry.name: entry for entry in found}
    if name not in installed:
        choices = sorted({*MODULES, *installed} - {*SWITCHED})
        raise InputError(
            f"model.extra_modules: there is no module {name!r}",
            cause=f"no installed package has an entry point of this name in the group {MODULE_GROUP}",
            next=did_you_mean(name, choices) if choices else "install the package that provides it on every machine",
        )
    try:
        factory = installed[name].load()
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"model.extra_modules: the module {name!r} cannot be imported",
            where=installed[name].value,
            cause=f"{type(error).__name__}: {error}",
            next="repair or reinstall the package that provides it",
        ) from error
    return factory(channels, config)


class PenalisedLinear(nn.Linear):
    """A linear layer that also returns ‖W‖².

    Under ZeRO-3 a parameter is whole only inside the forward of the module that owns it. Anywhere else it is an empty
    shard, and the penalty would silently be 0.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # pyrefly: ignore[bad-override-param-name]
        return F.linear(x, self.weight, self.bias), self.weight.float().square().sum()


class PenalisedLayerNorm(nn.LayerNorm):
    """A LayerNorm that also returns ‖γ‖² (see `PenalisedLinear`)."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # pyrefly: ignore[bad-override-param-name]
        y = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return y, self.weight.float().square().sum()


class Enhancer(nn.Module):
    """The feature modules of a config, one after the other, on a map of C channels. (B, C, H, W) → (B, C, H, W)."""

    def __init__(self, channels: int, config: MeGPTConfig):
        super().__init__()
        for name in feature_modules(config):
            self.add_module(name, make_module(name, channels, config))

    def forward(self, x: Tensor) -> Tensor:
        for name, module in self.named_children():
            y = module(x)
            if y.shape != x.shape:
                raise InputError(
                    f"the module {name!r} turned a feature map of {tuple(x.shape)} into {tuple(y.shape)}",
                    cause="a feature module must keep the shape (B, C, H, W)",
                    next=f"repair the module, or remove {name!r} from model.extra_modules",
                )
            x = y
        return x

    def fold(self) -> None:
        """Replace DOConv by its ordinary convolution, in place."""
        for name, module in self.named_children():
            if isinstance(module, DOConv2d):
                self.add_module(name, module.fold())


class Projector(nn.Module):
    """Feature maps (B, C, h, w) → tokens (B, h·w, H) and the L2 term λ(‖W‖² + ‖γ‖²), a scalar.

    `fem_domain: spatial` applies the feature modules to the map, before the linear layer. `token` applies them to the
    projected tokens, reshaped as in the reference, `b n (w c) → b w n c` with w = c = √H, before the LayerNorm.

    Args:
        channels: C of the encoder. hidden: H of the language model.
        config: the feature modules and their settings, and λ as `l2`.

    Raises:
        InputError: C or H does not fit the feature modules, or one of them is unknown.
    """

    def __init__(self, channels: int, hidden: int, config: MeGPTConfig):
        super().__init__()
        self.l2 = config.l2
        on = bool(feature_modules(config))
        self.side = token_side(hidden) if on and config.fem_domain == "token" else 0
        self.enhancer = Enhancer(self.side or channels, config) if on else None
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
    """Draw the parameters of `module` again from a seed, so that they do not depend on what was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_seed)
        for part in module.modules():
            draw = getattr(part, "reset_parameters", None)
            if callable(draw):
                draw()
