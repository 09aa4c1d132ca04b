"""LoRA on the query and value of a timm encoder's attention, stored as peft stores it.

timm fuses query, key and value into one linear layer, whose output rows are [query | key | value]. Two low-rank pairs
add to the query rows and to the value rows alone; the key rows are never touched. On disk the two pairs become one
ordinary peft LoRA of twice the rank and twice the alpha (the same scaling) with a block matrix B whose key rows are
zero, so `peft.PeftModel.from_pretrained(encoder, folder)` loads it and computes the same.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from megpt.errors import InputError
from megpt.model.checkpoint.files import ADAPTER

SETTINGS = "adapter_config.json"
PEFT_PREFIX = "base_model.model."


class RowLoRA(nn.Module):
    """A frozen linear layer plus a low-rank update of some blocks of its output rows.

    Args:
        base: the layer, (C_out, C_in).
        blocks: the output rows each low-rank pair adds to.
        rank, alpha, dropout: as in LoRA; the update is (alpha / rank) · B A.
    """

    def __init__(self, base: nn.Linear, blocks: list[list[int]], *, rank: int, alpha: float, dropout: float = 0.0):
        super().__init__()
        self.base_layer = base
        self.blocks, self.rank, self.alpha, self.scaling = blocks, rank, alpha, alpha / rank
        self.lora_dropout = nn.Dropout(dropout)
        make: dict[str, Any] = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.lora_A = nn.ParameterList(nn.Parameter(torch.empty(rank, base.in_features, **make)) for _ in blocks)
        self.lora_B = nn.ParameterList(nn.Parameter(torch.zeros(len(rows), rank, **make)) for rows in blocks)
        self.enabled = True
        for a in self.lora_A:
            nn.init.kaiming_uniform_(a, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        out = self.base_layer(x)
        if not self.enabled:
            return out
        x = self.lora_dropout(x)
        pieces = [F.linear(F.linear(x, a), b) for a, b in zip(self.lora_A, self.lora_B, strict=True)]
        return out + self.scaling * self._place(pieces, out, dim=-1)

    def _place(self, pieces: list[Tensor], like: Tensor, dim: int) -> Tensor:
        """The pieces on their rows, exact zeros on all others."""
        rows = torch.tensor([r for block in self.blocks for r in block], device=like.device)
        return torch.zeros_like(like).index_copy(dim, rows, torch.cat(pieces, dim=dim).to(like.dtype))

    def update(self) -> Tensor:
        """The change of the weight, (C_out, C_in)."""
        pieces = [b @ a for a, b in zip(self.lora_A, self.lora_B, strict=True)]
        return self.scaling * self._place(pieces, self.base_layer.weight, dim=0)

    # Some encoders (swinv2, beit, eva) read the layer's weight instead of calling it.
    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight + self.update() if self.enabled else self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias

    def merged(self) -> nn.Linear:
        """The layer with the update added to its weight."""
        with torch.no_grad():
            self.base_layer.weight += self.update()
        return self.base_layer

    def peft_tensors(
        self, parts_a: Sequence[Tensor] | None = None, parts_b: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """A (blocks · rank, C_in) and B (C_out, blocks · rank) of the equivalent ordinary LoRA.

        `parts_a` and `parts_b` are taken in place of the layer's own values.
        """
        a = torch.cat(list(parts_a or self.lora_A))
        b = a.new_zeros(self.base_layer.out_features, len(a))
        for k, (rows, part) in enumerate(zip(self.blocks, parts_b or self.lora_B, strict=True)):
            b[torch.tensor(rows, device=b.device), k * self.rank : (k + 1) * self.rank] = part
        return a, b

    def load_peft_tensors(self, a: Tensor, b: Tensor) -> None:
        """The inverse of `peft_tensors`."""
        with torch.no_grad():
            for k, rows in enumerate(self.blocks):
                columns = slice(k * self.rank, (k + 1) * self.rank)
                self.lora_A[k].copy_(a[columns])
                self.lora_B[k].copy_(b[torch.tensor(rows), columns])


def query_value_blocks(name: str, layer: nn.Module, attention: nn.Module) -> list[list[int]] | None:
    """The output rows that hold query and value, each as a list; None where the layer holds neither."""
    leaf = name.rsplit(".", 1)[-1]
    if not isinstance(layer, nn.Linear):
        return None
    rows = list(range(layer.out_features))
    if leaf in ("qkv", "in_proj") and layer.out_features % 3 == 0:
        third = layer.out_features // 3
        if getattr(attention, "head_first", False):
            # Rows are grouped by head first: [q k v] of head 0, [q k v] of head 1, …
            width = int(attention.dim_head)  # pyrefly: ignore[bad-argument-type]
            return [[r for r in rows if r // width % 3 == part] for part in (0, 2)]
        return [rows[:third], rows[2 * third :]]
    if leaf == "kv":
        return [rows[layer.out_features // 2 :]]
    if leaf in ("q", "v", "q_proj", "v_proj", "query", "value", "to_q", "to_v"):
        return [rows]
    return None


def add_adapters(trunk: nn.Module, name: str, *, rank: int, alpha: float, dropout: float) -> list[str]:
    """Put a `RowLoRA` on every attention of a timm encoder; returns the adapted layers' names.

    Raises:
        InputError: the encoder has no attention with a known query and value.
    """
    modules = dict(trunk.named_modules())
    found = []
    for path, layer in modules.items():
        parent = modules[path.rpartition(".")[0]]
        blocks = query_value_blocks(path, layer, parent)
        if blocks is not None:
            assert isinstance(layer, nn.Linear)
            setattr(parent, path.rpartition(".")[2], RowLoRA(layer, blocks, rank=rank, alpha=alpha, dropout=dropout))
            found.append(path)
    if not found:
        raise InputError(
            f"model.mode = delta needs an encoder with attention, and model.vision = {name!r} has none",
            cause="LoRA goes on the query and value of attention layers",
            next="set model.mode=shallow or deep, or choose a swin or vit encoder",
        )
    return found


def adapted(trunk: nn.Module) -> dict[str, RowLoRA]:
    """The adapted layers of an encoder, by name."""
    return {path: layer for path, layer in trunk.named_modules() if isinstance(layer, RowLoRA)}


def merge_adapters(trunk: nn.Module) -> None:
    """Add every update to its layer's weight and drop the adapters, in place."""
    modules = dict(trunk.named_modules())
    for path, layer in adapted(trunk).items():
        setattr(modules[path.rpartition(".")[0]], path.rpartition(".")[2], layer.merged())


def drop_adapters(trunk: nn.Module) -> None:
    """Put the layers back as they were without adapters, in place."""
    modules = dict(trunk.named_modules())
    for path, layer in adapted(trunk).items():
        setattr(modules[path.rpartition(".")[0]], path.rpartition(".")[2], layer.base_layer)


def adapter_tensors(trunk: nn.Module, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The adapters under the names and in the shapes of peft; `state` may give their values (names as in `trunk`)."""
    tensors = {}
    for path, layer in adapted(trunk).items():
        own = (
            None if state is None else [[state[f"{path}.lora_{x}.{k}"] for k in range(len(layer.blocks))] for x in "AB"]
        )
        a, b = layer.peft_tensors(*(own or ()))
        tensors[f"{PEFT_PREFIX}{path}.lora_A.weight"] = a.detach().cpu().contiguous()
        tensors[f"{PEFT_PREFIX}{path}.lora_B.weight"] = b.detach().cpu().contiguous()
    return tensors


def save_adapters(trunk: nn.Module, folder: Path, *, base: str, state: Mapping[str, Tensor] | None = None) -> None:
    """Write a peft adapter folder; `base` names the encoder in adapter_config.json."""
    from peft import LoraConfig

    layers = adapted(trunk)
    first = next(iter(layers.values()))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(adapter_tensors(trunk, state), folder / ADAPTER, metadata={"format": "pt"})
    most = max(len(layer.blocks) for layer in layers.values())
    odd = {path: len(layer.blocks) for path, layer in layers.items() if len(layer.blocks) != most}
    settings = LoraConfig(
        r=most * first.rank,
        lora_alpha=int(most * first.alpha),
        target_modules=sorted(layers),
        lora_dropout=first.lora_dropout.p,
        base_model_name_or_path=base,
        inference_mode=True,
        rank_pattern={path: count * first.rank for path, count in odd.items()},
        alpha_pattern={path: int(count * first.alpha) for path, count in odd.items()},
    )
    settings.save_pretrained(str(folder))


def load_adapters(trunk: nn.Module, folder: Path) -> None:
    """Read an adapter folder that `save_adapters` wrote into the encoder's adapters.

    Raises:
        InputError: it is missing, or belongs to another encoder or rank.
    """
    try:
        tensors = load_file(folder / ADAPTER)
        json.loads((folder / SETTINGS).read_text())
        for path, layer in adapted(trunk).items():
            a = tensors[f"{PEFT_PREFIX}{path}.lora_A.weight"]
            b = tensors[f"{PEFT_PREFIX}{path}.lora_B.weight"]
            layer.load_peft_tensors(a, b)
    except (OSError, KeyError, RuntimeError, IndexError, ValueError) as error:
        raise InputError(
            f"the adapter in {folder} does not fit this encoder",
            cause=f"{type(error).__name__}: a file is missing, or encoder or model.lora_rank differ",
            next="restore the checkpoint folder as it was saved",
        ) from error
