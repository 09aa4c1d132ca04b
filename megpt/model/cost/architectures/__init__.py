"""The shapes of the language models that the shipped configs name, for when only the architecture is needed.

A plan of a 7 B run needs no weights, no tokenizer and no network: each JSON file here describes one architecture from
public facts, under the hub names that have it.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from megpt.errors import InputError, did_you_mean


@cache
def described() -> dict[str, dict[str, Any]]:
    """Hub name → the fields of its config.json, for the architectures that megpt describes itself."""
    known: dict[str, dict[str, Any]] = {}
    for path in sorted(Path(__file__).parent.glob("*.json")):
        entry = json.loads(path.read_text(encoding="utf-8"))
        known.update(dict.fromkeys(entry["names"], entry["config"]))
    return known


def language_model_config(llm: str) -> PreTrainedConfig:
    """The architecture of a language model: from its folder, from the descriptions here, or else from the hub.

    Raises:
        InputError: not a folder, not described here, and not on the hub or in its cache.
    """
    if not Path(llm).is_dir() and llm in described():
        fields = dict(described()[llm])
        return AutoConfig.for_model(fields.pop("model_type"), **fields)
    try:
        return AutoConfig.from_pretrained(llm)
    except (OSError, ValueError) as error:
        raise InputError(
            f"model.llm: no architecture for {llm!r}",
            where="neither a folder with a config.json, nor a description in megpt, nor the hub",
            cause=f"{type(error).__name__}; a name is mistyped, or the hub cannot be reached",
            next=did_you_mean(llm, list(described())),
        ) from None
