"""What the declarations of all settings say, for people and tools: help texts, the JSON schema, and the refusal of
settings that a job does not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from megpt.config.run import SETTINGS, Config
from megpt.errors import InputError, did_you_mean
from megpt.settings import Leaf, covers


def settings_read(reads: Sequence[str]) -> list[Leaf]:
    """The settings behind sections and keys, in the order of declaration.

    Raises:
        ValueError: there is no such section or key.
    """
    for name in reads:
        if not any(covers(name, leaf.key) for leaf in SETTINGS):
            known = [leaf.key for leaf in SETTINGS]
            raise ValueError(f"no section or setting {name!r}: {did_you_mean(name, known)}")
    return [leaf for leaf in SETTINGS if any(covers(name, leaf.key) for name in reads)]


def refuse_unread(
    job: str, reads: Sequence[str], named: Sequence[str], readers: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Refuse settings named on the command line that the job does not read.

    Args:
        reads: sections and keys that the job reads.
        named: keys from the command line (`config.named`).
        readers: job → what it reads, for all jobs, to name those that read the setting.

    Raises:
        InputError: at least one of `named` is not read.
    """
    read = {leaf.key for leaf in settings_read(reads)}
    unread = [key for key in named if key not in read]
    if not unread:
        return
    causes = []
    for key in unread:
        others = [name for name, theirs in (readers or {}).items() if any(covers(one, key) for one in theirs)]
        causes.append(f"{key} is read by {', '.join(others)}" if others else f"no job reads {key}")
    raise InputError(
        f"{job} does not read {' or '.join(unread)}",
        where="the command line",
        cause="; ".join(causes) if readers is not None else "it would change nothing",
        next=f"run it without {' '.join(f'{key}=…' for key in unread)}; megpt {job} --help lists what it reads",
    )


def default_text(leaf: Leaf) -> str:
    """A setting's default as it is written in YAML."""
    value = leaf.default
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=1000).strip()
    return text.removesuffix("...").strip()


def help_text(reads: Sequence[str]) -> str:
    """The settings behind sections and keys, as `megpt JOB --help` lists them: type, range, default, sentence."""
    return leaves_text(settings_read(reads))


def leaves_text(settings: Sequence[Leaf]) -> str:
    """The same for settings that may be an extension's own."""
    lines = []
    for leaf in settings:
        lines += [f"  {leaf.key}: {leaf.allowed}; default {default_text(leaf)}", f"      {leaf.sentence}"]
    return "\n".join(lines)


def json_schema() -> dict[str, Any]:
    """The JSON schema of a config file, for editors: every key with its type, range, default and sentence."""
    tree = Config.model_json_schema()
    for field in tree["properties"].values():
        if "$ref" in field:
            del field["default"]  # a section's settings have their own
    for section in tree["$defs"].values():
        section["type"] = ["object", "null"]  # `train:` with nothing under it
    _drop_titles(tree)
    names = {"type": "array", "items": {"type": "string"}}
    extends = {
        "anyOf": [{"type": "string"}, names],
        "description": "A config to start from: a path relative to this file, or the name of a shipped config.",
    }
    tree["properties"] = {"extends": extends, **tree["properties"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **tree}


def _drop_titles(tree: Any) -> None:
    # Pydantic's titles repeat the keys.
    if isinstance(tree, dict):
        if isinstance(tree.get("title"), str):
            del tree["title"]
        for value in tree.values():
            _drop_titles(value)
    elif isinstance(tree, list):
        for value in tree:
            _drop_titles(value)
