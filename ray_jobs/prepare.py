"""An archive becomes a studies/ table: every film checked, shrunk once, and sharded, on Ray Data.

    megpt prepare --config configs/phantom.yaml source=/data/mimic-cxr-jpg output=runs/studies

The archive's manifest is streamed into a plan on disk (megpt/data/shards.py); each task of Ray Data takes one shard of
it and writes that shard's files (megpt/data/prepare.py). Only shard names and counts pass through Ray, so memory does
not depend on the archive. A killed job is started again by the same command and does the shards that are left.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
import ray.data

from megpt.config import Config
from megpt.data.prepare import FAILED, WORK, clear, marks, merge_failed, prepare_shard, unfinished
from megpt.data.shards import Plan, Shard, load_plan, make_plan
from megpt.data.sources import Source, open_source
from megpt.errors import InputError, TooManyFailed
from megpt.output import Output, claim, write_aside
from megpt.progress import Progress, log
from ray_jobs.failures import known_failure
from ray_jobs.runtime import cluster, joined, quiet, require_one_cpu

RUN = "run.json"
PACKAGES = ("megpt", "ray", "pyarrow", "pillow", "pydicom", "pylibjpeg-openjpeg", "python-gdcm")


def run(config: Config, *, dry_run: bool = False) -> int:
    """Write OUT/split=…/part-*.parquet, failed.parquet, run.json and _SUCCESS; exit code 0.

    Raises:
        InputError: no such archive, none of its studies readable, or an output that belongs to another config;
            nothing is left behind.
        TooManyFailed: the table is complete, but more studies failed than `prepare.max_failed_fraction`.
    """
    config.require("source", "output")
    source = open_source(str(config.source), data=config.data)
    if dry_run:
        studies = sum(1 for _ in itertools.islice(source.studies(), config.limit))
        if not studies:
            raise _empty(source)
        log(f"prepare: would read {studies} studies ({source.format}) of {source.root} into {config.output}")
        return 0
    with claim(config.output, job="prepare", identity=_identity(config, source), config=config) as output:
        if output.done:
            log(f"prepare: {output.path} is finished, nothing to do")
            return _verdict(config, output.path, json.loads((output.path / RUN).read_text())["counts"])
        began = time.monotonic()
        plan = _plan(config, source, output)
        left = unfinished(output.path, plan)
        if left:
            with cluster(config.cluster):
                require_one_cpu(config.cluster)
                _prepare(config, plan, left, source, output.path)
        counts = _finish(config, source, plan, output, time.monotonic() - began)
    log(f"prepare: {counts['studies'] - counts['failed']} studies in {output.path}, {counts['failed']} failed")
    return _verdict(config, output.path, counts)


def _identity(config: Config, source: Source) -> dict[str, Any]:
    """What the table depends on; how many workers make it is not part of it."""
    prepare = config.prepare.model_dump(mode="json", exclude={"max_failed_fraction"})
    data = config.data.model_dump(mode="json", include={"reports", "annotations", "max_pixels"})
    archive = {"path": str(source.root), "format": source.format, "fingerprint": source.fingerprint()}
    return {"source": archive, "data": data, "prepare": prepare, "limit": config.limit, "seed": config.seed}


def _plan(config: Config, source: Source, output: Output) -> Plan:
    folder = output.path / WORK / "plan"
    plan = load_plan(folder)
    if plan is None:
        studies = itertools.islice(source.studies(), config.limit)
        try:
            if (first := next(studies, None)) is None:
                raise _empty(source)
            log(f"prepare: listing the studies of {source.root} ({source.format})")
            plan = make_plan(
                folder, itertools.chain([first], studies), shard_size=config.prepare.shard_size, seed=config.seed
            )
        except InputError:
            _wipe(output.path)
            raise
        if plan.patients_in_two_splits:
            log(f"prepare: {plan.patients_in_two_splits} patients are in more than one of the archive's own splits")
    return plan


def _empty(source: Source) -> InputError:
    return InputError(
        f"no studies in {source.root}", where=f"read as {source.format}", next="check source=PATH and data.format"
    )


def _prepare(config: Config, plan: Plan, left: list[Shard], source: Source, out: Path) -> None:
    """Have each shard that is left written, by as many tasks as there are cores."""
    quiet(ray.data.DataContext.get_current())
    settings, max_pixels = config.prepare, config.data.max_pixels
    place, archive = out.absolute(), source.root.absolute()

    def task(row: dict[str, Any]) -> dict[str, Any]:
        shard = Shard(row["split"], row["number"], row["studies"])
        result = prepare_shard(place, plan, shard, settings, archive=archive, max_pixels=max_pixels)
        return {"studies": result["studies"], "failed": result["failed"]}

    # One row a block: otherwise a small plan is one block, and one worker does everything.
    rows = [{"split": shard.split, "number": shard.number, "studies": shard.studies} for shard in left]
    shards = ray.data.from_items(rows, override_num_blocks=len(rows))
    # A local cluster claims more CPUs than the machine has, and decoding is nothing but CPU work.
    tasks = None if joined() else ray.data.TaskPoolStrategy(size=os.cpu_count() or 1)
    done = plan.studies - sum(shard.studies for shard in left)
    with Progress("prepare", plan.studies, start=done) as progress:
        try:
            for row in shards.map(task, compute=tasks, num_cpus=1).iter_rows():
                progress.advance(int(row["studies"]), int(row["failed"]))
        except Exception as error:
            raise known_failure(error, str(out)) or error from error


def _finish(config: Config, source: Source, plan: Plan, output: Output, seconds: float) -> dict[str, int]:
    """failed.parquet, run.json and _SUCCESS, in this order; the working files go last of all."""
    out = output.path
    counts: Counter[str] = Counter()
    splits: dict[str, Counter[str]] = {}
    reasons: Counter[str] = Counter()
    for mark in marks(out, plan):
        numbers = {name: mark[name] for name in ("studies", "failed", "films", "films_dropped")}
        counts.update(numbers)
        splits.setdefault(mark["split"], Counter()).update(numbers)
        reasons.update(mark["reasons"])
    if counts["studies"] != plan.studies:
        raise RuntimeError(f"{plan.studies - counts['studies']} studies were neither prepared nor failed")
    if counts["failed"] == counts["studies"]:
        _wipe(out)
        reason, times = reasons.most_common(1)[0]
        raise InputError(
            f"not one of {counts['studies']} studies in {source.root} has a readable film",
            where=f"read as {source.format}",
            cause=f"most often: {reason} ({times} studies)",
            next="check source=PATH, data.format and where the images lie (docs/data.md)",
        )
    merge_failed(out, plan)
    with write_aside(out / RUN) as temporary:
        tree = {
            "job": "prepare",
            "format": source.format,
            "split_by": plan.split_by,
            "counts": dict(counts),
            "splits": {name: dict(numbers) for name, numbers in splits.items()},
            "reasons": dict(reasons.most_common()),
            "patients_in_two_splits": plan.patients_in_two_splits,
            "shards": len(plan.shards),
            "seconds": round(seconds, 3),
            "versions": {name: version(name) for name in PACKAGES},
            "config": config.model_dump(mode="json"),
        }
        temporary.write_text(json.dumps(tree, indent=1) + "\n")
    output.finish(**counts)
    clear(out)
    return dict(counts)


def _wipe(out: Path) -> None:
    """Leave nothing of an attempt that could not succeed, so that the next one may have another config."""
    for path in out.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    out.rmdir()


def _verdict(config: Config, out: Path, counts: dict[str, int]) -> int:
    failed, allowed = counts["failed"], config.prepare.max_failed_fraction
    if failed > allowed * counts["studies"]:
        raise TooManyFailed(
            f"{failed} of {counts['studies']} studies are unreadable, above prepare.max_failed_fraction={allowed:g}",
            where=str(out / FAILED),
            cause="see its column `error`; all other studies are in the table",
            next="go on with the table as it is, or run again with a larger prepare.max_failed_fraction",
        )
    return 0
