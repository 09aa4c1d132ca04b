"""The decoding that travels with a checkpoint: how reports were written when it was validated.

    carry(model.generation_config, config.generate)          # training: into generation_config.json
    rules, origins = completed(config.generate, folder)      # generate: what the config leaves open, from the file

`model.generate(**inputs)` reads the same file, so all three write the same reports. Needs no torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megpt.config import GenerateConfig
from megpt.errors import InputError
from megpt.model.checkpoint.fingerprint import damaged
from megpt.places import place

GENERATION = "generation_config.json"
RULES = (
    *("num_beams", "repetition_penalty", "length_penalty", "min_new_tokens", "max_new_tokens"),
    *("do_sample", "temperature", "top_p"),
)
"""The fields of `GenerateConfig` that decide how tokens are chosen; transformers has them under the same names."""


def carry(settings: Any, generate: GenerateConfig) -> None:
    """Write the decoding of a run into a `transformers.GenerationConfig`, in place.

    Fields without effect are left empty (the length penalty of a greedy search, the temperature without sampling):
    transformers refuses to save them.
    """
    for name in RULES:
        setattr(settings, name, getattr(generate, name))
    if generate.num_beams == 1:
        settings.length_penalty = None
    if not generate.do_sample:
        settings.temperature = settings.top_p = None


def carried(folder: str | Path) -> dict[str, Any]:
    """The decoding that a checkpoint folder names; empty if it names none.

    Raises:
        InputError: generation_config.json is not JSON.
    """
    path = place(folder) / GENERATION
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return {name: tree[name] for name in RULES if tree.get(name) is not None}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise damaged(str(path), error) from error


PLAIN = {"num_beams": 1, "repetition_penalty": 1.0, "length_penalty": 1.0, "min_new_tokens": 0}
"""The decoding of a model of the hub where nobody says otherwise: transformers' own, not the paper's."""


def completed(
    generate: GenerateConfig, folder: str | Path, *, own: bool = True
) -> tuple[GenerateConfig, dict[str, str]]:
    """The decoding that applies to a job, and the origin of each field: `config`, `checkpoint` or `default`.

    A field that the job's config sets keeps that value; the checkpoint's applies to the others, then the default.

    Args:
        own: a MeGPT checkpoint. A model of the hub samples only where the config asks for it, so that its reports can
            be written again, and has defaults of its own (`PLAIN`).

    Raises:
        InputError: the checkpoint names a value that is out of range, or that contradicts the job's config.
    """
    found, plain = carried(folder), {} if own else PLAIN
    if not own:
        found = {name: value for name, value in found.items() if name not in ("do_sample", "temperature", "top_p")}
    set_here = generate.model_fields_set
    taken = {name: value for name, value in {**plain, **found}.items() if name not in set_here}
    try:
        rules = GenerateConfig.model_validate({**generate.model_dump(exclude_unset=True), **taken})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = f"generate.{first['loc'][0]}: " if first["loc"] else ""
        raise InputError(
            f"{name}{first['msg'].removeprefix('Value error, ')}",
            where=f"{Path(folder) / GENERATION}: {', '.join(f'{key} = {value!r}' for key, value in taken.items())}",
            cause="the checkpoint's decoding applies where the config sets none",
            next="set both values in the config or on the command line: generate.NAME=VALUE",
        ) from None
    origins = {name: "config" if name in set_here else "checkpoint" if name in found else "default" for name in RULES}
    return rules, origins


def described(rules: GenerateConfig, origins: dict[str, str]) -> str:
    """One line for the screen: each rule that has an effect, grouped by origin."""
    idle = (() if rules.do_sample else ("temperature", "top_p")) + (("length_penalty",) if rules.num_beams == 1 else ())
    groups = []
    for origin in ("config", "checkpoint", "default"):
        own = [f"{name}={getattr(rules, name)}" for name in RULES if origins[name] == origin and name not in idle]
        if own:
            groups.append(f"{', '.join(own)} ({origin})")
    return "; ".join(groups)
