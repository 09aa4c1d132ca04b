"""Vision encoders by where they come from: timm's own names, and folders of timm, transformers and open_clip.

    swin_base_patch4_window7_224             a name of timm
    hf-hub:org/name, local-dir:FOLDER        timm's own format, or open_clip's with a trunk of timm (BiomedCLIP)
    microsoft/rad-dino, FOLDER               a vision model of transformers (DINOv2, ViT, …)

Each is a module with `forward_features`, `num_features`, `num_prefix_tokens` and `pretrained_cfg`, as timm's are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from megpt.errors import InputError, did_you_mean

FROM_TIMM = ("hf-hub:", "local-dir:")
OPEN_CLIP, OPEN_CLIP_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
VISUAL = "visual.trunk."
"""Where open_clip keeps a trunk of timm."""


class HubTrunk(nn.Module):
    """A vision model of transformers with the attributes of one of timm: films (B, 3, S, S) → tokens (B, T, C)."""

    def __init__(self, model: Any, mean: list[float], std: list[float], size: int):
        super().__init__()
        self.model = model
        self.num_features = int(model.config.hidden_size)
        self.num_prefix_tokens = 1 + int(getattr(model.config, "num_register_tokens", 0) or 0)
        self.pretrained_cfg = {"input_size": (3, size, size), "mean": mean, "std": std}

    def forward_features(self, pixels: Tensor) -> Tensor:
        takes_any_size = "interpolate_pos_encoding" in self.model.forward.__code__.co_varnames
        further = {"interpolate_pos_encoding": True} if takes_any_size else {}
        return self.model(pixel_values=pixels, **further).last_hidden_state


def build_trunk(name: str, sized: Mapping[str, Any], arguments: Mapping[str, Any], *, pretrained: bool) -> Any:
    """The encoder without its head, with the weights of its source or with those that follow from torch's seed.

    Raises:
        InputError: there is no such encoder (the text lists the nearest names).
        Exception: as timm and transformers raise them, for arguments that do not fit and weights that are missing.
    """
    if is_hub_model(name):
        if arguments:
            raise InputError(f"model.vision = {name!r} takes no vision_args", next="leave model.vision_args out")
        return _of_transformers(name, pretrained=pretrained)
    if (clip := _open_clip(name)) is not None:
        trunk: Any = timm.create_model(clip, pretrained=False, num_classes=0, **sized, **arguments)
        if pretrained:
            state = load_file(_file(name, OPEN_CLIP_WEIGHTS))
            own = {k.removeprefix(VISUAL): v for k, v in state.items() if k.startswith(VISUAL)}
            trunk.load_state_dict({key: own[key] for key in trunk.state_dict()})
        trunk.pretrained_cfg = {**trunk.pretrained_cfg, **_statistics(name)}
        return trunk
    if not name.startswith(FROM_TIMM) and not timm.is_model(name.split(".")[0]):
        raise InputError(
            f"model.vision = {name!r} is not a timm model, nor the folder or cached hub id of a vision model",
            next=did_you_mean(name, timm.list_models()),
        )
    return timm.create_model(name, pretrained=pretrained, num_classes=0, **sized, **arguments)


def is_hub_model(name: str) -> bool:
    """Whether a name is a folder or hub id of a model of transformers."""
    return not name.startswith(FROM_TIMM) and ("/" in name or Path(name).is_dir())


def _of_transformers(name: str, *, pretrained: bool) -> HubTrunk:
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        processor: Any = AutoImageProcessor.from_pretrained(name, use_fast=False, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"model.vision = {name!r} cannot be loaded",
            cause=f"no such folder or cached model, or not a vision model of transformers ({type(error).__name__})",
            next=f"give the folder, or run `hf download {name}` where there is a network",
        ) from error
    if pretrained:
        model = AutoModel.from_pretrained(name, use_safetensors=True, dtype=torch.float32, trust_remote_code=False)
    else:
        model = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
    size: Any = getattr(processor, "crop_size", None) or processor.size
    side = next(int(size[key]) for key in ("height", "shortest_edge") if key in size)
    return HubTrunk(model.eval(), list(processor.image_mean), list(processor.image_std), side)


def _open_clip(name: str) -> str | None:
    """The timm name of the trunk in an open_clip folder or repository; None if it is none."""
    if not name.startswith(FROM_TIMM):
        return None
    try:
        vision = json.loads(Path(_file(name, OPEN_CLIP)).read_text())["model_cfg"]["vision_cfg"]
    except Exception:  # no such file: timm reads its own and says what is wrong with it
        return None
    if "timm_model_name" not in vision:
        raise InputError(
            f"model.vision = {name!r} is an open_clip model whose encoder is not one of timm",
            next="give one with `timm_model_name` in its open_clip_config.json, such as BiomedCLIP",
        )
    return str(vision["timm_model_name"])


def _statistics(name: str) -> dict[str, Any]:
    """Mean and standard deviation that an open_clip model expects."""
    found = json.loads(Path(_file(name, OPEN_CLIP)).read_text()).get("preprocess_cfg", {})
    return {key: tuple(found[key]) for key in ("mean", "std") if key in found}


def _file(name: str, file: str) -> str:
    kind, _, place = name.partition(":")
    return str(Path(place) / file) if kind == "local-dir" else hf_hub_download(place, file)
