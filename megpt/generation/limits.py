"""Which backend can write with a language model, by the lengths that its config states and what a trial has found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from megpt.config import GenerateConfig
from megpt.errors import InputError
from megpt.model.findings import longest_sentence
from megpt.progress import log

WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")
"""Fields of a config that limit how far back a token looks."""


def chosen(
    generate: GenerateConfig, config: PreTrainedConfig, refused: Mapping[str, str], prompt: int | None
) -> GenerateConfig:
    """The settings with a backend that can write: as configured, or `hf` with a word where the engine cannot.

    Args:
        config: the language model's.
        refused: backend → why it cannot write with this class.
        prompt: the longest prompt in tokens, visual ones included; None where it is not known yet.

    Raises:
        InputError: no backend can.
    """
    refused = {**({} if prompt is None else too_long(config, prompt, generate.max_new_tokens)), **refused}
    if generate.backend not in refused:
        return generate
    name = model_class(config)
    if generate.backend == "engine" and "hf" not in refused:
        log(f"generate.backend=hf is used: the engine cannot write with a {name} ({refused['engine']})")
        return generate.model_copy(update={"backend": "hf"})
    switch = rope_switch(config)
    if "engine" not in refused:
        next = "set generate.backend=engine"
    elif prompt and switch and prompt < switch:
        next = f"set generate.max_new_tokens={switch - prompt} or less"
    else:
        next = "set model.llm to another language model, such as a Llama, Qwen, Mistral or Gemma"
    raise InputError(
        f"generate.backend={generate.backend} cannot write with a {name}",
        where="model.llm",
        cause="; ".join(f"{backend}: {why}" for backend, why in sorted(refused.items())),
        next=next,
    )


def too_long(config: PreTrainedConfig, prompt: int, new: int) -> dict[str, str]:
    """Backend → why it cannot write `new` tokens behind a prompt of so many; empty where all can."""
    total = prompt + new
    windows = [int(window) for name in WINDOWS if isinstance(window := getattr(config, name, None), int) and window]
    reasons: dict[str, str] = {}
    if windows and total > min(windows):
        reasons["engine"] = f"{total} tokens exceed its attention window of {min(windows)}"
    switch = rope_switch(config)
    if switch and total > switch:
        reasons["engine"] = f"its positions change at {switch} tokens, and a report may end at {total}"
        if prompt <= switch:
            # Keys that were computed before the switch no longer fit those behind it.
            reasons["hf"] = reasons["engine"]
    return reasons


def rope_switch(config: PreTrainedConfig) -> int | None:
    """The length behind which longrope takes other frequencies; None for any other kind of positions."""
    rope: Any = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return None
    original = rope.get("original_max_position_embeddings")
    return original or getattr(config, "original_max_position_embeddings", None)


def longest_prompt(shape: Any, max_views: int | None = None) -> int | None:
    """Tokens of the longest prompt of a `MeGPTConfig`, visual ones included; None if it depends on the study."""
    views = 1 if shape.views == "mean" else max_views
    if not (views and shape.prompts and shape.layout):
        return None
    height, width = shape.layout["grid"]
    text = len(shape.prompts["prefix"]) + max(map(len, shape.prompts["suffixes"])) + longest_sentence(shape.prompts)
    return text + views * height * width


def model_class(config: PreTrainedConfig) -> str:
    """The name of the causal language model that transformers builds from a config."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, type(config).__name__))
