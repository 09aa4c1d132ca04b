"""One shard of `prepare`: manifest rows in, one file of a studies/ table out, unreadable studies beside it.

Order of writes, and why a kill between any two is safe: the failed studies' part, then the table's file, then the
mark that says the shard is done. All three appear whole, by renames, and doing a shard again gives the same files, so
a shard without its mark is simply done again.
"""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from megpt.config import PrepareConfig
from megpt.data.shards import Plan, Shard
from megpt.data.sources.base import check_mounted
from megpt.data.studies import RowWriter, part_path, read_rows, write_rows
from megpt.films.decode import MISSING, UnreadableFilm, check_film, load_film, read_film
from megpt.output import write_aside
from megpt.study import FAILED_SCHEMA, STUDIES_SCHEMA, Study, View

WORK, FAILED = ".work", "failed.parquet"
# A film that is stored as it is is still decoded once, as small as its format allows, to know that it can be.
PROBE_SIZE = 32


def prepare_shard(
    out: Path, plan: Plan, shard: Shard, settings: PrepareConfig, *, archive: Path, max_pixels: int
) -> dict[str, Any]:
    """Prepare the studies of one shard; returns its mark: counts of studies, failed ones, films, and reasons.

    Raises:
        MegptError: the disk is full or cannot be written, or films are missing because this machine does not see the
            archive.
    """
    mark = _mark(out, shard)
    if mark.exists():
        return dict(json.loads(mark.read_text()))
    counts: Counter[str] = Counter(studies=shard.studies, failed=0, films=0, films_dropped=0)
    reasons: Counter[str] = Counter()
    failed: list[dict[str, Any]] = []

    def usable() -> Iterator[dict[str, Any]]:
        for study in plan.read(shard):
            try:
                ready = prepare_study(study, settings, max_pixels=max_pixels)
            except UnreadableFilm as error:
                counts["failed"] += 1
                reasons[error.reason] += 1
                failed.append({**study.to_row(), "split": shard.split, "error": error.reason})
                continue
            counts["films"] += len(ready.views)
            counts["films_dropped"] += len(study.views) - len(ready.views)
            yield ready.to_row()

    # The table's file is named only after the failed part is on disk.
    path = part_path(out, shard.split, shard.number)
    with write_aside(path) as temporary:
        with RowWriter(temporary, STUDIES_SCHEMA) as writer:
            for row in usable():
                writer.write(row)
        if MISSING in reasons:
            check_mounted(archive)
        if failed:
            write_rows(_failed_part(out, shard), failed, FAILED_SCHEMA)
    if counts["failed"] == shard.studies:
        path.unlink()
    result = {**counts, "split": shard.split, "reasons": dict(reasons)}
    with write_aside(mark) as temporary:
        temporary.write_text(json.dumps(result))
    return result


def prepare_study(study: Study, settings: PrepareConfig, *, max_pixels: int) -> Study:
    """The study with its films as `prepare.films` wants them; unreadable ones are left out.

    Raises:
        UnreadableFilm: it has no films, or none that can be read.
    """
    if not study.views:
        raise UnreadableFilm("the study has no films")
    views, reasons = [], []
    for view in study.views:
        try:
            views.append(prepare_view(view, settings, max_pixels=max_pixels))
        except UnreadableFilm as error:
            reasons.append(error.reason)
    if not views:
        raise UnreadableFilm(reasons[0])
    return replace(study, views=tuple(views))


def prepare_view(view: View, settings: PrepareConfig, *, max_pixels: int) -> View:
    """One film: resized and encoded, embedded as it is, or linked.

    Raises:
        UnreadableFilm: it cannot be read.
    """
    if settings.films == "link":
        check_film(view, max_pixels=max_pixels)
        return view
    if settings.films == "embed":
        embedded = replace(view, data=read_film(view), uri=None)
        load_film(embedded, size=PROBE_SIZE, max_pixels=max_pixels)
        return embedded
    image = load_film(view, size=settings.image_size, max_pixels=max_pixels)
    return replace(view, data=encode(image, quality=settings.jpeg_quality), uri=None)


def encode(image: Image.Image, *, quality: int) -> bytes:
    """A grey picture as JPEG; the same bytes for the same picture."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def unfinished(out: Path, plan: Plan) -> list[Shard]:
    """The shards that no earlier run has marked as done."""
    return [shard for shard in plan.shards if not _mark(out, shard).exists()]


def marks(out: Path, plan: Plan) -> Iterator[dict[str, Any]]:
    """The marks of all shards that are done."""
    for shard in plan.shards:
        if (mark := _mark(out, shard)).exists():
            yield json.loads(mark.read_text())


def merge_failed(out: Path, plan: Plan) -> Path:
    """All shards' failed studies as one manifest, OUT/failed.parquet; an empty one when nothing failed."""
    parts = (_failed_part(out, shard) for shard in plan.shards)
    write_rows(out / FAILED, _rows(part for part in parts if part.exists()), FAILED_SCHEMA)
    return out / FAILED


def clear(out: Path) -> None:
    """Remove what only a running job needs, and what killed ones left behind."""
    shutil.rmtree(out / WORK, ignore_errors=True)
    for leftover in (*out.glob(".*.tmp"), *out.glob("split=*/.*.tmp")):
        leftover.unlink(missing_ok=True)
    for folder in out.glob("split=*"):
        # a split none of whose studies could be read
        if not any(folder.iterdir()):
            folder.rmdir()


def _rows(parts: Iterable[Path]) -> Iterator[dict[str, Any]]:
    for part in parts:
        yield from read_rows(part)


def _mark(out: Path, shard: Shard) -> Path:
    return out / WORK / "done" / f"{shard.name}.json"


def _failed_part(out: Path, shard: Shard) -> Path:
    return out / WORK / "failed" / f"{shard.name}.parquet"
