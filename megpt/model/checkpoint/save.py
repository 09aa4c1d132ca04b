"""Saving a checkpoint: what was trained, and by name and fingerprint what was not.

A partial checkpoint (the default) leaves out the language model and, unless it was trained or its weights follow from
a seed, the encoder; `frozen` in config.json gives the source of each and a fingerprint that is checked on load.
`full=True` leaves out nothing. LoRA goes to peft adapter folders. All weights are safetensors.
"""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import PreTrainedModel

from megpt.errors import MegptError
from megpt.model import language, lora
from megpt.model.checkpoint.card import write_card
from megpt.model.checkpoint.fingerprint import INDEX
from megpt.model.checkpoint.places import portable
from megpt.model.checkpoint.push import push_checkpoint, push_options
from megpt.model.configuration import MeGPTConfig
from megpt.model.projector import Projector
from megpt.model.prompts import PromptBank
from megpt.model.vision import VisionEncoder
from megpt.places.whole import follow_umask


class Checkpointed(PreTrainedModel):
    """The methods that save the model: `save_pretrained`, and `export` with what it changes in place."""

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
            full: hold the frozen parts too, so that the folder needs no other files.
            state_dict: weights to write instead of the model's own, such as those gathered from ZeRO-3's shards.
            scores: for the model card.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        was_complete = self.config.complete
        state = {**self.state_dict(), **(state_dict or {})}
        try:
            self.config.complete = full or was_complete
            self.config.architectures = [type(self).__name__]
            self.config.dtype = next(t.dtype for name, t in state.items() if name.startswith("projector."))
            for old in (*folder.glob("model*.safetensors"), folder / INDEX):
                old.unlink(missing_ok=True)
            tensors = _held(state, self.config)
            if empty := [name for name, tensor in tensors.items() if not tensor.numel()]:
                raise MegptError(
                    f"{empty[0]} is an empty shard",
                    cause="ZeRO-3 holds its values",
                    next="pass it in `state_dict`",
                )
            save_torch_state_dict(tensors, folder, max_shard_size=max_shard_size)
            self.generation_config.save_pretrained(folder)
            self.bank.save(folder)
            with portable(self.config, folder):
                self._save_adapters(folder, state)
                self.config.save_pretrained(folder)
                write_card(folder, self.config, scores)
            follow_umask(folder)
        finally:
            self.config.complete = was_complete
        if push_to_hub:
            push_checkpoint(folder, kwargs.pop("repo_id", folder.name), **push_options(kwargs))

    def push_to_hub(self, repo_id: str, *, full: bool = False, max_shard_size: int | str = "5GB", **kwargs: Any) -> str:
        """Save the checkpoint to a temporary folder and push it as `push_checkpoint` does; returns the commit's URL.

        The processor has a `push_to_hub` of its own.
        """
        with tempfile.TemporaryDirectory() as scratch:
            self.save_pretrained(scratch, full=full, max_shard_size=max_shard_size)
            return push_checkpoint(scratch, repo_id, **push_options(kwargs))

    def _save_adapters(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        for name in (lora.VISION_ADAPTER, lora.LANGUAGE_ADAPTER):
            shutil.rmtree(folder / name, ignore_errors=True)  # of an earlier checkpoint in this folder
        if self.config.mode == "delta":
            own = _within(state, "vision.trunk.")
            lora.save_adapters(self.vision.trunk, folder / lora.VISION_ADAPTER, base=self.config.vision, state=own)
        if self.config.llm_lora:
            own, target = _within(state, "language_model."), folder / lora.LANGUAGE_ADAPTER
            language.save_language_adapter(self.language_model, target, own, self.config.llm)

    def export(self, folder: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save a folder that needs no other files: LoRA merged, DOConv folded (both in place), all weights held."""
        self.merge()
        self.fold()
        self.save_pretrained(folder, full=True, **kwargs)

    def fold(self) -> Any:
        """Replace DOConv by an ordinary convolution with equal outputs, in place (evaluation folds it anyway)."""
        self.projector.fold()
        self.config.folded = self.config.doconv
        return self

    def merge(self) -> Any:
        """Add every LoRA update to its weights, in place, with equal outputs.

        A merged encoder differs from the frozen one, so that mode delta becomes mode deep, with a frozen copy of the
        original encoder to choose prompts. A merged language model is no longer left out of checkpoints.
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


def _held(state: Mapping[str, Tensor], config: MeGPTConfig) -> dict[str, Tensor]:
    """The tensors that go to model.safetensors, with their names there.

    LoRA goes to folders of its own.
    """
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in state.items()
        if name.split(".")[0] not in config.left_out and ".lora_" not in name
    }


def _within(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
