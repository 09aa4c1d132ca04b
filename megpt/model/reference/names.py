"""The reference's tensors renamed to megpt's, and the model's shape as it follows from them.

R2GenGPT has `llama_proj`, `layer_norm`, and LoRA or all of `visual_encoder`; MeGPT's reference adds `FEM` and
`DOConv2d`. docs/import_and_plan.md describes the layout.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from megpt.errors import InputError
from megpt.model.reference.file import ReferenceFile
from megpt.model.reference.swin import swin_to_timm

ENCODER, ENHANCER = "vision.trunk.", "projector.enhancer."
_PREFIXES = ("module.", "_forward_module.")
_FEM = re.compile(r"FEM\.(branch[0-2]\.\d+|ConvLinear|shortcut\.\d+)\.(conv|bn)\.(\w+)")
_PROJECTION = {"llama_proj.": "projector.linear.", "layer_norm.": "projector.norm."}
_DOCONV = {"W": "weight", "D": "d_diff", "bias": "bias"}
_VISION_LORA = re.compile(
    r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.attention\.(?:self\.(query|value)|([qv])_proj)\.lora_([AB])\..*"
)
_LANGUAGE_LORA = re.compile(r"llama_model\.(?:base_model\.model\.)?(.+\.lora_[AB]\.default\.weight)")


@dataclass
class Translation:
    """A reference checkpoint in megpt's terms.

    tensors: by the names in `MeGPTForConditionalGeneration.state_dict()`; shape: fields of `ModelConfig`;
    used: reference name → megpt's name; ignored: reference name → reason.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    shape: dict[str, Any] = field(default_factory=dict)
    used: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)

    def take(self, name: str, target: str, tensor: Tensor) -> None:
        """Use a tensor. All are kept in float32, whatever the format of the file."""
        self.tensors[target] = tensor.float() if tensor.is_floating_point() else tensor
        self.used[name] = target


def translate(file: ReferenceFile) -> Translation:
    """Rename, fuse and classify all tensors of a reference checkpoint.

    Raises:
        InputError: the file holds no projection, or LoRA of more than one rank.
    """
    out = Translation()
    encoder: dict[str, tuple[str, Tensor]] = {}
    for original, tensor in file.tensors.items():
        name = original
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        if name.startswith("visual_encoder."):
            inner = name.removeprefix("visual_encoder.").removeprefix("base_model.model.").replace(".base_layer.", ".")
            encoder[inner] = (original, tensor)
        elif target := _own_name(name):
            out.take(original, target, tensor)
        elif match := _LANGUAGE_LORA.fullmatch(name):
            out.take(original, f"language_model.{match[1]}", tensor)
        else:
            out.ignored[original] = _why_ignored(name)
    if "projector.linear.weight" not in out.tensors:
        raise InputError(
            f"{file.path} holds no `llama_proj.weight`",
            cause="it is not a checkpoint of R2GenGPT or of the MeGPT reference",
            next="give the file that the reference's save_checkpoint wrote",
        )
    _encoder(encoder, out)
    _shape(file, out)
    return out


def _own_name(name: str) -> str | None:
    """megpt's name of a tensor of the projector, FEM or DOConv; None for others."""
    for prefix, target in _PROJECTION.items():
        if name.startswith(prefix):
            return target + name.removeprefix(prefix)
    if name == "FEM.scale":
        return f"{ENHANCER}fem.scale"
    if match := _FEM.fullmatch(name):
        part = "merge" if match[1] == "ConvLinear" else match[1]
        return f"{ENHANCER}fem.{part}.{'norm' if match[2] == 'bn' else 'conv'}.{match[3]}"
    if name.startswith("DOConv2d.") and (own := _DOCONV.get(name.removeprefix("DOConv2d."))):
        return f"{ENHANCER}doconv.{own}"
    return None


def _why_ignored(name: str) -> str:
    if name.startswith(("llama_model.", "embed_tokens.")):
        return "frozen in the reference; comes from model.llm"
    if name == "DOConv2d.d_diag":
        return "a constant, the identity"
    return "unknown to the reference's layout"


def _encoder(tensors: Mapping[str, tuple[str, Tensor]], out: Translation) -> None:
    plain = {}
    for inner, (original, tensor) in tensors.items():
        if match := _VISION_LORA.fullmatch(inner):
            layer, block, old, new, side = match.groups()
            number = 0 if (old or new)[0] == "q" else 1
            out.take(original, f"{ENCODER}layers.{layer}.blocks.{block}.attn.qkv.lora_{side}.{number}", tensor)
        else:
            plain[inner] = tensor
    if len(plain) < len(tensors):
        # With LoRA, the encoder itself was frozen.
        out.ignored.update((tensors[inner][0], "frozen in the reference; comes from model.vision") for inner in plain)
        return
    mapped, used, ignored = swin_to_timm(plain)
    for inner, name in used.items():
        out.take(tensors[inner][0], ENCODER + name, mapped[name])
    for inner in ignored:
        computed = inner.endswith("relative_position_index") or "attn_mask" in inner
        out.ignored[tensors[inner][0]] = "computed from the shape" if computed else "not part of a Swin encoder"


def _shape(file: ReferenceFile, out: Translation) -> None:
    """Derive `out.shape` from the tensors, and convert all LoRA to one rank and scaling."""
    tensors = out.tensors
    vision = [name for name in tensors if name.startswith(ENCODER)]
    adapters = [name for name in vision if ".lora_" in name]
    language = [name for name in tensors if name.startswith("language_model.")]
    fem = f"{ENHANCER}fem.branch1.1.conv.weight"
    kernel = tensors.get(f"{ENHANCER}doconv.d_diff")
    side = 1 if kernel is None else round(kernel.shape[1] ** 0.5)
    out.shape = {
        "mode": "delta" if adapters else "deep" if vision else "shallow",
        "fem": fem in tensors,
        "fem_domain": "token",
        "fem_norm": "batch",
        "square_kernels": fem in tensors and tensors[fem].shape[-2:] == (1, 1),
        "doconv": f"{ENHANCER}doconv.weight" in tensors,
        "doconv_kernel": side,
        "llm_lora": bool(language),
        "global_only": bool(file.settings.get("global_only")),
    }
    if adapters or language:
        vis = _scaling(file, tensors, adapters, "vis")
        llm = _scaling(file, tensors, language, "llm")
        rank, alpha = max(vis[0], llm[0]), (vis if adapters else llm)[1]
        out.shape |= {"lora_rank": rank, "lora_alpha": alpha}
        _rescale(tensors, adapters, rank, 1.0)
        if language and adapters:
            _rescale(tensors, language, rank, (llm[1] / llm[0]) / (alpha / rank))
        if adapters and rank != vis[0]:
            _rescale(tensors, adapters, rank, (vis[1] / vis[0]) / (alpha / rank))


def _scaling(file: ReferenceFile, tensors: Mapping[str, Tensor], names: list[str], which: str) -> tuple[int, int]:
    """Rank and alpha of a LoRA; (0, 0) if there is none."""
    ranks = {tensors[name].shape[0] for name in names if ".lora_A" in name}
    if not ranks:
        return 0, 0
    if len(ranks) > 1:
        raise InputError(
            f"{file.path} holds LoRA of ranks {sorted(ranks)}",
            next="only one rank is supported",
        )
    # The tensors do not hold alpha: it is in the settings, or else the reference's default of 16.
    return ranks.pop(), int(file.settings.get(f"{which}_alpha", 16))


def _rescale(tensors: dict[str, Tensor], names: list[str], rank: int, factor: float) -> None:
    """Widen a LoRA to `rank` with zeros, which changes nothing, and multiply its B by `factor`."""
    for name in names:
        tensor = tensors[name]
        missing = rank - tensor.shape[0 if ".lora_A" in name else 1]
        shape = (missing, tensor.shape[1]) if ".lora_A" in name else (tensor.shape[0], missing)
        wider = torch.cat([tensor, tensor.new_zeros(shape)], dim=0 if ".lora_A" in name else 1)
        tensors[name] = wider if ".lora_A" in name else wider * factor
