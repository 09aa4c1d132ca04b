"""Hugging Face's Swin weights under timm's names, so that both compute the same features.

Two things differ besides names: timm keeps query, key and value in one `qkv` (rows in that order), and puts the
patch merging at the start of stage i + 1 where Hugging Face has it at the end of stage i (both concatenate the four
neighbours in the same order). Names of transformers 4 and 5 are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

# Hugging Face name → timm name; {layer} and {block} are numbers. Buffers that both compute from the geometry are left.
_PLAIN = (
    (r"embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"embeddings\.norm\.(weight|bias)", r"patch_embed.norm.\1"),
    (r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.layernorm_before\.(weight|bias)", r"layers.\1.blocks.\2.norm1.\3"),
    (r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.layernorm_after\.(weight|bias)", r"layers.\1.blocks.\2.norm2.\3"),
    (
        r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.attention\.(?:output\.dense|o_proj)\.(weight|bias)",
        r"layers.\1.blocks.\2.attn.proj.\3",
    ),
    (
        r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.attention\.(?:self|relative_position_bias)"
        r"\.relative_position_bias_table",
        r"layers.\1.blocks.\2.attn.relative_position_bias_table",
    ),
    (
        r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.(?:intermediate\.dense|mlp\.fc1)\.(weight|bias)",
        r"layers.\1.blocks.\2.mlp.fc1.\3",
    ),
    (
        r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.(?:output\.dense|mlp\.fc2)\.(weight|bias)",
        r"layers.\1.blocks.\2.mlp.fc2.\3",
    ),
    (r"layernorm\.(weight|bias)", r"norm.\1"),
)
_DOWNSAMPLE = re.compile(r"encoder\.layers\.(\d+)\.downsample\.(norm|reduction)\.(weight|bias)")
_QKV = re.compile(
    r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.attention\.(?:self\.(query|key|value)|([qkv])_proj)\.(weight|bias)"
)


def swin_to_timm(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str], list[str]]:
    """Rename and fuse a Hugging Face Swin's tensors.

    Args:
        tensors: by Hugging Face's names, without any prefix such as `visual_encoder.`; need not be complete.

    Returns:
        The timm tensors; for each source name the timm name it went into; the source names that have no place
        (computed buffers, an incomplete query/key/value triple).
    """
    mapped: dict[str, torch.Tensor] = {}
    used: dict[str, str] = {}
    ignored: list[str] = []
    triples: dict[str, dict[str, str]] = {}
    for name, tensor in tensors.items():
        if match := _QKV.fullmatch(name):
            layer, block, old, new, kind = match.groups()
            target = f"layers.{layer}.blocks.{block}.attn.qkv.{kind}"
            triples.setdefault(target, {})[(old or new)[0]] = name
        elif plain := timm_name(name):
            mapped[plain] = tensor
            used[name] = plain
        else:
            ignored.append(name)
    for target, names in triples.items():
        if names.keys() != {"q", "k", "v"}:
            ignored += names.values()
            continue
        mapped[target] = torch.cat([tensors[names[part]] for part in "qkv"])
        used.update(dict.fromkeys(names.values(), target))
    return mapped, used, ignored


def timm_name(name: str) -> str | None:
    """timm's name of one Hugging Face Swin tensor that is not a query, key or value; None where there is none."""
    if match := _DOWNSAMPLE.fullmatch(name):
        return f"layers.{int(match[1]) + 1}.downsample.{match[2]}.{match[3]}"
    for pattern, target in _PLAIN:
        if match := re.fullmatch(pattern, name):
            return match.expand(target)
    return None
