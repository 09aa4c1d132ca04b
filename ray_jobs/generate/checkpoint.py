"""What writes the reports, looked at before anything is read: a MeGPT checkpoint, or a model of the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megpt.config import Config, GenerateConfig
from megpt.errors import InputError
from megpt.model.checkpoint.decoding import completed
from megpt.model.checkpoint.fetch import is_hub_id, local_folder
from megpt.model.checkpoint.fingerprint import is_own
from megpt.places import place


def decoding(config: Config, llm: str | None) -> tuple[GenerateConfig, dict[str, str]]:
    """The settings that apply, with a backend that can write with this model, and the origin of each decoding rule.

    Args:
        llm: the place of the language model, if the command line names one.

    Raises:
        InputError: the model cannot be used, or a setting does not apply to it.
    """
    folder = local_folder(str(config.checkpoint))
    own = is_own(folder)
    rules, origins = completed(config.generate, folder, own=own)
    if own:
        return with_usable_backend(rules, folder, config.data.max_views), origins
    return for_image_text_model(rules, folder, llm), origins


def with_usable_backend(rules: GenerateConfig, folder: Path, max_views: int | None) -> GenerateConfig:
    """The settings with a backend that can write with a checkpoint's language model, tried before anything is read."""
    if rules.prompt is not None:
        raise InputError(
            "generate.prompt is set, and this is a MeGPT checkpoint",
            cause="its prompts are chosen by the film, from the texts in its prompts.yaml",
            next="leave generate.prompt out, or edit prompts.yaml",
        )
    from megpt.generation.limits import longest_prompt
    from megpt.generation.trial import usable
    from megpt.model.checkpoint.places import read_config

    shape: Any = read_config(folder)
    return usable(rules, shape.text_config, prompt=longest_prompt(shape, max_views))


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
    from megpt.model import fingerprint

    folder = place(str(config.checkpoint))
    if not (folder / "config.json").is_file() and not is_hub_id(str(config.checkpoint)):
        raise InputError(
            f"no checkpoint at {folder}",
            cause="it has no config.json",
            next="set checkpoint=PATH to an output of `megpt train` or `megpt import-checkpoint`",
        )
    return str(fingerprint(str(config.checkpoint)))
