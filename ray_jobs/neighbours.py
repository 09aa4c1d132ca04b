"""The nearest-neighbour baseline: for each scored study, the report of the training study whose films are closest.

Closest by cosine of pooled features: once of the checkpoint's own vision encoder (`nearest`), once of the same encoder
untrained (`nearest_untrained`), which knows no more of films than how bright they are where. A model that does not
write better reports than its own encoder could copy has a language model for nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megpt.config import Config
from megpt.data import studies as tables
from megpt.evaluation.baselines import nearest
from megpt.evaluation.texts import is_blank
from megpt.progress import log
from ray_jobs.fit_prompts import Encoder, choose, encode

if TYPE_CHECKING:
    from megpt.model.vision import VisionEncoder

Reports = dict[str, dict[str, str]]
"""Name of a baseline → study_id → report."""


class CheckpointEncoder(Encoder):
    """The actor that has the checkpoint's own encoder."""

    def load(self) -> VisionEncoder:
        from megpt.model.checkpoint.encoder import load_encoder

        weights = self.config.model.vision_weights
        return load_encoder(str(self.config.checkpoint), weights=weights if Path(weights).exists() else None)


def find_neighbours(config: Config, wanted: set[str]) -> tuple[Reports, dict[str, str]]:
    """Neighbours of the studies `wanted` by both encoders, and notes that say why there are none.

    A study with no readable film is missing. Candidates are the training studies with a report, drawn evenly by seed
    where there are more than `fit_prompts.max_studies`; a wanted study is no candidate.

    Raises:
        InputError: the checkpoint or the studies/ table cannot be read.
    """
    if not config.evaluate.baselines:
        return {}, {}
    if not (config.checkpoint and config.studies):
        return {}, {"nearest": "needs the films and the encoder: set studies=PATH and checkpoint=PATH"}
    held = [split for split in ("train", "val", "test") if any(Path(config.studies).glob(f"split={split}/*.parquet"))]
    if "train" not in held:
        return {}, {"nearest": "the training split is not in `studies`"}
    queries = _rows_of(config.studies, wanted)
    if not queries:
        return {}, {"nearest": "no scored study is in `studies`, so that its films are not known"}
    config = config.updated(limit=None)
    reports = _reports(config, wanted)
    units = [*choose(config), *queries]
    total = sum(len(rows) for _, rows in units)
    log(f"evaluate: comparing the films of {total} studies, for the nearest-neighbour baseline")
    found: Reports = {}
    for name, settings, encoder in (
        ("nearest", config, CheckpointEncoder),
        ("nearest_untrained", _untrained(config), Encoder),
    ):
        features = encode(settings, units, total=total, encoder=encoder, name=f"encode for {name}")
        ours = [study for study in features if study in wanted]
        theirs = sorted(study for study in features if study in reports)
        if not ours or not theirs:
            which = "training" if ours else "scored"
            return {}, {"nearest": f"no {which} study has a readable film" + (" and a report" if ours else "")}
        places = nearest(np.stack([features[s] for s in ours]), np.stack([features[s] for s in theirs]))
        found[name] = {study: reports[theirs[place]] for study, place in zip(ours, places.tolist(), strict=True)}
    return found, {}


def _untrained(config: Config) -> Config:
    """The config of the checkpoint's encoder with weights drawn from the seed."""
    from megpt.model import MeGPTConfig
    from megpt.model.checkpoint.files import local_folder

    shape = MeGPTConfig.from_pretrained(local_folder(str(config.checkpoint)))
    return config.overridden(
        {
            "model.vision": shape.vision,
            "model.vision_args": shape.vision_args or {},
            "model.image_size": shape.image_size,
            "model.vision_weights": "none",
        }
    )


def _rows_of(studies: str, wanted: set[str]) -> list[tuple[str, list[int]]]:
    """Each file with the rows of the wanted studies in it."""
    units = []
    for _, path in tables.study_files(studies):
        ids = (row["study_id"] for row in tables.read_rows(path, ["study_id"]))
        if rows := [number for number, study in enumerate(ids) if study in wanted]:
            units.append((str(path.absolute()), rows))
    return units


def _reports(config: Config, wanted: set[str]) -> dict[str, str]:
    """Study id → report of the training studies that have one and are not scored themselves."""
    section = config.data.section
    found = tables.read_studies(str(config.studies), "train", columns=[section])
    return {
        study.study_id: text
        for study in found
        if study.study_id not in wanted and not is_blank(text := getattr(study, section) or "")
    }
