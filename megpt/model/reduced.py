"""A language model's class at a small size: the same code and the same kinds of layers, with random weights.

What a class can do (attend through a foreign cache, reorder its state, take padding) depends on its code and on the
kinds of its layers, hardly ever on their width. So it can be tried in a second, before a model of gigabytes is loaded.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from megpt.errors import InputError

VOCABULARY = 64
SMALL = {
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size"), 64),
    **dict.fromkeys(("shared_intermediate_size", "ffn_dim", "n_inner", "d_inner_mlp", "ffn_hidden_size"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 16),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size"), 16),
}
"""Sizes that no other size depends on, and what they are lowered to."""
MOST_PARAMETERS = 3e8
"""Larger ones would take seconds to fill with random numbers."""


def reduced_language_model(config: PreTrainedConfig, *, seed: int = 0) -> Any:
    """A causal language model of the config's class, in float32 and evaluation mode.

    Raises:
        InputError: transformers has no such class, or the class cannot be built at any size that is small.
    """
    error: Exception | None = None
    for groups in (2, 4, 8, None):
        try:
            shape = reduced(config, groups)
            with torch.device("meta"):
                size = sum(
                    p.numel() for p in AutoModelForCausalLM.from_config(shape, trust_remote_code=False).parameters()
                )
            if size > MOST_PARAMETERS:
                raise ValueError(f"{size:,} parameters")
            model = _random(shape, seed)
            with torch.no_grad():
                model(input_ids=torch.arange(3, 9)[None], use_cache=False)
            return model
        except Exception as raised:
            # Any size may contradict another one in a class that is not known here.
            error = raised
    raise InputError(
        f"no small {config.model_type} language model can be built to try its class", cause=type(error).__name__
    ) from error


def reduced(config: PreTrainedConfig, groups: int | None) -> PreTrainedConfig:
    """A copy with a small vocabulary and as few layers as show every kind; with so many key-value heads, if given."""
    small = copy.deepcopy(config)
    count = int(getattr(config, "num_hidden_layers", 2))
    layers = _layers_to_keep(config, count)
    for name, value in list(vars(small).items()):
        if isinstance(value, list) and len(value) == count and count > layers:
            setattr(small, name, value[:layers])
        elif isinstance(value, int) and value > SMALL.get(name, value):
            setattr(small, name, SMALL[name])
    small.num_hidden_layers = layers
    small.vocab_size = VOCABULARY
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(small, name, {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}[name])
    if groups:
        _fewer_heads(small, groups)
    return small


def _fewer_heads(config: PreTrainedConfig, groups: int) -> None:
    """Divide the heads, and the width with them, in place; queries for each key-value head stay as many."""
    heads, hidden = getattr(config, "num_attention_heads", None), getattr(config, "hidden_size", None)
    if not isinstance(heads, int) or not isinstance(hidden, int):
        return
    own = getattr(config, "num_key_value_heads", None)
    by = (own or heads) // groups if (own or heads) % groups == 0 else own or heads
    if by and heads % by == 0 and hidden % by == 0:
        apart = isinstance(vars(config).get("head_dim"), int)  # then the width follows from nothing
        config.hidden_size, config.num_attention_heads = min(hidden // by, 128 if apart else hidden), heads // by
        if own:
            config.num_key_value_heads = own // by


def _layers_to_keep(config: PreTrainedConfig, count: int) -> int:
    """Up to the first layer of the last kind, at least two."""
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    if not isinstance(kinds, list | tuple) or len(kinds) != count:
        return min(count, 2)
    return min(count, max(2, *(list(kinds).index(kind) + 1 for kind in kinds)))


def _random(config: PreTrainedConfig, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False).eval()
        # The usual start is so near zero that attention hardly matters.
        for part in model.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=part.in_features**-0.5)
            elif isinstance(part, nn.Embedding):
                nn.init.normal_(part.weight)
    return model.requires_grad_(False)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No warnings of transformers inside the block: they speak of a model that nobody will use."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
