"""The curves of a training, from the log that it left in its checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path

LOG = "log.jsonl"
SHOWN = ("loss", "cross_entropy", "grad_norm", "lr", "studies_per_s")
"""Figures of the log that are shown, beside those of the validation (`val_…`)."""
MOST_POINTS = 500

Curve = list[tuple[float, float]]


def training_curves(checkpoint: Path) -> dict[str, Curve]:
    """Figure → [(step, value), …], at most about `MOST_POINTS` of each; empty where there is no log.

    A line that is no row of figures is passed over: a run that was killed may have left half a line.
    """
    curves: dict[str, Curve] = {}
    if not (checkpoint / LOG).is_file():
        return curves
    with (checkpoint / LOG).open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
                step = float(row["step"])
                found = {name: float(row[name]) for name in row if name in SHOWN or name.startswith("val_")}
            except (ValueError, KeyError, TypeError):
                continue
            for name, value in found.items():
                if math.isfinite(value):
                    curves.setdefault(name, []).append((step, value))
    return {name: _thinned(curve) for name, curve in curves.items() if len(curve) > 1}


def _thinned(curve: Curve) -> Curve:
    every = -(-len(curve) // MOST_POINTS)
    return curve[::every] if (len(curve) - 1) % every == 0 else [*curve[::every], curve[-1]]
