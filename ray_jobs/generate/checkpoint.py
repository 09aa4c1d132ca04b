"""What writes the reports, looked at before anything is read: a MeGPT checkpoint, or a model of the hub."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from megpt.config import Config, GenerateConfig
from megpt.errors import InputError
from megpt.model.checkpoint.decoding import completed
from megpt.model.checkpoint.fetch import is_hub_id, local_folder
from megpt.model.checkpoint.fingerprint import DAMAGE, files_fingerprint, fingerprint, is_own, weight_files
from megpt.model.checkpoint.state import folder_state
from megpt.places import place
from megpt.places.remembered import recall, remember, software
from ray_jobs.imports import uncollected


def decoding(config: Config, llm: str | None) -> tuple[GenerateConfig, dict[str, str]]:
    """The settings that apply, with a backend that can write with this model, and the origin of each decoding rule.

    Args:
        llm: the place of the language model, if the command line names one.

    Raises:
        InputError: the model, or a part of it, cannot be used, or a setting does not apply to it.
    """
    folder = local_folder(str(config.checkpoint))
    own = is_own(folder)
    rules, origins = completed(config.generate, folder, own=own)
    if own:
        return with_usable_backend(rules, folder, config.data.max_views, llm), origins
    return for_image_text_model(rules, folder, llm), origins


def with_usable_backend(rules: GenerateConfig, folder: Path, max_views: int | None, llm: str | None) -> GenerateConfig:
    """The settings with a backend that can write with a checkpoint's language model, tried before anything is read.

    What passed without a word passes again as long as nothing has changed, and torch need not be imported for it.
    """
    if rules.prompt is not None:
        raise InputError(
            "generate.prompt is set, and this is a MeGPT checkpoint",
            cause="its prompts are chosen by the film, from the texts in its prompts.yaml",
            next="leave generate.prompt out, or edit prompts.yaml",
        )
    state, settings = folder_state(folder), [rules.backend, rules.num_beams, rules.max_new_tokens, max_views]
    depends = [fingerprint(folder), state, settings, *_beside(folder, llm), software("generation", "model")]
    if state and recall("checkpoint to generate", depends):
        return rules
    check_parts(folder, llm)
    with uncollected():
        from megpt.generation.limits import longest_prompt
        from megpt.generation.trial import usable, verdict
        from megpt.model.checkpoint.places import read_config

    shape: Any = read_config(folder)
    chosen = usable(rules, shape.text_config, prompt=longest_prompt(shape, max_views))
    if state and chosen.backend == rules.backend and not verdict(shape.text_config, rules.num_beams).untried:
        remember("checkpoint to generate", depends, True)
    return chosen


def check_parts(folder: Path, llm: str | None, *, weights: bool = False) -> None:
    """Raise InputError if something is missing that a checkpoint needs; with `weights`, or is another one."""
    with uncollected():
        from megpt.model import MeGPTProcessor
        from megpt.model.checkpoint import load

    load.check_parts(folder, llm, weights=weights)
    MeGPTProcessor.from_pretrained(folder)


def check_weights(folder: Path, llm: str | None) -> None:
    """Hash a local language model; raise InputError if it is not the one that a checkpoint was trained with."""
    place, there, wanted = _beside(folder, llm)
    if there and Path(place).is_dir():
        with contextlib.suppress(*DAMAGE):
            if files_fingerprint(weight_files(Path(place))) == wanted:
                return
    check_parts(folder, llm, weights=True)  # which says what is wrong, or that the checkpoint needs no other folder


def _beside(folder: Path, llm: str | None) -> tuple[str, bool, str]:
    """The place of the language model that a checkpoint refers to, whether it is there, and the hash it should have."""
    frozen = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("frozen") or {}
    entry = frozen.get("language_model") or {}
    named = str(llm or entry.get("source") or "")
    # As a checkpoint writes it: a path that begins with a dot is relative to its folder.
    place = str(folder / named) if named.startswith(".") and not llm else named
    return place, bool(named) and Path(place).exists(), str(entry.get("fingerprint"))


def for_image_text_model(rules: GenerateConfig, folder: Path, llm: str | None) -> GenerateConfig:
    """The settings for a model of the hub, whose class, processor and prompt are looked at before anything is read."""
    from megpt.generation.image_text import check_template, load_processor

    check_template(rules.prompt)
    load_processor(folder)
    if llm:
        raise InputError(
            "model.llm is set, and the checkpoint is no MeGPT checkpoint",
            cause=f"{folder} holds a language model of its own",
            next="leave model.llm out",
        )
    return rules.model_copy(update={"backend": "hf"})


def checkpoint_fingerprint(config: Config) -> str:
    folder = place(str(config.checkpoint))
    if not (folder / "config.json").is_file() and not is_hub_id(str(config.checkpoint)):
        raise InputError(
            f"no checkpoint at {folder}",
            cause="it has no config.json",
            next="set checkpoint=PATH to an output of `megpt train` or `megpt import-checkpoint`",
        )
    return fingerprint(str(config.checkpoint))
