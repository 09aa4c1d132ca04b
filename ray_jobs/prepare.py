"""An archive becomes a studies/ table: every film checked, shrunk once, and sharded, on all cores or all nodes.

    megpt prepare --config configs/phantom.yaml source=/data/mimic-cxr-jpg output=runs/studies

The archive's studies are streamed into a shard list on disk (megpt/data/shards.py). Each task takes one shard of it and
writes that shard's files (megpt/data/prepare.py): a task of Ray Data on a cluster, of a helper process
(ray_jobs/helpers.py) where there is none. Only shards' names and counts come back, so memory does not depend on the
archive. A killed job is resumed by the same command, which prepares the shards that are
left, and takes up the studies that the archive has got since (megpt/data/growth.py).

OUT/data/split=…/part-*.parquet, README.md, failed.parquet, films_failed.parquet, run.json and _SUCCESS.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from megpt.config import ClusterConfig, PrepareConfig
from megpt.data.growth import Intake, choice_of
from megpt.data.listing import line
from megpt.data.parquet import check_columns
from megpt.data.prepare import (
    FAILED,
    FILMS_FAILED,
    WORK,
    clear,
    count_left_out,
    describe,
    list_shards,
    marks,
    merge_failed,
    merge_failed_films,
    prepare_shard,
    unfinished,
)
from megpt.data.shards import Shard, ShardList
from megpt.data.sources import open_source
from megpt.data.studies import Listed, split_folders
from megpt.data.superseded import drop_superseded, failed_ids
from megpt.errors import InputError, TooManyFailed
from megpt.output import write_json
from megpt.progress import Progress, log
from megpt.study import STUDIES_SCHEMA
from ray_jobs.counting import Count
from ray_jobs.helpers import Helpers
from ray_jobs.job import Job
from ray_jobs.placement import elsewhere, one_cpu
from ray_jobs.runtime import cores, joined, quiet
from ray_jobs.telling import Teller

RUN_JSON = "run.json"
PACKAGES = ("megpt", "ray", "pyarrow", "pillow", "pydicom", "pylibjpeg-openjpeg", "python-gdcm")
LIST = Path(WORK) / "plan"


class Prepare(Job):
    name = "prepare"
    reads = (
        *("source", "ids", "retry", "limit", "seed", "prepare"),
        *("data.format", "data.reports", "data.annotations", "data.columns", "data.encoding", "data.delimiter"),
        *("data.roots", "data.changed", "data.max_pixels", "data.options"),
        *("data.study_id", "data.subject_id", "data.modalities"),
    )
    needs = ("source",)
    grows = True
    staged = False

    def open(self) -> None:
        self.source = open_source(str(self.config.source), data=self.config.data)
        self.choice = choice_of(self.config)

    def inputs(self) -> dict[str, Any]:
        """Which archive, but not what it holds: it may grow."""
        return {"source": self.source.identity}

    def demand(self) -> ClusterConfig:
        return one_cpu(self.config.cluster)

    def needs_ray(self) -> bool:
        return False

    def preview(self, folder: Path) -> None:
        shards = ShardList.load(folder / LIST)
        left = sum(shard.studies for shard in unfinished(folder, shards)) if shards else 0
        left += self._beyond(folder)
        log(f"prepare: would read {left} studies ({self.source.format}) of {self.source.place} into {folder}")

    def has_grown(self, folder: Path) -> bool:
        return self._beyond(folder) > 0

    def _beyond(self, folder: Path) -> int:
        """How many studies the archive holds, of those that are wanted, beyond the list."""
        self.source.keep_in(folder.absolute(), write=False)
        if ShardList.load(folder / LIST) is None:
            with tempfile.TemporaryDirectory() as scratch:
                first = self._list(Path(scratch) / "plan", self._studies(), self._intake(folder))
            log(f"prepare: {line(first.notes, first.splits().items())}")
            return first.studies
        with self._intake(folder) as intake:
            return sum(1 for _ in intake.studies(self._studies(), where=self.source.place))

    def _intake(self, folder: Path) -> Intake:
        folder = folder.absolute()  # the tasks, which read the list, start in folders of their own
        base = ShardList.load(folder / LIST)
        for split in split_folders(folder) if base else ():
            for part in sorted(split.glob("*.parquet"))[:1]:
                check_columns(part, STUDIES_SCHEMA, folder)
        failed = failed_ids(folder, base) if base and self.config.retry else frozenset[str]()
        return Intake(base, self.choice, output=folder, failed=failed, whole=self.source.whole)

    def plan(self, folder: Path) -> bool:
        place = folder.absolute() / LIST
        self.source.keep_in(folder.absolute())
        studies = self._studies()
        log(f"prepare: listing the studies of {self.source.place} ({self.source.format})")
        with self._intake(folder) as intake:
            shards = self._list(place, studies, intake)
        if intake.new:
            log(f"prepare: {line(shards.notes, shards.splits().items())}")
        for text in intake.lines():
            log(f"prepare: {text}")
        if intake.new and (twice := shards.notes["patients_in_two_splits"]):
            log(f"prepare: {twice} patients are in more than one of the archive's own splits")
        drop_superseded(folder, shards)
        self.shards, self.left = shards, unfinished(folder, shards)
        return bool(self.left)

    def _list(self, folder: Path, studies: Iterator[Listed], intake: Intake) -> ShardList:
        size, seed = self.config.prepare.shard_size, self.config.seed
        return list_shards(folder, studies, shard_size=size, seed=seed, source=self.source, intake=intake)

    def _studies(self) -> Iterator[Listed]:
        studies = iter(self.source.listed())
        if (first := next(studies, None)) is None:
            self.source.check(reports=0, labels=0)
            raise InputError(
                f"no studies in {self.source.place}",
                where=f"read as {self.source.format}",
                next="check source=PATH and data.format",
            )
        return itertools.chain([first], studies)

    def work(self, folder: Path) -> None:
        """Have each shard that is left written, by as many tasks as there are cores."""
        done = self.shards.studies - sum(shard.studies for shard in self.left)
        before = self._failed_before(folder)
        progress = Progress("prepare", self.shards.studies, start=done, failed=before, live=True)
        count = Count(progress, self.config.prepare)
        with progress, contextlib.closing(self._prepared(folder.absolute(), count)) as rows:
            count.check()
            for row in rows:
                count.finished(str(row["shard"]), int(row["studies"]), json.loads(row["reasons"]))

    def _prepared(self, folder: Path, count: Count) -> Generator[dict[str, Any], None, None]:
        """Have the shards written; the counts of each, as they come."""
        settings = self.config.prepare
        more = {"archive": self.source.root, "max_pixels": self.config.data.max_pixels}
        if self.in_process:
            with count.in_a_folder(), Helpers(_prepare, min(cores(), len(self.left))) as helpers:
                parts = ((folder, self.shards, settings, more, count.run, asdict(shard)) for shard in self.left)
                yield from helpers.unordered(parts, meanwhile=count.look)
            return
        import ray.data

        from ray_jobs.watched import watched

        quiet(ray.data.DataContext.get_current())
        task = functools.partial(_prepare, folder, self.shards, settings, more, count.run)
        # One row a block: otherwise a small list is one block, and one worker does everything.
        rows = ray.data.from_items([asdict(shard) for shard in self.left], override_num_blocks=len(self.left))
        # A local cluster claims more CPUs than the machine has, and decoding is nothing but CPU work.
        tasks = None if joined() else ray.data.TaskPoolStrategy(size=cores())
        # Ray Data wants a function, which a partial is not.
        written = rows.map(lambda row: task(row), compute=tasks, num_cpus=1, **elsewhere())
        yield from watched(written, one_cpu(self.config.cluster), count)

    def _failed_before(self, folder: Path) -> Counter[str]:
        """The reasons of studies that an earlier start could not read."""
        reasons = Counter[str]()
        for mark in marks(folder, self.shards):
            reasons.update(mark["reasons"])
        return reasons

    def finish(self, folder: Path) -> dict[str, Any]:
        """failed.parquet and run.json."""
        shards, counts, reasons = self.shards, Counter[str](), Counter[str]()
        splits: dict[str, Counter[str]] = {}
        for mark in marks(folder, shards):
            numbers = {name: mark[name] for name in ("studies", "failed", "films", "films_dropped")}
            counts.update(numbers)
            splits.setdefault(mark["split"], Counter()).update(numbers)
            reasons.update(mark["reasons"])
        if counts["studies"] != shards.studies:
            raise RuntimeError(f"{shards.studies - counts['studies']} studies were neither prepared nor failed")
        if counts["failed"] == counts["studies"]:
            raise self._nothing_readable(counts["studies"], reasons)
        merge_failed(folder, shards)
        merge_failed_films(folder, shards)
        describe(folder)
        tree = {
            "job": "prepare",
            "format": self.source.format,
            "split_by": shards.notes["split_by"],
            "found": {name: shards.notes.get(name) for name in ("found", "rule", "not_read")},
            "counts": dict(counts),
            "left_out": count_left_out(folder),
            "splits": {name: dict(numbers) for name, numbers in splits.items()},
            "reasons": dict(reasons.most_common()),
            "patients_in_two_splits": shards.notes["patients_in_two_splits"],
            "shards": len(shards),
            "seconds": round(time.monotonic() - self.began, 3),
            "versions": {name: version(name) for name in PACKAGES},
            "config": self.config.model_dump(mode="json"),
        }
        write_json(folder / RUN_JSON, tree)
        return dict(counts)

    def _nothing_readable(self, studies: int, reasons: Counter[str]) -> InputError:
        reason, times = reasons.most_common(1)[0]
        return InputError(
            f"not one of {studies} studies in {self.source.place} has a readable film",
            where=f"read as {self.source.format}",
            cause=f"most often: {reason} ({times} studies)",
            next="check source=PATH, data.format and where the images lie (docs/data.md)",
        )

    def kept(self, folder: Path) -> bool:
        return (shards := ShardList.load(folder / LIST)) is not None and any(
            mark["failed"] < mark["studies"] for mark in marks(folder, shards)
        )

    def tidy(self, folder: Path) -> None:
        clear(folder)

    def tell(self, folder: Path, summary: dict[str, Any]) -> None:
        dropped = summary["films_dropped"]
        films = f", {dropped} films dropped ({FILMS_FAILED})" if dropped else ""
        kept = summary["studies"] - summary["failed"]
        log(f"prepare: {kept} studies in {folder}, {summary['failed']} failed{films}")

    def verdict(self, folder: Path, summary: dict[str, Any]) -> None:
        failed, allowed = summary["failed"], self.config.prepare.max_failed_fraction
        if failed > allowed * summary["studies"]:
            raise TooManyFailed(
                f"{failed} of {summary['studies']} studies are unreadable, "
                f"above prepare.max_failed_fraction={allowed:g}",
                where=str(folder / FAILED),
                cause="see its column `error`; all other studies are in the table",
                next="go on with the table as it is, or run again with a larger prepare.max_failed_fraction",
            )
        dropped, most = summary["films_dropped"], self.config.prepare.max_failed_films_fraction
        films = summary["films"] + dropped
        if dropped > most * films:
            raise TooManyFailed(
                f"{dropped} of {films} films are unreadable and were dropped, "
                f"above prepare.max_failed_films_fraction={most:g}",
                where=str(folder / FILMS_FAILED),
                cause="see its column `reason`; the studies are in the table with their other films",
                next="go on with the table as it is, or run again with a larger prepare.max_failed_films_fraction",
            )


def _prepare(
    folder: Path, shards: ShardList, settings: PrepareConfig, more: dict[str, Any], run: str, row: dict[str, Any]
) -> dict[str, Any]:
    """The task: one shard, as a row, and the counts that come back."""
    shard = Shard(**row)
    mark = prepare_shard(folder, shards, shard, settings, tell=Teller(run, shard.name), **more)
    return {"shard": shard.name, "studies": mark["studies"], "reasons": json.dumps(mark["reasons"])}
