"""The architectures of the language models that the shipped configs name.

Estimating the cost of a 7 B run needs no weights, no tokenizer and no network: each JSON file here describes an
architecture from public facts, and lists the hub names that have it.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megpt.errors import InputError, did_you_mean
from megpt.model.source import language_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@cache
def described() -> dict[str, dict[str, Any]]:
    """Hub name → the fields of its config.json, for the architectures described here."""
    known: dict[str, dict[str, Any]] = {}
    for path in sorted(Path(__file__).parent.glob("*.json")):
        entry = json.loads(path.read_text(encoding="utf-8"))
        known.update(dict.fromkeys(entry["names"], entry["config"]))
    return known


def language_model_config(llm: str) -> PreTrainedConfig:
    """The architecture of a language model: from its folder, a description here, or the hub.

    Raises:
        InputError: it is not a folder, not described here, and not on the hub or in its cache.
    """
    if Path(llm).exists():
        return language_config(llm)
    if llm in described():
        from transformers import AutoConfig

        fields = dict(described()[llm])
        return AutoConfig.for_model(fields.pop("model_type"), **fields)
    try:
        return language_config(llm)
    except InputError as error:
        if not isinstance(error.__cause__, OSError | ValueError):
            raise
        raise InputError(
            f"model.llm: no architecture for {llm!r}",
            where="looked for as a folder with a config.json, in the descriptions of megpt, and on the hub",
            cause=f"{type(error.__cause__).__name__}: the name is mistyped, or the hub cannot be reached",
            next=did_you_mean(llm, list(described())),
        ) from None
