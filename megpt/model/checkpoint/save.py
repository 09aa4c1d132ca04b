"""Checkpoint folders: what was trained, and by name and fingerprint what was not.

A partial checkpoint (the default) leaves out the language model and, unless it was drawn from a seed or trained, the
encoder; config.json's `frozen` names where they lie and a fingerprint that is checked on load. `full=True` leaves out
nothing. LoRA lies in peft adapter folders beside. Safetensors only.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from megpt.errors import InputError, MegptError
from megpt.model import language, lora
from megpt.model.checkpoint.card import write_card
from megpt.model.checkpoint.files import INDEX, LANGUAGE_ADAPTER, VISION_ADAPTER, local_folder
from megpt.model.checkpoint.load import (
    chosen_dtype,
    held_tensors,
    load_encoders,
    load_language_part,
    one_device,
    part_of,
    read_tensors,
    retokenise,
)
from megpt.model.configuration import MeGPTConfig
from megpt.model.projector import Projector
from megpt.model.prompts import PromptBank
from megpt.model.vision import VisionEncoder


class Checkpointed(PreTrainedModel):
    """save_pretrained, from_pretrained and export of the model."""

    config: MeGPTConfig  # pyrefly: ignore[bad-override-mutable-attribute]
    bank: PromptBank
    vision: VisionEncoder
    prompt_encoder: VisionEncoder | None
    projector: Projector
    language_model: Any

    def save_pretrained(  # pyrefly: ignore[bad-override]
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
            state_dict: weights to write in place of the model's own, such as those gathered from ZeRO-3's shards.
            scores: shown in the model card.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        was = self.config.complete
        state = {**self.state_dict(), **(state_dict or {})}
        try:
            self.config.complete = full or was
            self.config.architectures = [type(self).__name__]
            self.config.dtype = next(t.dtype for name, t in state.items() if name.startswith("projector."))
            for old in (*folder.glob("model*.safetensors"), folder / INDEX):
                old.unlink(missing_ok=True)
            tensors = held_tensors(state, self.config)
            if empty := [name for name, tensor in tensors.items() if not tensor.numel()]:
                raise MegptError(
                    f"{empty[0]} is an empty shard", cause="ZeRO-3 holds it elsewhere", next="pass it in `state_dict`"
                )
            save_torch_state_dict(tensors, folder, max_shard_size=max_shard_size)
            self._save_adapters(folder, state)
            self.config.save_pretrained(folder)
            self.generation_config.save_pretrained(folder)
            self.bank.save(folder)
            write_card(folder, self.config, scores)
        finally:
            self.config.complete = was
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), full=full, **kwargs)

    def _save_adapters(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        if self.config.mode == "delta":
            own = {k.removeprefix("vision.trunk."): v for k, v in state.items() if k.startswith("vision.trunk.")}
            lora.save_adapters(self.vision.trunk, folder / VISION_ADAPTER, base=self.config.vision, state=own)
        if self.config.llm_lora:
            own = {k.removeprefix("language_model."): v for k, v in state.items() if k.startswith("language_model.")}
            language.save_language_adapter(self.language_model, folder / LANGUAGE_ADAPTER, own, self.config.llm)

    def set_generation_config(self, settings: GenerationConfig) -> None:
        """Make `settings` the defaults of `generate`."""
        self.generation_config = self.language_model.generation_config = settings

    def export(self, folder: str | os.PathLike[str], **kwargs: Any) -> None:
        """A folder that stands alone: LoRA merged, DOConv folded (both in place), all weights held."""
        self.merge()
        self.fold()
        self.save_pretrained(folder, full=True, **kwargs)

    def fold(self) -> Any:
        """Replace DOConv by an ordinary convolution with equal outputs, in place (evaluation folds by itself)."""
        self.projector.fold()
        self.config.folded = self.config.doconv
        return self

    def merge(self) -> Any:
        """Add every LoRA update to its weights, in place, with equal outputs.

        An encoder with merged weights is one of its own, so that mode delta becomes mode deep, with a frozen copy of
        the encoder as it was for choosing prompts; a language model with merged weights is no longer left out of
        checkpoints.
        """
        if self.config.mode == "delta":
            original = copy.deepcopy(self.vision)
            lora.drop_adapters(original.trunk)
            lora.merge_adapters(self.vision.trunk)
            self.prompt_encoder = original if self.bank.centroids is not None else None
            self.config.mode = "deep"
        if self.config.llm_lora:
            language.merge_language_adapter(self.language_model)
            self.config.frozen = {k: v for k, v in (self.config.frozen or {}).items() if k != "language_model"}
            self.config.llm_lora = False
        return self

    def adapter_tensors(self) -> dict[str, Tensor]:
        """The tensors of the adapter folders, each name led by its folder's."""
        tensors: dict[str, Tensor] = {}
        if self.config.mode == "delta":
            own = lora.adapter_tensors(self.vision.trunk)
            tensors |= {f"{VISION_ADAPTER}.{k}": v for k, v in own.items()}
        if self.config.llm_lora:
            own = language.adapter_tensors(self.language_model)
            tensors |= {f"{LANGUAGE_ADAPTER}.{k}": v for k, v in own.items()}
        return tensors

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *model_args: Any,
        config: Any = None,
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
        folder = local_folder(str(pretrained_model_name_or_path))
        config = config or MeGPTConfig.from_pretrained(folder)
        kind = chosen_dtype(dtype, config)
        tensors = read_tensors(folder)
        bank = PromptBank.load(folder)
        text_model = load_language_part(config, tensors, llm, kind)
        vision, frozen_copy = load_encoders(config, tensors, vision_weights)
        retokenise(config, bank, folder)
        model = cls(config, vision=vision, language_model=text_model, bank=bank)
        if frozen_copy is not None and model.prompt_encoder is not None:
            model.prompt_encoder.load_state_dict(frozen_copy.state_dict())
        projector = part_of(tensors, "projector")
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
            model.set_generation_config(GenerationConfig.from_pretrained(folder))
        model.name_or_path = str(folder)
        cast(Any, model).to(device=one_device(device_map), dtype=kind)
        return model.eval()
