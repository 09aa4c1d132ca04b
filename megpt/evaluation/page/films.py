"""The films that the page shows, small: read once, encoded once."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from megpt.config import Config
from megpt.data.parquet import open_parquet
from megpt.data.sources import open_source
from megpt.data.studies import study_files
from megpt.films.decode import UnreadableFilm, load_films
from megpt.study import Study

SIZE, QUALITY, MAX_VIEWS = 512, 80, 4
"""Longest side in pixels, JPEG quality, and films of one study."""


def spread(scores: np.ndarray, count: int) -> list[int]:
    """`count` studies from the worst to the best score, evenly between: a sample, not a selection of successes."""
    order = np.argsort(scores, kind="stable")
    if count >= len(order):
        return [int(i) for i in order]
    return [int(i) for i in order[np.linspace(0, len(order) - 1, count).round().astype(int)]] if count else []


def page_films(config: Config, study_ids: Iterable[str]) -> Iterator[tuple[str, list[bytes]]]:
    """Each study with its films as JPEG, streamed; one whose films cannot be found or read is missing."""
    wanted = set(study_ids)
    for study in _find(config, wanted) if wanted else ():
        try:
            images = load_films(study, size=SIZE, max_views=MAX_VIEWS, max_pixels=config.data.max_pixels)
        except UnreadableFilm:
            continue
        yield study.study_id, [_jpeg(image) for image in images]


def _find(config: Config, wanted: set[str]) -> Iterator[Study]:
    if config.studies:
        yield from find_studies(config.studies, wanted)
    elif config.source:
        for study in open_source(config.source, data=config.data).studies():
            if study.study_id in wanted:
                yield study


def find_studies(folder: str | Path, wanted: set[str]) -> Iterator[Study]:
    """Studies by id: looks through the ids alone, then reads the row groups that hold one."""
    left = set(wanted)
    for split, path in study_files(folder):
        with open_parquet(path) as file:
            for group in range(file.num_row_groups if left else 0):
                ids = set(file.read_row_group(group, columns=["study_id"]).column(0).to_pylist())
                if hit := ids & left:
                    left -= hit
                    rows = file.read_row_group(group, columns=["study_id", "subject_id", "views"]).to_pylist()
                    yield from (Study.from_row(row, split=split) for row in rows if row["study_id"] in hit)


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.thumbnail((SIZE, SIZE))
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
