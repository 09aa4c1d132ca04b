"""`prepare`, shard by shard: the studies of an archive in, one file of a studies/ table per shard out.

    OUT/data/split=train/part-00000.parquet   the studies of shard train-00000, with their films
    OUT/.work/plan/                       the shard list (megpt/data/shards.py)
    OUT/.work/failed/train-00000.parquet  its unreadable studies, merged into OUT/failed.parquet at the end
    OUT/.work/films/train-00000.parquet   its unreadable films, merged into OUT/films_failed.parquet at the end
    OUT/.work/done/train-00000.json       the mark: the shard is done; holds its counts

OUT/.work stays when the job has finished: the next start takes up what is new (megpt/data/growth.py).

Order of writes: the failed films and studies, the table's file, then the mark. All appear whole, by renames, and
preparing a shard again gives the same files. So a kill between any two of them is harmless: a shard without a mark is
prepared again.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from megpt.config import PrepareConfig
from megpt.data.card import write_card
from megpt.data.growth import Intake
from megpt.data.listing import Tally
from megpt.data.parquet import open_parquet, read_rows
from megpt.data.prepared_films import prepare_study
from megpt.data.shards import LIST_SCHEMA, Shard, ShardList, ShardListWriter, from_row, to_row
from megpt.data.sources.base import Source, check_mounted
from megpt.data.splits import SplitAssigner
from megpt.data.studies import (
    DATA,
    Listed,
    RowWriter,
    part_path,
    split_folders,
    study_files,
    with_films,
    write_rows,
)
from megpt.errors import InputError
from megpt.films.decode import FORBIDDEN, MISSING, UnreadableFilm
from megpt.output import write_aside
from megpt.study import FAILED_SCHEMA, FILMS_FAILED_SCHEMA, STUDIES_SCHEMA, Study, View

WORK, FAILED, FILMS_FAILED, LEFT_OUT = ".work", "failed.parquet", "films_failed.parquet", "left_out.parquet"


def list_shards(
    folder: Path,
    studies: Iterable[Listed],
    *,
    shard_size: int,
    seed: int,
    source: Source | None = None,
    intake: Intake | None = None,
) -> ShardList:
    """Stream the archive's studies, or what `intake` chooses of them, into a list of shards by split.

    Its notes are `split_by` (archive: the archive has splits; patient: by hash of the patient's id; none: all is
    `test`, because there are no reports), `patients_in_two_splits`, which counts the archive's own overlaps, and what
    `megpt.data.listing.Tally` counted. A list that grows keeps its first rule, and a patient's new studies go where the
    earlier ones are.

    Args:
        source: the archive that the studies are from; it may refuse what it found.

    Raises:
        InputError: two studies with one id, a study without an id, no studies, or tables that nothing has read.
    """
    intake, found = intake or Intake(), Tally(source)
    assigner = SplitAssigner(seed, intake.base)
    unknown = folder / "unknown.parquet"
    with ShardListWriter(folder, shard_size, intake.base) as writer, contextlib.closing(assigner):

        def without_split() -> Iterator[dict[str, Any]]:
            # states of films are looked up ahead of the list, which must not count studies beyond the limit
            first = islice(studies, intake.choice.limit) if intake.takes_the_first else studies
            for listed in intake.studies(found.counted(first)):
                assigner.see(listed.study)
                if listed.study.split:
                    writer.add(listed, listed.study.split)
                else:
                    yield to_row(listed)

        # Whether an archive without splits has reports is known only at its end, so its studies wait in a file.
        write_rows(unknown, without_split(), LIST_SCHEMA)
        found.check()
        for row in read_rows(unknown):
            split = assigner.split_of(row["subject_id"] or row["study_id"])
            writer.add(from_row(row, split=split), split)
        unknown.unlink()
        if not writer.studies and intake.base is None:
            raise InputError("the archive lists no studies", next="check source=PATH and data.format")
        origin = dict(zip(("source", "format"), source.origin, strict=True)) if source else {}
        return intake.commit(writer, **assigner.notes() | found.notes() | origin)


def prepare_shard(
    out: Path,
    shards: ShardList,
    shard: Shard,
    settings: PrepareConfig,
    *,
    archive: Path,
    max_pixels: int,
    tell: Callable[[str | None], object] = bool,
) -> dict[str, Any]:
    """Prepare the studies of one shard; returns its mark, with the numbers of studies, failures, films and reasons.

    Args:
        tell: called after each study with the reason of its failure, or None.

    Raises:
        MegptError: the disk is full or not writable, or films are missing because this machine has no archive.
    """
    mark = mark_path(out, shard)
    if mark.exists():
        return dict(json.loads(mark.read_text()))
    counts, reasons = Counter[str](studies=shard.studies, failed=0, films=0, films_dropped=0), Counter[str]()
    failed: list[dict[str, Any]] = []
    bad_films: list[dict[str, Any]] = []

    def usable() -> Iterator[dict[str, Any]]:
        for study in with_films(shards.read(shard)):
            dropped: list[tuple[View, str]] = []
            try:
                ready = prepare_study(study, settings, max_pixels=max_pixels, dropped=dropped)
            except UnreadableFilm as error:
                counts["failed"] += 1
                reasons[error.reason] += 1
                failed.append(study.failed_row(error.reason))
                tell(error.reason)
                continue
            finally:
                bad_films.extend(_dropped_rows(study, shard.split, dropped))
            counts.update(films=len(ready.views), films_dropped=len(dropped))
            tell(None)
            yield ready.to_row()

    # The table's file gets its name only after the failed studies are on disk.
    path = part_path(out, shard.split, shard.number)
    with write_aside(path, aside=out) as temporary:
        with RowWriter(temporary, STUDIES_SCHEMA) as writer:
            for row in usable():
                writer.write(row)
        if MISSING in reasons or FORBIDDEN in reasons:
            check_mounted(archive)
        if bad_films:
            write_rows(films_part(out, shard), bad_films, FILMS_FAILED_SCHEMA)
        if failed:
            write_rows(failed_part(out, shard), failed, FAILED_SCHEMA)
    if counts["failed"] == shard.studies:
        path.unlink()
    content = {**counts, "split": shard.split, "reasons": dict(reasons)}
    with write_aside(mark) as temporary:
        temporary.write_text(json.dumps(content))
    return content


def _dropped_rows(study: Study, split: str, dropped: list[tuple[View, str]]) -> Iterator[dict[str, Any]]:
    for view, reason in dropped:
        yield {"study_id": study.study_id, "image_id": view.image_id, "split": split, "reason": reason}


def unfinished(out: Path, shards: ShardList) -> list[Shard]:
    """The shards that no earlier run has marked as done."""
    folder = out / WORK / "done"
    done = {path.name for path in folder.iterdir()} if folder.is_dir() else set[str]()
    return [shard for shard in shards if mark_path(out, shard).name not in done]


def marks(out: Path, shards: ShardList) -> Iterator[dict[str, Any]]:
    """The marks of all shards that are done."""
    for shard in shards:
        if (mark := mark_path(out, shard)).exists():
            yield json.loads(mark.read_text())


def merge_failed(out: Path, shards: ShardList) -> Path:
    """All failed studies in one list, OUT/failed.parquet; it is empty if nothing failed."""
    parts = (failed_part(out, shard) for shard in shards)
    rows = (row for part in parts if part.exists() for row in read_rows(part))
    origin = {name: shards.notes.get(name) for name in ("source", "format")}
    write_rows(out / FAILED, ({**row, **origin} for row in rows), FAILED_SCHEMA)
    return out / FAILED


def describe(out: Path) -> None:
    """OUT/README.md, which names the files of each split that has any."""
    splits = {split: f"{DATA}/split={split}/*.parquet" for split, _ in study_files(out)}
    write_card(out, splits, title="Studies", about="Chest X-ray studies: films, reports and labels, one row per study.")


def merge_failed_films(out: Path, shards: ShardList) -> Path:
    """All unreadable films in OUT/films_failed.parquet, also those of failed studies; it is empty if there are none."""
    parts = (films_part(out, shard) for shard in shards)
    rows = (row for part in parts if part.exists() for row in read_rows(part))
    write_rows(out / FILMS_FAILED, rows, FILMS_FAILED_SCHEMA)
    return out / FILMS_FAILED


def count_left_out(out: Path) -> int:
    """The studies that the source left out, since they hold nothing that it reads; it lists them when it plans."""
    if not (out / LEFT_OUT).exists():
        return 0
    with open_parquet(out / LEFT_OUT) as file:
        return int(file.metadata.num_rows)


def clear(out: Path) -> None:
    """Remove what killed jobs left behind."""
    for leftover in (*out.glob(".*.tmp"), *out.glob(f"{WORK}/*/.*.tmp")):
        leftover.unlink(missing_ok=True)
    for folder in split_folders(out):
        if not any(folder.iterdir()):  # none of the split's studies could be read
            folder.rmdir()


def mark_path(out: Path, shard: Shard) -> Path:
    """The file that says that a shard is done."""
    return out / WORK / "done" / f"{shard.name}.json"


def failed_part(out: Path, shard: Shard) -> Path:
    """The file of a shard's unreadable studies."""
    return out / WORK / "failed" / f"{shard.name}.parquet"


def films_part(out: Path, shard: Shard) -> Path:
    """The file of a shard's unreadable films."""
    return out / WORK / "films" / f"{shard.name}.parquet"
