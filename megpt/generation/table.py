"""predictions/: the table of reports, one file a shard, each whole or absent.

    OUT/reports/part-000000.parquet …   one row a study, `megpt.study.PREDICTIONS_SCHEMA`
    OUT/failed.parquet                  the studies without a report: a manifest that can be fed back as `source`
    OUT/run.json                        config, decoding, versions, counts, seconds

A shard's file appears by a rename after its rows are on disk, so that it exists means that it is whole; which shards
are left after a kill is read from the folder's listing, and nothing else has to be true.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from megpt import __version__
from megpt.data.studies import open_parquet, write_rows
from megpt.errors import MegptError
from megpt.generation.plan import Plan, Planned, with_films
from megpt.output import write_aside
from megpt.study import FAILED_SCHEMA, PREDICTIONS_SCHEMA

REPORTS, FAILED, RUN_JSON = "reports", "failed.parquet", "run.json"
PACKAGES = ("torch", "transformers", "timm", "ray", "pyarrow", "pillow")
LAUNCHES = "launches.jsonl"


def shard_path(folder: Path, shard: int) -> Path:
    return folder / REPORTS / f"part-{shard:06d}.parquet"


def write_shard(folder: Path, shard: int, rows: Iterable[dict[str, Any]]) -> Path:
    """One file of the table, in the order of `study_id`s given; whole or not at all."""
    path = shard_path(folder, shard)
    write_rows(path, rows, PREDICTIONS_SCHEMA)
    return path


def finished_shards(folder: Path) -> set[int]:
    """Numbers of the shards whose file is there."""
    reports = folder / REPORTS
    if not reports.is_dir():
        return set()
    names = (entry.name for entry in os.scandir(reports))
    return {int(name[5:-8]) for name in names if name.startswith("part-") and name.endswith(".parquet")}


def remove_leftovers(folder: Path) -> None:
    """Delete what writers that were killed had begun; only for the one process that holds the folder's claim."""
    for pattern in (f"{REPORTS}/.*.tmp", "plan/.*.tmp", ".*.tmp"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def count_failed(path: Path) -> int:
    """Rows of one shard that have an error, from the file's footer where its statistics say so."""
    column = PREDICTIONS_SCHEMA.get_field_index("error")
    total = nulls = 0
    with open_parquet(path) as file:
        for group in range(file.num_row_groups):
            statistics = file.metadata.row_group(group).column(column).statistics
            if statistics is None or not statistics.has_null_count:
                errors = file.read(columns=["error"]).column("error")
                return len(errors) - errors.null_count
            total += file.metadata.row_group(group).num_rows
            nulls += statistics.null_count
    return total - nulls


def check_complete(folder: Path, plan: Plan) -> Counter[str]:
    """Prove from the files that each planned study is there once; returns how many finished for which reason.

    Raises:
        MegptError: a file is missing or holds other studies than its shard.
    """
    reasons: Counter[str] = Counter()
    for shard, planned in enumerate(plan.study_ids()):
        path = shard_path(folder, shard)
        try:
            table = pq.read_table(path, columns=["study_id", "finish_reason"])
        except (pa.ArrowInvalid, OSError) as error:
            raise MegptError(
                f"{path} cannot be read",
                cause=f"{type(error).__name__}: it was damaged after it was written",
                next="delete this one file and run the same command again",
            ) from None
        if table.column("study_id").to_pylist() != planned:
            raise MegptError(
                f"{path} does not hold the studies of its shard",
                cause="it was written or changed by something else",
                next="delete this one file and run the same command again",
            )
        reasons.update(table.column("finish_reason").to_pylist())
    return reasons


def write_failed(folder: Path, plan: Plan) -> int:
    """Write failed.parquet: the studies that have no report, with their films or where those lie; returns how many."""
    return write_rows(folder / FAILED, _failed_rows(folder, plan), FAILED_SCHEMA)


def _failed_rows(folder: Path, plan: Plan) -> Iterator[dict[str, Any]]:
    for shard in range(plan.shards):
        path = shard_path(folder, shard)
        if not count_failed(path):
            continue
        table = pq.read_table(path, columns=["study_id", "error"])
        errors = {i: e for i, e in zip(*(c.to_pylist() for c in table.columns), strict=True) if e is not None}
        for one in plan.shard(shard):
            if one.study.study_id in errors:
                yield _failed_row(one, errors[one.study.study_id])


def _failed_row(one: Planned, error: str) -> dict[str, Any]:
    (study,) = with_films([one])
    return {**study.to_row(), "split": study.split, "error": error}


def record_launch(folder: Path, **values: Any) -> None:
    """Add a line on one start of the job, for run.json; a line that a kill cut off is passed over on reading."""
    with (folder / LAUNCHES).open("a") as file:
        file.write(json.dumps(values) + "\n")


def launches(folder: Path) -> list[dict[str, Any]]:
    path = folder / LAUNCHES
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def write_run(folder: Path, **values: Any) -> None:
    """Write run.json."""
    with write_aside(folder / RUN_JSON) as temporary:
        temporary.write_text(json.dumps({"megpt": __version__, **values}, indent=1, ensure_ascii=False) + "\n")


def read_run(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / RUN_JSON).read_text()))


def versions() -> dict[str, str]:
    """Versions of the packages that the texts may depend on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}
