"""The plan of a generation run: which studies it is about, cut into shards, on disk.

    OUT/plan/part-000000.parquet …   the studies, in the archive's order, without pixels; some 5,000 a file
    OUT/plan/plan.json               written last: the plan is complete

A shard is a run of `shard_size` rows that neither a file nor a row group cuts, so that a small shard costs neither a
file of its own nor the reading of many others.

The plan is made once and never again, so a run that is killed and started again works on exactly the studies, and the
shards, of the first start, even if the archive has grown since. A worker needs nothing but a shard's number.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from megpt.data.sources import Source
from megpt.data.sources.base import Inside
from megpt.data.sources.table import TableSource
from megpt.data.studies import open_parquet, study_files, write_rows
from megpt.errors import InputError, MegptError
from megpt.output import write_aside
from megpt.study import STUDIES_SCHEMA, Study, View

FOLDER, RECORD = "plan", "plan.json"
BATCH_ROWS = 5_000
# Rows of a plan's file, and of a row group in it, at least one shard each.
FILE_ROWS, GROUP_ROWS = 5_000, 500

# A study's row and, where its films lie inside a studies/ table, the file and row to fetch them from.
PLAN_SCHEMA = (
    STUDIES_SCHEMA.append(pa.field("split", pa.string()))
    .append(pa.field("file", pa.string()))
    .append(pa.field("row", pa.int64()))
)


@dataclass(frozen=True, slots=True)
class Planned:
    """A study and where its films lie, if that is in a table."""

    study: Study
    file: str | None = None
    row: int = 0


@dataclass(frozen=True)
class Plan:
    """A complete plan on disk."""

    folder: Path
    studies: int
    shard_size: int

    @property
    def shards(self) -> int:
        return -(-self.studies // self.shard_size)

    @property
    def group_rows(self) -> int:
        return self.shard_size * max(1, GROUP_ROWS // self.shard_size)

    @property
    def file_rows(self) -> int:
        return self.group_rows * max(1, FILE_ROWS // self.group_rows)

    def rows_in(self, shard: int) -> int:
        """Studies of one shard; the last one may hold fewer."""
        return min(self.shard_size, self.studies - shard * self.shard_size)

    def shard(self, number: int) -> list[Planned]:
        """The studies of one shard, in order."""
        part, row = divmod(number * self.shard_size, self.file_rows)
        group, row = divmod(row, self.group_rows)
        with open_parquet(part_path(self.folder, part)) as file:
            rows = file.read_row_group(group).slice(row, self.shard_size).to_pylist()
        return [Planned(Study.from_row(row, split=""), row["file"], row["row"] or 0) for row in rows]

    def study_ids(self) -> Iterator[list[str]]:
        """The ids of each shard's studies, shard by shard."""
        for part in range(-(-self.studies // self.file_rows)):
            with open_parquet(part_path(self.folder, part)) as file:
                ids = file.read(columns=["study_id"]).column("study_id").to_pylist()
            for start in range(0, len(ids), self.shard_size):
                yield ids[start : start + self.shard_size]


def part_path(folder: Path, part: int) -> Path:
    return folder / FOLDER / f"part-{part:06d}.parquet"


def load_plan(folder: Path) -> Plan | None:
    """The plan in an output folder; None where there is none yet, or one that was cut off."""
    record = folder / FOLDER / RECORD
    if not record.exists():
        return None
    try:
        values = json.loads(record.read_text())
        return Plan(folder, int(values["studies"]), int(values["shard_size"]))
    except (ValueError, KeyError) as error:
        raise MegptError(
            f"{record} is damaged",
            cause=type(error).__name__,
            next="delete the output folder and run the command again",
        ) from None


def make_plan(folder: Path, source: Source, *, split: str, limit: int | None, shard_size: int) -> Plan:
    """Write the plan of an output folder; memory holds one of its files and the ids.

    Raises:
        InputError: no study of that split, or a study id that comes twice.
    """
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    stream = _unique(islice(manifest(source, split), limit), str(source.root))
    count, shape = 0, Plan(folder, 0, shard_size)
    while rows := list(islice(stream, shape.file_rows)):
        path = part_path(folder, count // shape.file_rows)
        write_rows(path, map(_row, rows), PLAN_SCHEMA, group_rows=shape.group_rows)
        count += len(rows)
    if not count:
        raise InputError(
            f"no study of split {split!r} in {source.root}",
            cause="the archive is empty, or its studies belong to other splits",
            next="set generate.split=all",
        )
    with write_aside(folder / FOLDER / RECORD) as temporary:
        temporary.write_text(json.dumps({"studies": count, "shard_size": shard_size, "format": source.format}) + "\n")
    return Plan(folder, count, shard_size)


def manifest(source: Source, split: str) -> Iterator[Planned]:
    """The studies of one split; those whose split the archive does not say belong to every one."""
    stream = _table_manifest(source) if isinstance(source, TableSource) else map(Planned, source.studies())
    return (planned for planned in stream if split == "all" or planned.study.split in ("", split))


def _table_manifest(source: TableSource) -> Iterator[Planned]:
    """The rows of a studies/ table without the films' bytes, which may be a hundred gigabytes."""
    if source.root.is_dir():
        files = study_files(source.root)
        inside = Inside(source.root)
    else:
        files = [("", source.root)]
        inside = Inside(source.root.parent)
    for split, path in files:
        row_number, name = 0, str(path)
        with open_parquet(path) as file:
            leaves = [file.metadata.schema.column(n).path for n in range(file.metadata.num_columns)]
            columns = [leaf for leaf in leaves if not leaf.endswith(".bytes")]
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns):
                for row in batch.to_pylist():
                    row["views"] = row.get("views") or ()
                    study = Study.from_row(row, split=split)
                    if any(view.uri is not None and not view.uri.startswith("/") for view in study.views):
                        study = replace(study, views=tuple(_absolute(view, inside) for view in study.views))
                    yield Planned(study, name, row_number)
                    row_number += 1


def _absolute(view: View, inside: Inside) -> View:
    if view.uri is None or view.uri.startswith("/"):
        return view
    return replace(view, uri=inside.resolve(view.uri))


def _unique(stream: Iterator[Planned], where: str) -> Iterator[Planned]:
    seen: set[str] = set()
    for planned in stream:
        if planned.study.study_id in seen:
            raise InputError(
                f"study {planned.study.study_id!r} comes twice",
                where=where,
                cause="each study is written exactly once, so its id must name it",
                next="run `megpt prepare`, which reports and drops repeated ids, or repair the manifest",
            )
        seen.add(planned.study.study_id)
        yield planned


def _row(planned: Planned) -> dict[str, Any]:
    return {**planned.study.to_row(), "split": planned.study.split, "file": planned.file, "row": planned.row}


def with_films(planned: list[Planned]) -> list[Study]:
    """The studies with the bytes of films that lie in a table; each of its row groups is read once at most."""
    wanted: dict[str, dict[int, int]] = {}
    for place, one in enumerate(planned):
        if one.file is not None:
            wanted.setdefault(one.file, {})[one.row] = place
    studies = [one.study for one in planned]
    for path, rows in wanted.items():
        with open_parquet(Path(path)) as file:
            for place, views in _views_of(file, rows):
                study = studies[place]
                filled = tuple(replace(view, data=row["bytes"]) for view, row in zip(study.views, views, strict=True))
                studies[place] = replace(study, views=filled)
    return studies


def _views_of(file: pq.ParquetFile, rows: dict[int, int]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """(value, views) for each row number that is a key of `rows`."""
    start = 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        inside = sorted(number for number in rows if start <= number < start + count)
        if inside:
            views = file.read_row_group(group, columns=["views"]).column("views")
            for number in inside:
                yield rows[number], views[number - start].as_py() or []
        start += count
