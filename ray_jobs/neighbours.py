"""The nearest-neighbour baseline: for each scored study, the report of the training study whose films are closest.

Closest by cosine of pooled features: once of the checkpoint's own vision encoder (`nearest`), once of the same encoder
untrained (`nearest_untrained`), which knows no more of films than how bright they are where. A model that does not
write better reports than its own encoder could copy has a language model for nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from megpt.config import Config
from megpt.data import studies as tables
from megpt.evaluation.baselines import nearest
from megpt.evaluation.texts import is_blank
from megpt.model.checkpoint.fetch import local_folder
from megpt.model.checkpoint.fingerprint import is_own
from megpt.progress import log
from ray_jobs.fit_prompts import Encoder, choose, encode

if TYPE_CHECKING:
    from megpt.model.vision import VisionEncoder

Reports = dict[str, dict[str, str]]
"""Name of a baseline → study_id → report."""


class BothEncoders(Encoder):
    """The actor that has the checkpoint's own encoder and an untrained one of the same kind: films are decoded once."""

    def load(self) -> VisionEncoder:
        from megpt.model import MeGPTConfig
        from megpt.model.build import build_encoder
        from megpt.model.checkpoint.encoder import SideBySide, load_encoder

        folder = local_folder(str(self.config.checkpoint))
        weights = self.config.model.vision_weights
        own = load_encoder(str(folder), weights=weights if Path(weights).exists() else None)
        shape = MeGPTConfig.from_pretrained(folder)
        arguments = {"vision": shape.vision, "vision_args": shape.vision_args or {}, "image_size": shape.image_size}
        drawn = self.config.model.model_copy(update={**arguments, "vision_weights": "none"})
        untrained, _ = build_encoder(drawn, seed=self.config.seed)
        return cast("VisionEncoder", SideBySide(own, untrained))


def find_neighbours(config: Config, wanted: set[str]) -> tuple[Reports, dict[str, str]]:
    """Neighbours of the studies `wanted` by both encoders, and notes that say why there are none.

    A study with no readable film is missing. Candidates are the training studies with a report, drawn evenly by seed
    where there are more than `fit_prompts.max_studies`; a wanted study is no candidate.

    Raises:
        InputError: the checkpoint or the studies/ table cannot be read.
    """
    if config.evaluate.baselines is not True:
        return {}, {"nearest": "left out (evaluate.baselines=texts)"} if config.evaluate.baselines else {}
    if not (config.checkpoint and config.studies):
        return {}, {"nearest": "needs the films and the encoder: set studies=PATH and checkpoint=PATH"}
    if not is_own(local_folder(config.checkpoint)):
        return {}, {"nearest": "needs the encoder of a MeGPT checkpoint, and this is another model"}
    if "train" not in {split for split, _ in tables.study_files(config.studies)}:
        return {}, {"nearest": "the training split is not in `studies`"}
    queries = _rows_of(config.studies, wanted)
    if not queries:
        return {}, {"nearest": "no scored study is in `studies`, so that its films are not known"}
    config = config.updated(limit=None)
    reports = _reports(config, wanted)
    units = [*choose(config), *queries]
    total = sum(len(rows) for _, rows in units)
    log(f"evaluate: encoding the films of {total} studies, for the nearest-neighbour baseline")
    features = encode(config, units, total=total, encoder=BothEncoders, name="encode films")
    ours = [study for study in features if study in wanted]
    theirs = sorted(study for study in features if study in reports)
    if not ours or not theirs:
        reason = "no training study has a readable film and a report" if ours else "no scored study has a readable film"
        return {}, {"nearest": reason}
    found: Reports = {}
    halves = (np.hsplit(np.stack([features[study] for study in side]), 2) for side in (ours, theirs))
    for name, queried, held_by in zip(("nearest", "nearest_untrained"), *halves, strict=True):
        places = nearest(queried, held_by).tolist()
        found[name] = {study: reports[theirs[place]] for study, place in zip(ours, places, strict=True)}
    return found, {}


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
