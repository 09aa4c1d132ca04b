"""Checkpoint folders: what was trained, and by name and fingerprint what was not.

A partial checkpoint (the default) leaves out the language model and, unless it was drawn from a seed or trained, the
encoder; config.json's `frozen` names where they lie and a fingerprint that is checked on load. `full=True` leaves out
nothing. LoRA lies in peft adapter folders beside. Safetensors only.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import GenerationConfig

from megpt.errors import InputError
from megpt.model import language, lora
from megpt.model.card import write_card
from megpt.model.configuration import LANGUAGE_ADAPTER, VISION_ADAPTER, MeGPTConfig
from megpt.model.language import INDEX, WEIGHTS
from megpt.model.prompts import CENTROIDS, PROMPTS, PromptBank
from megpt.model.vision import VisionEncoder, load_weights

PARTS = ("vision", "prompt_encoder", "language_model")


def left_out(config: MeGPTConfig) -> tuple[str, ...]:
    """The parts whose weights a checkpoint of this config refers to instead of holding them."""
    if config.complete:
        return ()
    frozen = config.frozen or {}
    parts = [part for part in ("vision", "language_model") if part in frozen]
    if config.mode == "deep" and "vision" in parts:
        parts[parts.index("vision")] = "prompt_encoder"
    return tuple(parts)


def held_tensors(state: Mapping[str, Tensor], config: MeGPTConfig) -> dict[str, Tensor]:
    """The tensors a checkpoint's safetensors files hold, under the names they have there (LoRA lies elsewhere)."""
    skip = left_out(config)
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in state.items()
        if name.split(".")[0] not in skip and ".lora_" not in name
    }


class CheckpointMixin:
    """save_pretrained, from_pretrained and fingerprint of the model."""

    config: MeGPTConfig
    bank: PromptBank

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        full: bool = False,
        state_dict: Mapping[str, Tensor] | None = None,
        max_shard_size: int | str = "5GB",
        scores: Mapping[str, float] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write the checkpoint folder.

        Args:
            full: hold the frozen parts too, so that the folder stands alone.
            state_dict: the weights to write in place of the model's own (gathered from shards, say); needs the
                trained ones only.
            scores: shown in the model card.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        was = self.config.complete
        state = dict(self.state_dict() if state_dict is None else state_dict)  # type: ignore[attr-defined]
        try:
            self.config.complete = full or was
            self.config.architectures = [type(self).__name__]
            self.config.dtype = next(t.dtype for name, t in state.items() if name.startswith("projector."))
            for old in (*folder.glob("model*.safetensors"), folder / INDEX):
                old.unlink(missing_ok=True)
            tensors = held_tensors(state, self.config)
            save_torch_state_dict(tensors, folder, max_shard_size=max_shard_size)
            self._save_adapters(folder, state)
            self.config.save_pretrained(folder)
            self.generation_config.save_pretrained(folder)  # type: ignore[attr-defined]
            self.bank.save(folder)
            write_card(folder, self.config, scores)
        finally:
            self.config.complete = was
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), full=full, **kwargs)  # type: ignore[attr-defined]

    def _save_adapters(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        if self.config.mode == "delta":
            own = {k.removeprefix("vision.trunk."): v for k, v in state.items() if k.startswith("vision.trunk.")}
            lora.save_adapters(self.vision.trunk, folder / VISION_ADAPTER, base=self.config.vision, state=own)  # type: ignore[attr-defined]
        if self.config.llm_lora:
            own = {k.removeprefix("language_model."): v for k, v in state.items() if k.startswith("language_model.")}
            language.save_language_adapter(self.language_model, folder / LANGUAGE_ADAPTER, own, self.config.llm)  # type: ignore[attr-defined]

    def adapter_tensors(self) -> dict[str, Tensor]:
        """The tensors of the adapter folders, each name led by its folder's."""
        tensors: dict[str, Tensor] = {}
        if self.config.mode == "delta":
            own = lora.adapter_tensors(self.vision.trunk)  # type: ignore[attr-defined]
            tensors |= {f"{VISION_ADAPTER}.{k}": v for k, v in own.items()}
        if self.config.llm_lora:
            own = language.adapter_tensors(self.language_model)  # type: ignore[attr-defined]
            tensors |= {f"{LANGUAGE_ADAPTER}.{k}": v for k, v in own.items()}
        return tensors

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *model_args: Any,
        config: MeGPTConfig | None = None,
        llm: str | None = None,
        vision_weights: str | None = None,
        dtype: torch.dtype | str | None = None,
        device_map: str | torch.device | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a checkpoint folder (or hub id).

        Args:
            llm, vision_weights: where the frozen parts lie now, when that is not where they lay.
            dtype: of all weights; by default that of the saved ones.
            device_map: one device for the whole model.

        Raises:
            InputError: a file is missing or damaged, or a frozen part is not the one the checkpoint was trained with.
        """
        folder = _local(str(pretrained_model_name_or_path))
        config = config or MeGPTConfig.from_pretrained(folder)
        kind = _dtype(dtype, config)
        tensors = read_tensors(folder)
        bank = PromptBank.load(folder)
        text_model = _language_model(config, tensors, llm, kind)
        vision, frozen_copy = _encoders(config, tensors, vision_weights)
        retokenise(config, bank, folder)
        model = cls(config, vision=vision, language_model=text_model, bank=bank)  # type: ignore[call-arg]
        if frozen_copy is not None and model.prompt_encoder is not None:
            model.prompt_encoder.load_state_dict(frozen_copy.state_dict())
        projector = _part(tensors, "projector")
        try:
            model.projector.load_state_dict(projector)
        except RuntimeError as error:
            raise InputError(
                f"the weights in {folder} do not fit its config.json", cause=str(error).split("\n")[-1].strip()
            ) from error
        if config.mode == "delta":
            lora.load_adapters(model.vision.trunk, folder / VISION_ADAPTER)
        if config.llm_lora:
            language.load_language_adapter(model.language_model, folder / LANGUAGE_ADAPTER)
        if (folder / "generation_config.json").exists():
            model.generation_config = GenerationConfig.from_pretrained(folder)
            model.language_model.generation_config = model.generation_config
        model.name_or_path = str(folder)
        model.to(kind)
        if device_map is not None:
            model.to("cuda" if device_map == "auto" and torch.cuda.is_available() else _device(device_map))
        return model.eval()


def _device(device_map: Any) -> Any:
    if isinstance(device_map, Mapping):
        device_map = next(iter(device_map.values()))
    return "cpu" if device_map == "auto" else device_map


def _dtype(dtype: torch.dtype | str | None, config: MeGPTConfig) -> torch.dtype:
    if isinstance(dtype, str) and dtype != "auto":
        return getattr(torch, dtype)  # type: ignore[no-any-return]
    if isinstance(dtype, torch.dtype):
        return dtype
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32


def _local(name: str) -> Path:
    """The folder of a checkpoint, fetched from the hub when it is no local one."""
    if (Path(name) / "config.json").exists():
        return Path(name)
    if not Path(name).exists() and name.count("/") == 1:
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(name))
        except Exception as error:
            raise InputError(f"no checkpoint at {name!r}", cause=f"{type(error).__name__} from the hub") from error
    raise InputError(
        f"no checkpoint at {name!r}", cause="it holds no config.json", next="run `megpt train`, or check the path"
    )


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors files. Raises InputError for a missing or damaged one."""
    names = [WEIGHTS]
    try:
        if (folder / INDEX).exists():
            names = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        tensors: dict[str, Tensor] = {}
        for name in names:
            tensors.update(load_file(folder / Path(name).name))
        return tensors
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise InputError(
            f"the weights in {folder} cannot be read",
            cause=f"{type(error).__name__}: a file is missing or damaged",
            next="copy the checkpoint folder again, whole",
        ) from error


def _part(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
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


def _language_model(config: MeGPTConfig, tensors: dict[str, Tensor], llm: str | None, dtype: torch.dtype) -> Any:
    if "language_model" not in left_out(config):
        return language.restore_language_model(config.text_config, _part(tensors, "language_model"), dtype)
    source = llm or config.frozen["language_model"]["source"]  # type: ignore[index]
    found = language.files_fingerprint(language.weight_files(source))
    check_fingerprint(config, "language_model", found, source)
    return language.load_language_model(source, dtype)


def _encoders(
    config: MeGPTConfig, tensors: dict[str, Tensor], weights: str | None
) -> tuple[VisionEncoder, VisionEncoder | None]:
    """The encoder and, in mode deep, the one that chooses the prompts."""
    arguments = config.vision_args or {}
    skip = left_out(config)

    def restored(part: str) -> VisionEncoder:
        encoder = VisionEncoder(config.vision, config.image_size, config.layout, **arguments)
        if part not in skip:
            if state := _part(tensors, part):
                encoder.load_state_dict(state)
            return encoder
        source = weights or config.frozen["vision"]["source"]  # type: ignore[index]
        load_weights(encoder, config.vision, source, arguments)
        check_fingerprint(config, "vision", language.fingerprint_of(encoder.state_dict()), source)
        return encoder

    copy = restored("prompt_encoder") if config.mode == "deep" and config.dynamic_prompt else None
    return restored("vision"), copy


def retokenise(config: MeGPTConfig, bank: PromptBank, folder: Path) -> None:
    """Make the token ids in `config.prompts` those of the bank's texts, which a person may have edited."""
    from megpt.model.frame import tokenise_bank

    prompts = config.prompts or {}
    if prompts.get("texts") == list(bank.texts):
        return
    source = str(folder) if (folder / "tokenizer_config.json").exists() else config.llm
    config.prompts = tokenise_bank(bank, language.load_tokenizer(source))


def fingerprint(checkpoint: Any) -> str:
    """A short hash of what a checkpoint computes: trained weights, frozen parts, prompts and shape.

    Args:
        checkpoint: a checkpoint folder, or a model; a model and the folder it was saved to give the same.
    """
    if isinstance(checkpoint, (str, Path)):
        folder = Path(checkpoint)
        config, bank = MeGPTConfig.from_pretrained(_local(str(folder))), PromptBank.load(folder)
        tensors = read_tensors(folder)
        for name in (VISION_ADAPTER, LANGUAGE_ADAPTER):
            if (folder / name / lora.WEIGHTS).exists():
                tensors |= {f"{name}.{k}": v for k, v in load_file(folder / name / lora.WEIGHTS).items()}
    else:
        config, bank = checkpoint.config, checkpoint.bank
        tensors = held_tensors(checkpoint.state_dict(), config) | checkpoint.adapter_tensors()
    return _fingerprint(config, bank, tensors)


def _fingerprint(config: MeGPTConfig, bank: PromptBank, tensors: Mapping[str, Tensor]) -> str:
    frozen = config.frozen or {}
    # A full checkpoint and a partial one of the same model compute the same.
    referred = [part if part != "vision" or config.mode != "deep" else "prompt_encoder" for part in frozen]
    own = {k: v for k, v in tensors.items() if k.split(".")[0] not in referred}
    shape = [getattr(config, key) for key in ("vision", "image_size", "mode", "fem", "fem_domain", "views", "doconv")]
    parts = [
        language.fingerprint_of(own),
        json.dumps({part: entry["fingerprint"] for part, entry in frozen.items()}, sort_keys=True),
        json.dumps(shape),
        json.dumps(list(bank.texts)),
        language.fingerprint_of({} if bank.centroids is None else {CENTROIDS: bank.centroids}),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


__all__ = ["PROMPTS", "CheckpointMixin", "fingerprint"]
