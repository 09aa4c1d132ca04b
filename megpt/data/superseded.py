"""Studies of a prepared table that are done again: which failed, and how they leave their earlier shards' files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from megpt.data.parquet import read_rows
from megpt.data.prepare import failed_part, films_part, mark_path
from megpt.data.shards import ShardList
from megpt.data.studies import part_path, write_rows
from megpt.output import write_aside
from megpt.study import FAILED_SCHEMA, FILMS_FAILED_SCHEMA, STUDIES_SCHEMA


def failed_ids(out: Path, shards: ShardList) -> frozenset[str]:
    """The studies that could not be prepared."""
    parts = (failed_part(out, shard) for shard in shards)
    return frozenset(row["study_id"] for part in parts if part.exists() for row in read_rows(part, ["study_id"]))


def drop_superseded(out: Path, shards: ShardList) -> None:
    """Take the studies that are listed again out of the files of their earlier shards.

    The mark comes last: as long as it counts other studies than the shard has, this is done again. A shard without a
    mark is prepared again, and its files, if there are any, go: their studies may be in another shard by now.
    """
    for shard in shards:
        if shard.studies == shard.rows:
            continue
        mark, path = mark_path(out, shard), part_path(out, shard.split, shard.number)
        failed, bad_films = failed_part(out, shard), films_part(out, shard)
        old = json.loads(mark.read_text()) if mark.exists() else None
        if old is None:
            for part in (path, failed, bad_films):
                part.unlink(missing_ok=True)
        elif old["studies"] != shard.studies:
            views = {listed.study.study_id: len(listed.study.views) for listed in shards.read(shard)}
            films = [(row["study_id"], len(row["views"])) for row in _keep(path, views, STUDIES_SCHEMA, aside=out)]
            reasons = Counter(row["error"] for row in _keep(failed, views, FAILED_SCHEMA, aside=out))
            _ = list(_keep(bad_films, views, FILMS_FAILED_SCHEMA, aside=out))
            counts = {"studies": shard.studies, "failed": reasons.total(), "films": sum(n for _, n in films)}
            dropped = sum(views[name] - n for name, n in films)
            content = {**old, **counts, "films_dropped": dropped, "reasons": dict(reasons)}
            with write_aside(mark) as temporary:
                temporary.write_text(json.dumps(content))


def _keep(path: Path, wanted: Collection[str], schema: pa.Schema, *, aside: Path) -> Iterator[dict[str, Any]]:
    """Leave only the rows of these studies in a file, or no file; gives the ids, reasons and views of those rows."""
    if not path.exists():
        return
    if write_rows(path, (row for row in read_rows(path) if row["study_id"] in wanted), schema, aside=aside) == 0:
        path.unlink()
        return
    yield from read_rows(path, ["study_id", "error", "views"])
