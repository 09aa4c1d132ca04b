"""Starting a training run from a checkpoint: `megpt train checkpoint=X output=Y`.

    config = inherited(config, folder)         # what the config leaves open is as in the checkpoint
    model, processor = build_model(config.model, …)
    start_from(model, folder).lines()          # what was taken, what begins anew, what was not used

Weights go by name and shape. A module whose shape differs begins anew as a whole, since half of one is worth nothing;
a checkpoint of which no trained module fits is refused. Optimizer state and step count are not taken: the run has its
own schedule.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from megpt.config import Config, ModelConfig
from megpt.errors import InputError
from megpt.model import language, lora
from megpt.model.checkpoint.decoding import RULES, completed
from megpt.model.checkpoint.fingerprint import DAMAGE, damaged, weight_files
from megpt.model.checkpoint.places import check_format, locate, read_config
from megpt.model.prompts import PROMPTS


@dataclass(frozen=True)
class Start:
    """What a run took from a checkpoint: names of modules, and remarks."""

    folder: Path
    taken: tuple[str, ...]
    anew: tuple[str, ...]
    unused: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """For the screen."""
        lines = [f"from {self.folder}: {', '.join(self.taken)}"]
        if self.anew:
            lines.append(f"begin anew: {', '.join(self.anew)}")
        if self.unused:
            lines.append(f"not used of the checkpoint: {', '.join(self.unused)}")
        return [*lines, *self.remarks]


def inherited(config: Config, folder: Path) -> Config:
    """The config of a run that starts from a checkpoint: settings of the model, decoding and prompts that it leaves
    open are the checkpoint's.

    Raises:
        InputError: the checkpoint cannot be read, or contradicts the config.
    """
    shape = read_config(folder)
    check_format(shape, folder)
    locate(shape, folder)
    open_fields = ModelConfig.model_fields.keys() - config.model.model_fields_set
    changes: dict[str, Any] = {
        f"model.{name}": getattr(shape, name) for name in sorted(open_fields) if hasattr(shape, name)
    }
    if "model.llm" in changes and shape.complete and not Path(shape.llm).is_dir():
        raise InputError(
            f"the checkpoint {folder} does not say where its language model is",
            cause="it holds the language model's weights itself, as after `megpt export full=true`",
            next="name the language model: model.llm=FOLDER or model.llm=ORG/NAME",
        )
    if "model.llm" in changes and (entry := (shape.frozen or {}).get("language_model", {})).get("revision"):
        changes["model.llm"] = f"{entry['source']}@{entry['revision']}"
    rules, origins = completed(config.generate, folder)
    changes |= {f"generate.{name}": getattr(rules, name) for name in RULES if origins[name] == "checkpoint"}
    made = config.overridden(changes)
    if made.model.dynamic_prompt and made.prompts is None and (folder / PROMPTS).is_file():
        made = made.updated(prompts=str(folder))
    return made


def start_from(model: Any, folder: Path) -> Start:
    """Copy the weights of a checkpoint into a model that was built to be trained, in place.

    Raises:
        InputError: a file is missing or damaged, an adapter was made for another encoder or language model, or no
            trained module of the model fits.
    """
    shape = read_config(folder)
    try:
        stored = {name: tensor for file in weight_files(folder) for name, tensor in load_file(file).items()}
    except DAMAGE as error:
        raise damaged(f"the weights in {folder}", error) from error
    target = {name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items()}
    # A trained encoder belongs to mode deep. In another mode the encoder is the one that the config names.
    skipped = {*model.config.left_out, *(["vision"] if shape.mode == "deep" != model.config.mode else [])}
    wanted = {n: t for n, t in target.items() if n.split(".")[0] not in skipped and ".lora_" not in n}
    fits = {n for n, t in wanted.items() if n in stored and stored[n].shape == t.shape}
    broken = {group(n) for n in wanted.keys() - fits}
    taken = sorted({group(n) for n in fits} - broken)
    with torch.no_grad():
        for name in fits:
            if group(name) not in broken:
                wanted[name].copy_(stored[name])
    adapters, lost = _take_adapters(model, shape, folder)
    unused = {group(n) for n in stored if group(n) not in taken}
    trained = {group(n.replace(".base_layer.", ".")) for n, p in model.named_parameters() if p.requires_grad}
    if not trained & set(taken) and not adapters:
        raise _nothing_fits(folder, wanted, stored)
    anew = (*sorted(broken), *lost)
    return Start(folder, (*taken, *adapters), anew, tuple(sorted(unused - broken)), _remarks(model, shape))


def group(name: str) -> str:
    """The module that a tensor's name belongs to, as it is named to the user."""
    parts = name.split(".")
    if parts[0] != "projector":
        return parts[0]
    return ".".join(parts[: 3 if parts[1] == "enhancer" else 2])


def _take_adapters(model: Any, shape: Any, folder: Path) -> tuple[list[str], list[str]]:
    """Names of the LoRA adapters that were taken, and of those that begin anew."""
    taken, anew = [], []
    sizes = [(config.lora_rank, config.lora_alpha) for config in (shape, model.config)]
    language_sizes = [(*config.llm_lora_size, config.llm_lora_targets) for config in (shape, model.config)]
    trunk, text = lambda: model.vision.trunk, lambda: model.language_model
    pairs: Iterable[tuple[str, bool, list[Any], Any, Any]] = (
        (lora.VISION_ADAPTER, model.config.mode == "delta", sizes, lora.load_adapters, trunk),
        (lora.LANGUAGE_ADAPTER, model.config.llm_lora, language_sizes, language.load_language_adapter, text),
    )
    for name, used, (theirs, ours), load, module in pairs:
        if not used:
            continue
        if not (folder / name).is_dir():
            anew.append(name)
        elif theirs[:2] != ours[:2]:
            anew.append(f"{name} (rank {theirs[0]} and alpha {theirs[1]} in the checkpoint)")
        elif theirs != ours and _names(theirs[2]) != _names(ours[2]):
            anew.append(f"{name} (on other layers in the checkpoint)")
        else:
            load(module(), folder / name)
            taken.append(name)
    return taken, anew


def _names(targets: Any) -> Any:
    """Layers with LoRA as they compare: JSON knows no tuples."""
    return sorted(targets) if isinstance(targets, list | tuple) else targets


def _remarks(model: Any, shape: Any) -> tuple[str, ...]:
    names = {"language_model": "language model", "vision": "vision encoder"}
    remarks = []
    for part, text in names.items():
        old, new = ((config.frozen or {}).get(part, {}).get("fingerprint") for config in (shape, model.config))
        if old and new and old != new:
            remarks.append(f"warning: the {text} is another one than the checkpoint's, for which its weights were made")
    return tuple(remarks)


def _nothing_fits(folder: Path, wanted: dict[str, Tensor], stored: dict[str, Tensor]) -> InputError:
    name = next((n for n in sorted(wanted) if n in stored), None)
    where = f"{name}: {tuple(stored[name].shape)} there, {tuple(wanted[name].shape)} here" if name else "no common name"
    return InputError(
        f"no trained module of this model fits the checkpoint {folder}",
        where=where,
        cause="model.vision, model.llm or the feature modules differ from those of the checkpoint",
        next="leave the model.* settings out, so that they are the checkpoint's; or train without checkpoint=",
    )
