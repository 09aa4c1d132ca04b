"""Loading a checkpoint. The whole walk is `load_model`, in this order:

    config.json → weights → prompt bank → language model → encoder → the model around them → projector → adapters

`modeling.from_pretrained` calls it; it calls `prompts`, `language` and `vision` for one part each, and nothing calls
back. On the way, `fingerprint` checks that a frozen part is the one that the checkpoint was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from megpt.errors import InputError
from megpt.model import language, lora
from megpt.model.checkpoint.fetch import is_hub_id, local_folder
from megpt.model.checkpoint.fingerprint import DAMAGE, damaged, files_fingerprint, fingerprint_of, weight_files
from megpt.model.checkpoint.places import check_format, locate, read_config
from megpt.model.configuration import MeGPTConfig
from megpt.model.prompts import PromptBank, tokenise_bank
from megpt.model.source import is_gguf, located
from megpt.model.source import weight_files as language_model_files
from megpt.model.vision import VisionEncoder, load_weights
from megpt.progress import log

FROM_AUTO_CLASSES = {"trust_remote_code", "adapter_kwargs", "local_files_only"}
"""Keywords that the Auto classes always pass on."""


def load_model(
    model_class: Any,
    name: str,
    *,
    config: MeGPTConfig | None = None,
    llm: str | None = None,
    vision_weights: str | None = None,
    dtype: torch.dtype | str | None = None,
    device_map: Any = None,
    revision: str | None = None,
    **unused: Any,
) -> Any:
    """The model of a checkpoint folder or hub id, in evaluation mode.

    Args:
        model_class: `MeGPTForConditionalGeneration` or a subclass.
        llm, vision_weights: the new location of the frozen parts, if they have moved.
        dtype: of all weights; by default that of the saved ones.
        device_map: one device for the whole model, in any of transformers' notations.
        revision: of a hub id.
        unused: further keywords of transformers; those that have no effect here are logged.

    Raises:
        InputError: a file is missing or damaged, or a frozen part is not the one the checkpoint was trained with.
    """
    if ignored := sorted(unused.keys() - FROM_AUTO_CLASSES):
        log(f"from_pretrained: ignored {', '.join(ignored)}, which MeGPT checkpoints do not use")
    folder = local_folder(name, revision)
    config = config or read_config(folder)
    check_format(config, folder)
    locate(config, folder)
    dtype = _dtype(dtype, config)
    tensors = _read_tensors(folder)
    bank = PromptBank.load(folder)
    tokenizer = _own_tokenizer(config, folder)
    _retokenise(config, bank, tokenizer)
    text_model = _language_model(config, tensors, llm, dtype)
    vision = restored_encoder("vision", config, tensors, vision_weights, folder)
    model = model_class(config, vision=vision, language_model=text_model, bank=bank)
    if model.prompt_encoder is not None:
        original = restored_encoder("prompt_encoder", config, tensors, vision_weights, folder)
        model.prompt_encoder.load_state_dict(original.state_dict())
    _restore(model.projector, _part(tensors, "projector"), folder)
    if model.findings is not None:
        _restore(model.findings, _part(tensors, "findings"), folder)
    if config.mode == "delta":
        lora.load_adapters(model.vision.trunk, folder / lora.VISION_ADAPTER)
    if config.llm_lora:
        language.load_language_adapter(model.language_model, folder / lora.LANGUAGE_ADAPTER)
    if (decoding := folder / "generation_config.json").exists():
        try:
            model.generation_config = model.language_model.generation_config = GenerationConfig.from_pretrained(folder)
        except DAMAGE as error:
            raise damaged(str(decoding), error) from error
    if tokenizer is not None:  # in checkpoints from before both were saved
        decoding = model.generation_config
        decoding.eos_token_id = language.end_ids(tokenizer, decoding, text_model.config)
    model.name_or_path = str(folder)
    return model.to(device=_device(device_map), dtype=dtype).eval()


def _dtype(dtype: torch.dtype | str | None, config: MeGPTConfig) -> torch.dtype:
    if isinstance(dtype, str) and dtype != "auto":
        return getattr(torch, dtype)
    if isinstance(dtype, torch.dtype):
        return dtype
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32


def _device(device_map: Any) -> Any:
    """The device that transformers' `device_map` means for a model that is never split."""
    if isinstance(device_map, Mapping):
        device_map = next(iter(device_map.values()))
    if device_map is None or (device_map == "auto" and not torch.cuda.is_available()):
        return "cpu"
    return "cuda" if device_map == "auto" else device_map


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    try:
        return {name: tensor for file in weight_files(folder) for name, tensor in load_file(file).items()}
    except DAMAGE as error:
        raise damaged(f"the weights in {folder}", error) from error


def _part(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {k.removeprefix(part + "."): v for k, v in tensors.items() if k.startswith(part + ".")}


def _own_tokenizer(config: MeGPTConfig, folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer that the folder holds, if any.

    Raises:
        InputError: it cannot be loaded, or is not the one that the checkpoint was trained with.
    """
    if not (folder / "tokenizer_config.json").exists():
        return None
    try:
        tokenizer = language.load_tokenizer(str(folder))
    except InputError as error:
        raise InputError(
            f"the tokenizer in {folder} cannot be loaded",
            cause=error.cause or error.what,
            next="download or copy the whole folder again",
        ) from error
    found = language.tokenizer_fingerprint(tokenizer)
    if config.tokenizer_fingerprint and found != config.tokenizer_fingerprint:
        raise InputError(
            "the tokenizer is not the one that this checkpoint was trained with",
            where=f"{folder}: fingerprint {found}, config.json names {config.tokenizer_fingerprint}",
            cause="tokenizer files of another model were copied here; every report would be misspelt",
            next="restore the checkpoint's own tokenizer files",
        )
    return tokenizer


def _retokenise(config: MeGPTConfig, bank: PromptBank, own: PreTrainedTokenizerBase | None) -> None:
    """Renew the token ids in `config.prompts` if somebody has edited the texts of the bank."""
    if (config.prompts or {}).get("texts") != list(bank.texts):
        tokenizer = own or language.load_tokenizer(config.llm)
        context, findings = bool(config.context), config.findings
        config.prompts = tokenise_bank(bank, tokenizer, config.frame, context=context, findings=findings)


def _language_model(config: MeGPTConfig, tensors: dict[str, Tensor], llm: str | None, dtype: torch.dtype) -> Any:
    if "language_model" not in config.left_out:
        return language.restore_language_model(cast(Any, config.text_config), _part(tensors, "language_model"), dtype)
    source, named = _source(config, llm), cast(Any, config.frozen)["language_model"]
    _check_language_model(source, named)
    if llm:
        # Where a checkpoint saved from this model will look for it.
        local = Path(source).is_dir() or is_gguf(source)
        place, pinned_at = (str(Path(source).absolute()), {}) if local else located(source)
        config.llm = place
        entry = {"source": config.llm, "fingerprint": named["fingerprint"], **pinned_at}
        config.frozen = {**cast(Any, config.frozen), "language_model": entry}
    return language.load_language_model(source, dtype)


def check_parts(folder: Path, llm: str | None = None, *, weights: bool = False) -> None:
    """Look at what a checkpoint needs beside its own weights, before any of them is in memory.

    Args:
        weights: hash those of a local language model too, which reads all of them.

    Raises:
        InputError: as `load_model`.
    """
    config = read_config(folder)
    check_format(config, folder)
    locate(config, folder)
    PromptBank.load(folder)
    _own_tokenizer(config, folder)
    if "language_model" in config.left_out:
        source = _source(config, llm)
        if weights and (Path(source).is_dir() or is_gguf(source)):
            _check_language_model(source, cast(Any, config.frozen)["language_model"])


def _source(config: MeGPTConfig, llm: str | None) -> str:
    """Where the language model is that the checkpoint names; a hub id with its revision."""
    named = cast(Any, config.frozen)["language_model"]
    revision = f"@{named['revision']}" if named.get("revision") else ""
    source = llm or named["source"] + revision
    local = Path(source).is_dir() or is_gguf(source)
    if not local and not is_hub_id(source):
        raise InputError(
            f"the checkpoint's language model is not at {source}",
            where=f"config.json: frozen.language_model, fingerprint {named['fingerprint']}",
            cause="it was moved, or the checkpoint was copied without it",
            next="name its folder: model.llm=FOLDER on the command line, from_pretrained(…, llm=FOLDER) in Python; "
            "`megpt export checkpoint=… output=… full=true` makes a folder that holds it",
        )
    return source


def _check_language_model(source: str, named: Mapping[str, str]) -> None:
    files = language_model_files(source)
    try:
        found = files_fingerprint(files)
    except DAMAGE as error:
        raise damaged(f"the language model in {source}", error) from error
    _check_frozen("language model", named, found, source, "llm")


def restored_encoder(
    part: str, config: MeGPTConfig, tensors: dict[str, Tensor], weights: str | None, folder: Path
) -> VisionEncoder:
    """The encoder `vision`, or `prompt_encoder`: the frozen copy that chooses the prompts in mode deep."""
    arguments = config.vision_args or {}
    encoder = VisionEncoder(config.vision, config.image_size, config.layout, **arguments)
    if part in config.left_out:
        named = cast(Any, config.frozen)["vision"]
        source = weights or named["source"]
        load_weights(encoder, config.vision, source, arguments)
        _check_frozen("vision", named, fingerprint_of(encoder.state_dict()), source, "vision_weights")
    else:
        _restore(encoder, _part(tensors, part), folder)
    return encoder


def _check_frozen(what: str, named: Mapping[str, str], found: str, source: str, keyword: str) -> None:
    if found != named["fingerprint"]:
        raise InputError(
            f"the frozen {what} differs from the one this checkpoint was trained with",
            where=f"{source}: fingerprint {found}, the checkpoint names {named['fingerprint']}",
            cause="another version or fine-tune of these weights; the trained part would not fit it",
            next=f"give the original weights ({'model.llm=FOLDER, or ' if keyword == 'llm' else ''}{keyword}=PATH)",
        )


def _restore(module: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(
            f"the weights in {folder} do not fit its config.json", cause=str(error).split("\n")[-1].strip()
        ) from error
