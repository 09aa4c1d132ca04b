"""The figures of `evaluate` in the model card of the checkpoint that wrote the reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megpt.config import Config
from megpt.errors import InputError


def into_card(config: Config, models: Sequence[str], metrics: dict[str, Any]) -> str:
    """Write the scores into README.md of `checkpoint`, if they are scores of it; returns a line on what was done.

    A card that stays as it is never fails an evaluation: the checkpoint may be somebody else's, of the hub, or there
    for the nearest neighbours of another model's reports.

    Args:
        models: fingerprints of the checkpoints that wrote the reports.
    """
    from megpt.model import fingerprint
    from megpt.model.checkpoint.card import README, UNNAMED, add_scores
    from megpt.model.checkpoint.fetch import is_hub_id

    place = str(config.checkpoint)
    kept = f"the model card of {place} stays as it is"
    if not models:
        return f"{kept}: these predictions do not say which checkpoint wrote them"
    if list(models) != [fingerprint(place)]:
        return f"{kept}: these reports were written by another checkpoint"
    if is_hub_id(place):
        return f"{kept}: it belongs to the hub; give checkpoint= a folder of your own, and push that"
    if config.limit:
        return f"{kept}: these are the first {config.limit} studies only"
    name = config.evaluate.dataset
    try:
        add_scores(place, metrics, dataset=name)
    except (InputError, OSError) as error:
        return f"{kept}: {error.what if isinstance(error, InputError) else error.strerror}"
    unnamed = "" if name else "; evaluate.dataset=NAME names the data"
    return f"{place}/{README} has these figures, of {name or UNNAMED}{unnamed}"
