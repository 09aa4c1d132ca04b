"""The language model: loading it, its vocabulary projection, its dropout, its LoRA."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import extract_commit_hash

from megpt.errors import InputError, did_you_mean
from megpt.model.lora import ADAPTER, PEFT_PREFIX

MAX_NEW_TOKENS = 100


def located(name: str) -> tuple[str, dict[str, Any]]:
    """The folder or hub id in `name`, and the keywords for its revision: `org/name@revision` names one."""
    repository, at, revision = name.partition("@")
    return (repository, {"revision": revision}) if at and revision and not Path(name).exists() else (name, {})


@contextlib.contextmanager
def _as_input_error(name: str) -> Iterator[None]:
    """Turn the errors of transformers for a model that it cannot load into one InputError."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, KeyError) as error:
        path = Path(name)
        known = [str(p) for p in path.parent.glob("*/") if (p / "config.json").exists()] if path.parent.exists() else []
        known += cached_models()
        raise InputError(
            f"model.llm = {name!r} cannot be loaded",
            cause=f"no such folder, and no such model in the local cache or on the hub ({type(error).__name__})"
            if not path.is_dir()
            else f"the folder is not a complete Hugging Face causal language model ({type(error).__name__})",
            next=(did_you_mean(name, known) if known else "give the folder of a Hugging Face causal language model")
            + ("" if path.is_dir() else _download_hint(name)),
        ) from error


def _download_hint(name: str) -> str:
    repository, options = located(name)
    if repository.count("/") != 1 or repository.startswith((".", "/", "~")):
        return ""
    revision = f" --revision {options['revision']}" if options else ""
    return f"; for a model of the hub, run `hf download {repository}{revision}` where there is a network"


def cached_models() -> list[str]:
    """Hub ids in this machine's Hugging Face cache."""
    from huggingface_hub import scan_cache_dir

    try:
        return sorted(repo.repo_id for repo in scan_cache_dir().repos if repo.repo_type == "model")
    except Exception:  # no cache folder, or one with an unknown layout: nothing to suggest
        return []


def load_language_model(name: str, dtype: torch.dtype) -> Any:
    """The causal language model in `name`, a folder or hub id; safetensors only.

    Raises:
        InputError: it cannot be found, or is not a causal language model.
    """
    with _as_input_error(name):
        place, options = located(name)
        return AutoModelForCausalLM.from_pretrained(place, dtype=dtype, use_safetensors=True, **options)


def blank_language_model(name: str, dtype: torch.dtype) -> Any:
    """The causal language model in `name` without its weights, on the meta device.

    Raises:
        InputError: it cannot be found, or is not a causal language model.
    """
    place, options = located(name)
    with _as_input_error(name), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(place, **options), dtype=dtype)
    with contextlib.suppress(OSError):  # many language models have none
        model.generation_config = GenerationConfig.from_pretrained(place, **options)
    return model


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer in `name`; it always has a padding token.

    Raises:
        InputError: it cannot be found, or has no end token.
    """
    place, options = located(name)
    with _as_input_error(name):
        tokenizer: Any = AutoTokenizer.from_pretrained(place, **options)  # its type says it may be None
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"the tokenizer of model.llm = {name!r} has no end token",
            next="set `eos_token` in its tokenizer_config.json",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def restore_language_model(config: PreTrainedConfig, state: Mapping[str, Tensor], dtype: torch.dtype) -> Any:
    """A language model from its config and weights."""
    blank = AutoModelForCausalLM.from_config(config)
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


def add_language_adapter(model: Any, *, rank: int, alpha: int, dropout: float) -> None:
    """LoRA on the language model's query and value, by peft. Raises InputError if peft knows no such layers."""
    from peft import LoraConfig
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    architecture = model.config.model_type
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    targets = ["q_proj", "v_proj"] if {"q_proj", "v_proj"} <= names else KNOWN.get(architecture)
    if not targets:
        raise InputError(
            f"model.llm_lora: no query and value layers are known in a {architecture} language model",
            next="set model.llm_lora=false",
        )
    conv1d = any(type(part).__name__ == "Conv1D" for part in model.modules())
    model.add_adapter(
        LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets), fan_in_fan_out=conv1d)
    )


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


def weight_files(name: str) -> list[Path]:
    """The safetensors files of a folder or a cached hub model."""
    place, options = located(name)
    with _as_input_error(name):
        index = cached_file(place, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False, **options)
        if index is None:
            return [Path(str(cached_file(place, SAFE_WEIGHTS_NAME, **options)))]
        shards = sorted(set(json.loads(Path(index).read_text())["weight_map"].values()))
        return [Path(str(cached_file(place, shard, **options))) for shard in shards]


def revision_of(name: str) -> str | None:
    """The commit of a hub model in this machine's cache; None for a folder."""
    place, options = located(name)
    if Path(place).is_dir():
        return None
    with _as_input_error(name):
        return extract_commit_hash(str(cached_file(place, "config.json", **options)), None)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A short hash of a tokenizer's vocabulary: every token with its id."""
    words = json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda pair: (pair[1], pair[0])))
    return hashlib.sha256(words.encode()).hexdigest()[:16]
