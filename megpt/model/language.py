"""The language model: loading it, its vocabulary projection, its dropout, its LoRA."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from megpt.errors import InputError, did_you_mean
from megpt.model.lora import ADAPTER, PEFT_PREFIX
from megpt.model.source import as_input_error, check_vocabulary, is_gguf, language_config, located, safe_config

MAX_NEW_TOKENS = 100


def load_language_model(name: str, dtype: torch.dtype) -> Any:
    """The causal language model in `name`, a folder, hub id or GGUF file; of pickles none.

    Of a model of images and text it is the decoder with its vocabulary projection.

    Raises:
        InputError: it cannot be found, or is not a causal language model.
    """
    place, options = located(name)
    config = language_config(name)
    with as_input_error(name):
        if is_gguf(name):
            model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, trust_remote_code=False, **options)
            del model.config.quantization_config  # a plain model from here on, which can be saved
            plain = restore_language_model(model.config, model.state_dict(), dtype)
            plain.generation_config = model.generation_config
            return plain.eval()
        own = type(AutoConfig.from_pretrained(place, trust_remote_code=False, **options)) is type(config)
        options |= {"dtype": dtype, "use_safetensors": True}
        if own:
            return AutoModelForCausalLM.from_pretrained(place, trust_remote_code=False, **options)
        return decoder_of(AutoModelForImageTextToText.from_pretrained(place, trust_remote_code=False, **options))


def decoder_of(whole: Any) -> Any:
    """The causal language model inside a model of images and text, which shares its weights."""
    inside = whole.get_decoder()
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(inside.config, trust_remote_code=False)
    for part in whole.modules():
        if type(part) is type(model):
            part.generation_config = whole.generation_config
            return part.eval()
    if type(inside) is not type(model.base_model):
        raise ValueError(type(inside).__name__)
    setattr(model, model.base_model_prefix, inside)
    model.set_output_embeddings(whole.get_output_embeddings())
    model.config, model.generation_config = inside.config, whole.generation_config
    return model.eval()


def blank_language_model(name: str, dtype: torch.dtype) -> Any:
    """The causal language model in `name` without its weights, on the meta device.

    Raises:
        InputError: it cannot be found, or is not a causal language model.
    """
    place, options = located(name)
    config = language_config(name)
    with as_input_error(name), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    with contextlib.suppress(OSError):  # many language models have none
        model.generation_config = GenerationConfig.from_pretrained(place, **options)
    return model


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer in `name`; it always has a padding token.

    Raises:
        InputError: it cannot be found, or has no end token.
    """
    place, options = located(name)
    with as_input_error(name):
        # its type says it may be None
        tokenizer: Any = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **options)
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"the tokenizer of model.llm = {name!r} has no end token",
            next="set `eos_token` in its tokenizer_config.json",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_folder(name: str) -> PreTrainedConfig:
    """The config of a language model on this machine, after a look at its files, which takes a second.

    Raises:
        InputError: no language model can be taken from it, or its tokenizer does not fit it.
    """
    config = safe_config(name)
    check_vocabulary(load_tokenizer(name), config, name)
    return config


def restore_language_model(config: PreTrainedConfig, state: Mapping[str, Tensor], dtype: torch.dtype) -> Any:
    """A language model from its config and weights."""
    blank = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    missing, _ = blank.load_state_dict(state, strict=False, assign=True)
    blank.tie_weights()
    tied = set(getattr(blank, "all_tied_weights_keys", {}) or {})
    if left := [key for key in missing if key not in tied]:
        raise InputError(
            "the checkpoint lacks weights of its language model", where=left[0], cause="an incomplete or changed file"
        )
    return blank.to(dtype)


def recompute_activations(model: Any, settings: dict[str, Any]) -> None:
    """Recompute the model's activations in the backward pass; `settings` are those of torch's checkpoint."""
    # Newer transformers warn about the old name; older ones have no other.
    new = hasattr(model, "activation_checkpointing_enable")
    getattr(model, f"{'activation' if new else 'gradient'}_checkpointing_enable")(settings)


def without_dropout(module: nn.Module) -> None:
    """Set every dropout to 0, so that a frozen part computes the same in training and evaluation."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        if isinstance(getattr(part, "attention_dropout", None), float):
            part.attention_dropout = 0.0  # pyrefly: ignore[bad-argument-type]


def end_ids(tokenizer: PreTrainedTokenizerBase, *configs: Any) -> int | list[int]:
    """The ids that end a report: the tokenizer's end token, which is learnt, then those that the first config names.

    A base model's two often differ from those of its tokenizer, and so do those of its fine-tunes for chats.
    """
    named = next((c.eos_token_id for c in configs if getattr(c, "eos_token_id", None) is not None), ())
    ids = list(dict.fromkeys([tokenizer.eos_token_id, *(named if isinstance(named, list | tuple) else [named])]))
    return ids[0] if len(ids) == 1 else ids


def greedy_decoding(model: Any) -> GenerationConfig:
    """Greedy decoding with the model's special tokens; the defaults of chat models would sample."""
    own = model.generation_config
    return GenerationConfig(
        bos_token_id=own.bos_token_id,
        eos_token_id=own.eos_token_id,
        pad_token_id=own.pad_token_id,
        max_new_tokens=MAX_NEW_TOKENS,
    )


def hidden_states(model: Any, embeds: Tensor, mask: Tensor) -> Tensor:
    """The last hidden states (B, T, H), before the vocabulary projection, of a batch with padding on both sides.

    Args:
        embeds: (B, T, H). mask: (B, T) long, 0 for padding.
    """
    takes = inspect.signature(model.forward).parameters
    positions = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if "position_ids" in takes else {}
    out = model.base_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False, **positions)
    return out.last_hidden_state


def vocabulary_head(model: Any) -> Callable[[Tensor], Tensor]:
    """The function from hidden states (M, H) to logits (M, vocabulary), with the scaling that some models add."""
    head, config = model.get_output_embeddings(), model.config
    scale = getattr(config, "logit_scale", None)
    divide = getattr(config, "logits_scaling", None)
    cap = getattr(config, "final_logit_softcapping", None)

    def logits(hidden: Tensor) -> Tensor:
        out: Tensor = head(hidden)
        if scale is not None:
            out = out * scale
        if divide is not None:
            out = out / divide
        return out if cap is None else torch.tanh(out / cap) * cap

    return logits


def add_language_adapter(
    model: Any, targets: Sequence[str] | str | None, *, rank: int, alpha: int, dropout: float
) -> None:
    """LoRA on the language model, by peft.

    Args:
        targets: last names of the layers, or `all-linear` (all but the vocabulary projection); None is query and value.

    Raises:
        InputError: the model has no such layers, or peft cannot adapt them.
    """
    from peft import LoraConfig

    names = targets if isinstance(targets, str) else _adapted_layers(model, targets)
    conv1d = any(type(part).__name__ == "Conv1D" for part in model.modules())
    try:
        model.add_adapter(
            LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names, fan_in_fan_out=conv1d)
        )
    except ValueError as error:  # a layer that is no linear one
        raise InputError(
            f"model.llm_lora_targets = {targets} cannot be adapted",
            cause=str(error).partition("\n")[0][:200],
            next="name linear layers, or set model.llm_lora_targets=all-linear",
        ) from error


def _adapted_layers(model: Any, targets: Sequence[str] | None) -> list[str]:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    layers = {name.rsplit(".", 1)[-1]: part for name, part in model.named_modules()}
    linear = sorted(name for name, part in layers.items() if isinstance(part, nn.Linear) or "Conv1D" in str(type(part)))
    architecture = model.config.model_type
    if targets is None:
        targets = ["q_proj", "v_proj"] if {"q_proj", "v_proj"} <= layers.keys() else KNOWN.get(architecture)
    elif unknown := [name for name in targets if name not in layers]:
        raise InputError(
            f"model.llm_lora_targets: a {architecture} language model has no layer {unknown[0]!r}",
            next=did_you_mean(unknown[0], linear),
        )
    if not targets:
        raise InputError(
            f"model.llm_lora: no query and value layers are known in a {architecture} language model",
            next=f"name layers in model.llm_lora_targets, of {', '.join(linear)}; or set model.llm_lora=false",
        )
    return list(targets)


def adapter_tensors(model: Any, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The language model's adapter with peft's names; values come from `state` if it is given."""
    from peft import get_peft_model_state_dict

    found = get_peft_model_state_dict(model, state_dict=None if state is None else dict(state), adapter_name="default")
    return {f"{PEFT_PREFIX}{name}": tensor.detach().cpu().contiguous() for name, tensor in found.items()}


def save_language_adapter(model: Any, folder: Path, state: Mapping[str, Tensor] | None, base: str) -> None:
    """Write a peft adapter folder; `base` names the language model in adapter_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(adapter_tensors(model, state), folder / ADAPTER, metadata={"format": "pt"})
    settings = copy.deepcopy(model.peft_config["default"])
    settings.base_model_name_or_path, settings.inference_mode = base, True
    settings.save_pretrained(str(folder))


def load_language_adapter(model: Any, folder: Path) -> None:
    """Read what `save_language_adapter` wrote. Raises InputError if it is missing or does not fit."""
    from peft import set_peft_model_state_dict

    try:
        tensors = {k.removeprefix(PEFT_PREFIX): v for k, v in load_file(folder / ADAPTER).items()}
        result: Any = set_peft_model_state_dict(model, tensors, adapter_name="default")
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(f"the adapter in {folder} cannot be loaded", cause=type(error).__name__) from error
    lost = [name for name in result.missing_keys if ".lora_" in name]
    if lost or result.unexpected_keys:
        raise InputError(
            f"the adapter in {folder} does not fit this language model", where=(lost or result.unexpected_keys)[0]
        )


def merge_language_adapter(model: Any) -> None:
    """Add the adapter's updates to the weights and drop it, in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    modules = dict(model.named_modules())
    for path, layer in modules.items():
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            setattr(modules[path.rpartition(".")[0]], path.rpartition(".")[2], layer.get_base_layer())
    del model.peft_config
    model._hf_peft_config_loaded = False


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A short hash of a tokenizer's vocabulary: every token with its id."""
    words = json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda pair: (pair[1], pair[0])))
    return hashlib.sha256(words.encode()).hexdigest()[:16]
