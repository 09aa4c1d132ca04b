"""Reports for a whole archive, each study exactly once, on Ray Data.

    megpt generate --config configs/phantom.yaml source=/data/archive checkpoint=runs/demo/checkpoint output=runs/out

A plan on disk cuts the archive into shards (megpt/generation/plan.py). Ray Data hands shard numbers to a pool of
actors, each with the model on its GPU or share of one; an actor asks CPU tasks to decode its shard's films a chunk
ahead of itself, writes the reports, and then the shard's one file. Nothing else passes through the object store, so
memory depends neither on the archive nor on the shard's size.

Why a kill at any moment is safe: a shard's file appears whole, by a rename, after all its rows exist. Whoever is
killed before that has done nothing; whoever is killed after it has done everything. A shard that two actors come to
write, because one of them was lost sight of, is the same file with the same rows twice. What is left is what has no
file. A shard's texts depend on its own studies only, since an actor works on one shard at a time: a resumed run gives
the table of an uninterrupted one.

Why a lost node does not hold the others up: Ray would keep a dead actor's shards waiting for it to start again, which
without a machine in its place is for ever. Here such a shard is given up at once, and taken up in the next pass over
what has no file. An error of the shard itself is not among those that are given up: it comes back as a value.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import ray
from ray.util.annotations import RayDeprecationWarning

from megpt.config import Config
from megpt.data.sources import Source, open_source
from megpt.errors import InputError, MegptError, TooManyFailed, from_json
from megpt.generation import plan as plans
from megpt.generation import table
from megpt.generation.plan import Plan
from megpt.output import RUN, Output, claim
from megpt.progress import Progress, log
from ray_jobs._shards import CALLS_PER_ACTOR, ShardWorker
from ray_jobs._watch import watched
from ray_jobs.failures import known_failure
from ray_jobs.runtime import cluster, joined, quiet, require_resources, worker_slots

# Passes in a row that may end without one more shard, as when actors die faster than they write.
FRUITLESS_PASSES = 3
# Of a worker's CPUs this share is left to the tasks that decode for it.
DECODE_SHARE = 0.1

# Sections and keys that this job reads; `output` and `cluster` go without saying.
reads = (
    *("source", "studies", "checkpoint", "limit", "seed", "generate"),
    *("data.format", "data.reports", "data.annotations", "data.section", "data.max_views", "data.max_pixels"),
)


def run(config: Config, *, dry_run: bool = False) -> int:
    """Write OUT/reports/part-*.parquet, failed.parquet, run.json and _SUCCESS; exit code 0.

    Raises:
        InputError: no such checkpoint or archive, or an output that belongs to another config; nothing is written.
        TooManyFailed: the table is complete, but more studies failed than `generate.max_failed_fraction`.
    """
    config.require("output", "checkpoint")
    source = _source(config)
    fingerprint = _fingerprint(config)
    if dry_run:
        return _say_what_would_be_done(config, source)
    identity = _identity(config, source, fingerprint)
    with claim(config.output, job="generate", identity=identity, config=config) as output:
        if output.done:
            log(f"generate: {output.path} is finished, nothing to do")
            return _verdict(config, table.read_run(output.path)["counts"], output.path)
        began = time.monotonic()
        table.remove_leftovers(output.path)
        plan = plans.load_plan(output.path) or _plan(config, output.path, source)
        table.record_launch(output.path, started=time.time(), host=os.uname().nodename, studies=plan.studies)
        if _missing(plan):
            with cluster(config.cluster):
                require_resources(config.cluster)
                _generate(config, plan, source, fingerprint)
        counts = _finish(config, output, plan, fingerprint, time.monotonic() - began)
    log(f"generate: {counts['studies']} studies, {counts['error']} of them without a report, in {output.path}")
    return _verdict(config, counts, output.path)


def _source(config: Config) -> Source:
    """`source` where it is set, else the `studies` table."""
    if config.source is None and config.studies is None:
        config.require("source")
    return open_source(str(config.source or config.studies), data=config.data)


def _fingerprint(config: Config) -> str:
    from megpt.model import fingerprint

    folder = Path(str(config.checkpoint))
    if not (folder / "config.json").is_file():
        raise InputError(
            f"no checkpoint at {folder}",
            cause="it has no config.json",
            next="set checkpoint=PATH to an output of `megpt train` or `megpt import-checkpoint`",
        )
    return str(fingerprint(folder))


def _identity(config: Config, source: Source, fingerprint: str) -> dict[str, Any]:
    """What the table depends on; where and on how many workers it is made is not part of it."""
    rules = config.generate.model_dump(mode="json")
    for name in ("slots", "decode_workers", "max_failed_fraction"):
        del rules[name]
    return {
        "checkpoint": fingerprint,
        "source": f"{source.format}:{source.fingerprint()}",
        "seed": config.seed,
        "limit": config.limit,
        "section": config.data.section,
        "max_views": config.data.max_views,
        "max_pixels": config.data.max_pixels,
        "generate": rules,
    }


def _plan(config: Config, folder: Path, source: Source) -> Plan:
    """The plan of a first start. An archive that cannot be planned leaves no output behind: exit code 2 promises it."""
    rules = config.generate
    try:
        return plans.make_plan(folder, source, split=rules.split, limit=config.limit, shard_size=rules.shard_size)
    except InputError:
        shutil.rmtree(folder / plans.FOLDER, ignore_errors=True)
        (folder / RUN).unlink(missing_ok=True)
        raise


def _say_what_would_be_done(config: Config, source: Source) -> int:
    studies = sum(1 for _ in plans.manifest(source, config.generate.split))
    studies = min(studies, config.limit or studies)
    shards = -(-studies // config.generate.shard_size)
    log(f"generate: would write {studies} reports from {source.root} in {shards} shards to {config.output}")
    return 0


def _missing(plan: Plan) -> list[int]:
    return sorted(set(range(plan.shards)) - table.finished_shards(plan.folder))


def _generate(config: Config, plan: Plan, source: Source, fingerprint: str) -> None:
    """Passes over the shards that have no file, until there are none."""
    missing, fruitless = _missing(plan), 0
    finished = plan.studies - sum(map(plan.rows_in, missing))
    archive = str(source.root.absolute())
    with Progress("generate", plan.studies, start=finished) as progress:
        while missing:
            try:
                written = _pass(config, plan, missing, archive, fingerprint)
                with contextlib.closing(watched(written, config.cluster)) as rows:
                    for row in rows:
                        if row["error"]:
                            raise from_json(str(row["error"]))
                        progress.advance(int(row["studies"]), int(row["failed"]))
            except ray.exceptions.RayError as error:
                raise known_failure(error, str(config.output)) or error from error
            before, missing = missing, _missing(plan)
            fruitless = fruitless + 1 if len(missing) == len(before) else 0
            if fruitless == FRUITLESS_PASSES:
                raise MegptError(
                    f"the workers died {fruitless} times in a row without writing one of {len(missing)} shards",
                    cause="too little memory for the model or the films, or nodes that come and go",
                    next="see the workers' logs in Ray's session folder; set a smaller generate.slots or shard_size",
                )
            progress.advance(plan.studies - sum(map(plan.rows_in, missing)) - progress.done)


def _pass(config: Config, plan: Plan, missing: list[int], archive: str, fingerprint: str) -> ray.data.Dataset:
    """Have shards written, in Ray Data's order; a row of counts each. Those of actors that die are left out."""
    cpus, decode_cpus = _cpu_shares(config)
    pool = ray.data.ActorPoolStrategy(
        min_size=min(config.cluster.min_workers, len(missing)),
        max_size=min(config.cluster.max_workers, len(missing)),
        max_tasks_in_flight_per_actor=CALLS_PER_ACTOR,
        max_concurrent_calls_per_actor=CALLS_PER_ACTOR,
        enable_true_multi_threading=True,
    )
    # One row a block: otherwise a small plan is one block, and one actor does everything.
    shards = ray.data.from_items([{"shard": n} for n in missing], override_num_blocks=len(missing))
    with warnings.catch_warnings():
        # Ray calls every way to say this deprecated, and has no other yet.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        written = shards.map_batches(
            ShardWorker,
            batch_size=1,
            compute=pool,
            num_cpus=cpus,
            num_gpus=config.cluster.gpus_per_worker or None,
            ray_remote_args_fn=lambda: {"max_task_retries": 0},
            fn_constructor_args=(config.to_yaml(), plan, archive, fingerprint, decode_cpus),
        )
    # Its own context, not the process's: other jobs may run in it.
    context = written.context
    quiet(context)
    context.max_errored_blocks = -1
    # A pool grows when its actors are full, and these never hold more calls than they work on: 1.0 is full.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    return written


def _cpu_shares(config: Config) -> tuple[float, float]:
    """Logical CPUs of an actor, and of a task that decodes for one.

    A worker's `cluster.cpus_per_worker` hold the actor and one of its tasks at least: were these to ask for CPUs of
    their own, then actors that fill a cluster would wait for ever for films.
    """
    cpus = config.cluster.cpus_per_worker
    task = cpus * DECODE_SHARE
    if not joined():
        # A local cluster counts more CPUs than there are cores: not more tasks at once than cores.
        actors = min(config.cluster.max_workers, worker_slots(config.cluster))
        left = ray.cluster_resources().get("CPU", 0.0) - actors * (cpus - task)
        task = max(task, left / (os.cpu_count() or 1))
    # Ray counts in ten-thousandths.
    return math.floor(cpus * (1 - DECODE_SHARE) * 1e4) / 1e4, max(math.floor(task * 1e4), 1) / 1e4


def _finish(config: Config, output: Output, plan: Plan, fingerprint: str, seconds: float) -> dict[str, int]:
    """Prove that the table is complete, then failed.parquet, run.json and, last, _SUCCESS."""
    reasons = table.check_complete(output.path, plan)
    counts = {"studies": plan.studies, **{name: reasons.get(name, 0) for name in ("stop", "length", "error")}}
    table.write_failed(output.path, plan)
    table.write_run(
        output.path,
        job="generate",
        backend=config.generate.backend,
        decoding={**config.generate.model_dump(mode="json"), "seed": config.seed},
        model=fingerprint,
        counts=counts,
        shards=plan.shards,
        seconds=round(seconds, 3),
        launches=table.launches(output.path),
        versions=table.versions(),
        config=config.model_dump(mode="json"),
    )
    output.finish(**counts)
    return counts


def _verdict(config: Config, counts: dict[str, int], folder: Path) -> int:
    failed, allowed = counts["error"], config.generate.max_failed_fraction
    if failed > allowed * counts["studies"]:
        raise TooManyFailed(
            f"{failed} of {counts['studies']} studies failed, more than generate.max_failed_fraction={allowed:g}",
            where=str(folder / table.FAILED),
            cause="see its column `error`",
            next=f"repair those films, then: megpt generate source={folder / table.FAILED} output=ANOTHER …",
        )
    return 0
