"""The parts of a checkpoint: which it holds, where the others lie, and whether they are the right ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor

from megpt.errors import InputError
from megpt.model import language
from megpt.model.checkpoint.files import DAMAGE, damaged, weight_files
from megpt.model.checkpoint.fingerprint import files_fingerprint, fingerprint_of
from megpt.model.configuration import MeGPTConfig
from megpt.model.frame import tokenise_bank
from megpt.model.prompts import PromptBank
from megpt.model.vision import VisionEncoder, load_weights


def left_out(config: MeGPTConfig) -> tuple[str, ...]:
    """The parts whose weights a checkpoint of this config refers to instead of holding them."""
    if config.complete:
        return ()
    frozen = config.frozen or {}
    vision = "prompt_encoder" if config.mode == "deep" else "vision"
    return tuple(vision if part == "vision" else part for part in frozen)


def held_tensors(state: Mapping[str, Tensor], config: MeGPTConfig) -> dict[str, Tensor]:
    """The tensors a checkpoint's safetensors files hold, under the names they have there (LoRA lies elsewhere)."""
    skip = left_out(config)
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in state.items()
        if name.split(".")[0] not in skip and ".lora_" not in name
    }


def one_device(device_map: Any) -> Any:
    """The device that transformers' `device_map` means for a model that is never split."""
    if isinstance(device_map, Mapping):
        device_map = next(iter(device_map.values()))
    if device_map is None or (device_map == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if device_map == "auto":
        return "cuda"
    return device_map


def chosen_dtype(dtype: torch.dtype | str | None, config: MeGPTConfig) -> torch.dtype:
    """The weights' type on load: what is asked for, else that of the saved ones."""
    if isinstance(dtype, str) and dtype != "auto":
        return getattr(torch, dtype)
    if isinstance(dtype, torch.dtype):
        return dtype
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors files. Raises InputError for a missing or damaged one."""
    try:
        return {name: tensor for file in weight_files(folder) for name, tensor in load_file(file).items()}
    except DAMAGE as error:
        raise damaged(f"the weights in {folder}", error) from error


def part_of(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {k.removeprefix(part + "."): v for k, v in tensors.items() if k.startswith(part + ".")}


def check_fingerprint(config: MeGPTConfig, part: str, found: str, source: str) -> None:
    """Raise InputError when a frozen part is not the one the checkpoint names."""
    wanted = (config.frozen or {})[part]["fingerprint"]
    if found != wanted:
        raise InputError(
            f"the frozen {part.replace('_', ' ')} differs from the one this checkpoint was trained with",
            where=f"{source}: fingerprint {found}, the checkpoint names {wanted}",
            cause="another version or fine-tune of these weights; the trained part would not fit it",
            next="give the original weights"
            + (" (llm=PATH)" if part == "language_model" else " (vision_weights=PATH)"),
        )


def load_language_part(config: MeGPTConfig, tensors: dict[str, Tensor], llm: str | None, dtype: torch.dtype) -> Any:
    if "language_model" not in left_out(config):
        return language.restore_language_model(cast(Any, config.text_config), part_of(tensors, "language_model"), dtype)
    source = llm or config.frozen["language_model"]["source"]  # pyrefly: ignore[unsupported-operation]
    found = files_fingerprint(language.weight_files(source))
    check_fingerprint(config, "language_model", found, source)
    return language.load_language_model(source, dtype)


def load_encoders(
    config: MeGPTConfig, tensors: dict[str, Tensor], weights: str | None
) -> tuple[VisionEncoder, VisionEncoder | None]:
    """The encoder and, in mode deep, the one that chooses the prompts."""
    arguments = config.vision_args or {}
    skip = left_out(config)

    def restored(part: str) -> VisionEncoder:
        encoder = VisionEncoder(config.vision, config.image_size, config.layout, **arguments)
        if part not in skip:
            if state := part_of(tensors, part):
                encoder.load_state_dict(state)
            return encoder
        source = weights or config.frozen["vision"]["source"]  # pyrefly: ignore[unsupported-operation]
        load_weights(encoder, config.vision, source, arguments)
        check_fingerprint(config, "vision", fingerprint_of(encoder.state_dict()), source)
        return encoder

    original = None
    if config.mode == "deep" and ("prompt_encoder" in skip or any(k.startswith("prompt_encoder.") for k in tensors)):
        original = restored("prompt_encoder")
    return restored("vision"), original


def retokenise(config: MeGPTConfig, bank: PromptBank, folder: Path) -> None:
    """Make the token ids in `config.prompts` those of the bank's texts, which a person may have edited."""
    prompts = config.prompts or {}
    if prompts.get("texts") == list(bank.texts):
        return
    source = str(folder) if (folder / "tokenizer_config.json").exists() else config.llm
    config.prompts = tokenise_bank(bank, language.load_tokenizer(source))
