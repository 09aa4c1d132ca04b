"""The difference of a variant from the base over patients, from the reports of all seeds that both have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megpt.config import Config
from megpt.errors import MegptError
from megpt.evaluation.compare import compare
from megpt.evaluation.pairs import Pairs, read_pairs
from megpt.evaluation.seeds import pooled
from ray_jobs.evaluate import run_on_ray

OURS, THEIRS = "variant", "base"


def differences_over_patients(
    variant: Mapping[int, Path], base: Mapping[int, Path], *, config: Config
) -> dict[str, dict[str, Any]] | str:
    """Score → `difference`, `interval`, `p` and `p_holm` of variant minus base; or why there are none.

    Args:
        variant, base: seed → predictions/ folder, the same seeds.
    """
    try:
        systems = {
            name: pooled((seed, _pairs(folder, config)) for seed, folder in folders.items())
            for name, folders in ((OURS, variant), (THEIRS, base))
        }
        found = compare(
            systems, cleaner=config.data.cleaner, settings=config.evaluate, seed=config.seed, run=run_on_ray
        )
    except MegptError as error:
        return error.what
    scores = found.result["comparisons"][0]["scores"]
    return {name: row for name, row in scores.items() if row is not None}


def _pairs(folder: Path, config: Config) -> Pairs:
    return read_pairs(str(folder), studies=config.studies, section=config.data.section, limit=config.limit)
