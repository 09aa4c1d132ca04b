"""Import: a reference `.pth` of R2GenGPT or MeGPT becomes a checkpoint that `from_pretrained` loads.

    model, processor, report = import_reference("checkpoint.pth", config.model)
    console.print(report.render())

The frozen parts come from the config, as for training: the encoder from timm (or `model.vision_weights`), the language
model from `model.llm`, whose files are only hashed.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from torch import Tensor

from megpt.config import ModelConfig
from megpt.errors import InputError
from megpt.model import lora
from megpt.model.build import build_model
from megpt.model.prompts import INSTRUCTION, PromptBank
from megpt.model.reference.file import ReferenceFile, read_reference
from megpt.model.reference.names import ENCODER, Translation, translate

REFERENCE_ENCODER = "microsoft/swin-base-patch4-window7-224"
MEGPT_INSTRUCTION = f"{INSTRUCTION}  label:None"
"""What the MeGPT reference writes when it tests: its cluster label is None in a process that has not trained."""
# Settings of the reference's decoding that generation_config.json keeps.
DECODING = {
    "beam_size": "num_beams",
    "min_new_tokens": "min_new_tokens",
    "max_new_tokens": "max_new_tokens",
    "repetition_penalty": "repetition_penalty",
    "length_penalty": "length_penalty",
}
BEAM_SAMPLING = "do_sample was on with several beams; megpt searches with them, so that texts can be repeated"
# Tensors that the reference's files may lack, and the values used instead.
DEFAULTS = (
    (r".*fem\..*\.norm\.running_(mean|var)", "mean 0, variance 1: the reference saves none and evaluates with these"),
    (r".*doconv\.d_diff", "0: a 1×1 kernel has none in the reference"),
    (r".*doconv\.bias", "0: the reference has none"),
)


@dataclass(frozen=True)
class ImportReport:
    """How each tensor was used, or why not."""

    file: ReferenceFile
    shape: dict[str, Any]
    used: dict[str, str]
    ignored: dict[str, str]
    missing: dict[str, str]
    remarks: tuple[str, ...] = ()

    def render(self) -> RenderableType:
        """A table for a terminal; tensors are grouped by the module they belong to."""
        table = Table(title=f"{self.file.path.name}: {self.shape['mode']} alignment", title_justify="left")
        table.add_column("tensors", justify="right")
        for column in ("reference", "becomes", "fate"):
            table.add_column(column, overflow="fold")
        for (source, target), count in _grouped(self.used.items()).items():
            table.add_row(str(count), source, target, "used")
        for (source, why), count in Counter((_group(k), why) for k, why in self.ignored.items()).items():
            table.add_row(str(count), source, "", f"ignored: {why}", style="yellow")
        for (target, instead), count in Counter((_group(k), why) for k, why in self.missing.items()).items():
            table.add_row(str(count), "", target, f"missing: {instead}", style="cyan")
        notes = [f"{len(self.used)} used, {len(self.ignored)} ignored, {len(self.missing)} missing"]
        if self.file.inert:
            notes.append(f"classes in the file that were not loaded: {', '.join(self.file.inert[:5])}")
        return Group(table, *notes, *self.remarks)


def _group(name: str) -> str:
    """The module of a tensor, with `*` for its numbers: one row of the table."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name.rpartition(".")[0] or name)


def _grouped(pairs: Any) -> Counter[tuple[str, str]]:
    return Counter((_group(source), _group(target)) for source, target in pairs)


def import_reference(
    path: str | Path,
    config: ModelConfig,
    *,
    bank: PromptBank | None = None,
    seed: int = 42,
    merge_lora: bool = False,
) -> tuple[Any, Any, ImportReport]:
    """Build the model that a reference checkpoint was trained as, with its weights.

    Args:
        config: gives encoder and language model; mode, FEM, DOConv and LoRA follow from the file.
        bank: prompts to use, fitted ones or one fixed text; the default is the text that the reference's own test
            writes (its files store no clusters).
        merge_lora: add the encoder's LoRA to its weights instead of keeping the adapter.

    Returns:
        The model (its language model without weights, to be saved and not run), its processor, the report.

    Raises:
        InputError: a file that is refused or is not a reference checkpoint, tensors that do not fit encoder or
            language model, or frozen parts that cannot be loaded.
    """
    file = read_reference(path)
    found = translate(file)
    if bank is None:
        bank = PromptBank.fixed(MEGPT_INSTRUCTION if found.shape["fem"] else INSTRUCTION)
    fitted = bank.centroids is not None
    shape = {**found.shape, "views": "mean", "dynamic_prompt": fitted}
    merge = merge_lora and found.shape["mode"] == "delta"
    if merge:
        shape["mode"] = "deep"
    if found.shape["mode"] == "deep" and not fitted:
        shape["vision_weights"] = "none"
    if "vision" not in config.model_fields_set and (
        name := encoder_name(file.settings.get("vision_model", REFERENCE_ENCODER))
    ):
        shape["vision"] = name
    resolved = ModelConfig.model_validate({**config.model_dump(), **shape})
    model, processor = build_model(resolved, bank=bank, seed=seed, load_llm=False)
    missing = _load(model, found, file, adapters=not merge)
    if merge:
        _merge(model, found, scaling=resolved.lora_alpha / resolved.lora_rank)
    remarks = _decode_alike(model.generation_config, file.settings, processor.tokenizer.get_vocab())
    return model, processor, ImportReport(file, shape, found.used, found.ignored, missing, remarks)


def _decode_alike(decoding: Any, settings: dict[str, Any], vocabulary: dict[str, int]) -> tuple[str, ...]:
    """Put the reference's decoding into a `GenerationConfig`; what it cannot hold is said."""
    learnt = vocabulary.get(str(settings.get("end_sym")))
    known = decoding.eos_token_id if isinstance(decoding.eos_token_id, list) else [decoding.eos_token_id]
    if learnt is not None and learnt not in known:
        decoding.eos_token_id = [*known, learnt]
    for theirs, ours in DECODING.items():
        if isinstance(value := settings.get(theirs), int | float):
            setattr(decoding, ours, value)
    single = decoding.num_beams in (None, 1)
    if single:
        decoding.length_penalty = None  # without effect, and transformers refuses to save it
    if not settings.get("do_sample"):
        return ()
    if not single:
        return (BEAM_SAMPLING,)
    decoding.do_sample, decoding.temperature = True, settings.get("temperature") or 1.0
    return ()


def encoder_name(vision_model: Any) -> str | None:
    """timm's name for the weights of one of Microsoft's Swins, from its hub name or path; None for others.

    timm's default for these names is other weights (ImageNet-22k, then 1k), whose features differ.
    """
    pattern = r"(?:.*/)?swin-(tiny|small|base|large)-patch4-window(\d+)-(\d+)(-in22k)?/?"
    if not isinstance(vision_model, str) or not (match := re.fullmatch(pattern, vision_model)):
        return None
    size, window, side, more = match.groups()
    tag = "ms_in22k" if more else "ms_in22k_ft_in1k" if size == "large" else "ms_in1k"
    return f"swin_{size}_patch4_window{window}_{side}.{tag}"


def _load(model: Any, found: Translation, file: ReferenceFile, *, adapters: bool) -> dict[str, str]:
    """Load the tensors into the model; returns the missing ones, each with the value used instead."""
    own = model.state_dict()
    tensors = {name: t for name, t in found.tensors.items() if adapters or not _vision_lora(name)}
    # FEM's α is a scalar there and a tensor of one element here.
    tensors = {
        k: t.view(own[k].shape) if k in own and t.numel() == own[k].numel() == 1 else t for k, t in tensors.items()
    }
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            there = "none" if name not in own else " × ".join(map(str, own[name].shape))
            raise InputError(
                f"{file.path}: {_source(found, name)} does not fit",
                where=f"it is {' × '.join(map(str, tensor.shape))}; {name} is {there}",
                cause="the config names another encoder or language model than the checkpoint was trained with",
                next="set model.vision (and model.vision_args) and model.llm to those it was trained with",
            )
    missing = _missing(model, own, tensors, file)
    defaults = {name: torch.zeros_like(own[name]) for name in missing if name.endswith("doconv.bias")}
    # Assigned, not copied: an adapter on a language model without weights has none to copy into.
    language = {name: t for name, t in tensors.items() if name.startswith("language_model.")}
    rest = {name: t for name, t in tensors.items() if name not in language}
    model.load_state_dict({**rest, **defaults}, strict=False)
    model.load_state_dict(language, strict=False, assign=True)
    return missing


def _missing(model: Any, own: dict[str, Tensor], tensors: dict[str, Tensor], file: ReferenceFile) -> dict[str, str]:
    wanted = [n for n, p in model.named_parameters() if p.requires_grad]
    wanted += [n for n, _ in model.named_buffers() if n.startswith("projector.") and "num_batches" not in n]
    if not any(n.startswith(ENCODER) for n in tensors):
        # LoRA is merged into the encoder's own weights, which the file does not hold.
        wanted = [n for n in wanted if not n.startswith(ENCODER)]
    missing = {}
    for name in wanted:
        if name in tensors:
            continue
        instead = next((why for pattern, why in DEFAULTS if re.fullmatch(pattern, name)), None)
        if instead is None:
            raise InputError(
                f"{file.path} lacks a weight that was trained",
                where=name,
                cause="the file is incomplete, or the config names another encoder than it was trained with",
                next="set model.vision (and model.vision_args) to the encoder it was trained with",
            )
        missing[name] = instead
    return missing


def _merge(model: Any, found: Translation, *, scaling: float) -> None:
    """Add each LoRA pair to its rows of the encoder's fused query, key and value."""
    layers = {name.rpartition(".lora_")[0] for name in found.tensors if _vision_lora(name)}
    modules = dict(model.vision.trunk.named_modules())
    with torch.no_grad():
        for layer in layers:
            path = layer.removeprefix(ENCODER)
            linear = modules[path]
            blocks = lora.query_value_blocks(path, linear, modules[path.rpartition(".")[0]])
            for number, rows in enumerate(blocks or []):
                a, b = found.tensors[f"{layer}.lora_A.{number}"], found.tensors[f"{layer}.lora_B.{number}"]
                linear.weight[rows] += scaling * (b @ a)


def _vision_lora(name: str) -> bool:
    return name.startswith(ENCODER) and ".lora_" in name


def _source(found: Translation, target: str) -> str:
    return next(source for source, name in found.used.items() if name == target)
