"""Reports for a whole archive, each study exactly once, on Ray Data.

    megpt generate --config configs/phantom.yaml source=/data/archive checkpoint=runs/demo/checkpoint output=runs/out

A shard list on disk cuts the archive into shards (megpt/data/shards.py). Ray Data hands shard numbers to a pool of
actors, each with the model on its GPU or share of one; an actor asks CPU tasks to decode its films ahead of itself,
writes the reports of one shard behind the other (ray_jobs/generate/lane.py), and a file for each. Nothing else passes
through the object store, so memory does not depend on the archive.

With one worker and no cluster around, all this happens in the command's own process (ray_jobs/generate/here.py).

Why a kill at any moment is safe: a shard's file gets its name, by a rename, only when all of its rows are in it. A
process that is killed before that has done nothing, and one that is killed after it has done everything. If two actors
write the same shard, because one of them was believed lost, they write the same reports to the same file. Shards
without a file are still to do. A study's text does not depend on those beside it, so a resumed run gives the table of
an uninterrupted one.

Why a lost node does not delay the others: Ray would keep a dead actor's shards until the actor restarts, which never
happens if nothing replaces its machine. Here such a shard is given up at once and done in the next pass over the shards
without a file. An error of the shard itself is not treated this way: it is returned as a value.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megpt import places
from megpt.config import Config, GenerateConfig
from megpt.data.growth import Intake, choice_of
from megpt.data.parquet import check_columns
from megpt.data.shards import ShardList
from megpt.data.sources import open_source
from megpt.errors import MegptError, TooManyFailed, from_json
from megpt.generation.predictions import (
    FAILED,
    LIST,
    Predictions,
    finished_shards,
    remove_leftovers,
    studies_of_split,
)
from megpt.generation.run_status import record_launch
from megpt.model.checkpoint.decoding import described
from megpt.model.checkpoint.fetch import local_folder, pinned
from megpt.model.checkpoint.fingerprint import is_own
from megpt.output import SUCCESS
from megpt.progress import Progress, log
from megpt.study import PREDICTIONS_SCHEMA
from ray_jobs.counting import Count
from ray_jobs.generate.checkpoint import check_weights, checkpoint_fingerprint, decoding
from ray_jobs.job import Job, absolute
from ray_jobs.placement import cpu_shares, elsewhere
from ray_jobs.runtime import quiet

if TYPE_CHECKING:
    import ray.data

# Consecutive passes that may end without a new shard, as when actors die faster than they write.
FRUITLESS_PASSES = 3
# More waiting for films than this, in seconds and as a share of all, is told.
LONG_S, MOST_WAITING = 10.0, 0.1


def held_out(config: Config) -> Config:
    """The config with the test split if none is chosen: a score of training studies says nothing."""
    return config.overridden({"generate.split": "test"}) if config.generate.split == "all" else config


class Generate(Job):
    name = "generate"
    reads = (
        *("source", "studies", "checkpoint", "ids", "retry", "limit", "seed", "generate", "model.llm"),
        *("data.format", "data.reports", "data.annotations", "data.columns", "data.encoding", "data.delimiter"),
        *("data.roots", "data.section", "data.max_views", "data.changed", "data.max_pixels", "data.options"),
        *("data.study_id", "data.subject_id", "data.modalities"),
    )
    needs = ("checkpoint",)
    grows = True
    staged = False
    seconds = waited = 0.0
    """Of this start's workers: all, and those in which the model had no films."""

    def open(self) -> None:
        _, path = self.config.input_of("source", "studies")
        # Workers, which start in folders of their own, get its paths.
        self.source = open_source(places.absolute(path), data=self.config.data)
        self.fingerprint = checkpoint_fingerprint(self.config)
        self.choice = choice_of(self.config)
        # Only from the command line: the config of a training run names the language model for training.
        self.llm = absolute(self.config).model.llm if "model.llm" in self.config.named else None
        self.config = self.config.updated(checkpoint=pinned(str(self.config.checkpoint)))
        rules, self.origins = self._decoding()
        self.config = self.config.updated(generate=rules.model_dump(mode="json"))

    def _decoding(self) -> tuple[GenerateConfig, dict[str, str]]:
        return decoding(self.config, self.llm)

    def _check_weights(self) -> None:
        if is_own(checkpoint := local_folder(str(self.config.checkpoint))):
            check_weights(checkpoint, self.llm)

    def identity(self) -> dict[str, Any]:
        # The language model is checked against the checkpoint's hash, so its place does not count.
        return self.config.identity(*(key for key in self.reads if key != "model.llm")) | self.inputs()

    def inputs(self) -> dict[str, Any]:
        """The model, and which archive, but not what this holds: it may grow."""
        return {"checkpoint": self.fingerprint, "source": self.source.identity}

    def preview(self, folder: Path) -> None:
        self._check_weights()
        log(f"generate: decoding: {described(self.config.generate, self.origins)}")
        earlier = Predictions.open(folder)
        left = earlier.left() if earlier else []
        new = self._beyond(folder)
        studies = new + (earlier.count(left) if earlier else 0)
        shards = len(left) + math.ceil(new / self.config.generate.shard_size)
        log(f"generate: would write {studies} reports from {self.source.place} in {shards} shards to {folder}")

    def has_grown(self, folder: Path) -> bool:
        return self._beyond(folder) > 0

    def _beyond(self, folder: Path) -> int:
        """How many studies the source holds, of those that are wanted, beyond the list.

        Raises:
            InputError: as a first start would raise it.
        """
        self.source.keep_in(folder.absolute(), write=False)
        if ShardList.load(folder / LIST) is None:
            with tempfile.TemporaryDirectory() as scratch:
                first = self._list(Path(scratch), self._intake(folder))
                for line in first.said():
                    log(f"generate: {line}")
                return first.shards.studies
        with self._intake(folder) as intake:
            return sum(1 for _ in intake.studies(studies_of_split(self.source, self.config.generate.split)))

    def needs_ray(self) -> bool:
        return False

    def plan(self, folder: Path) -> bool:
        remove_leftovers(folder)
        folder = folder.absolute()
        self.source.keep_in(folder)
        with self._intake(folder) as intake:
            self.predictions = self._list(folder, intake)
        for line in [*(self.predictions.said() if intake.new else ()), *intake.lines()]:
            log(f"generate: {line}")
        self.predictions.drop_superseded()
        left = self.predictions.left()
        if left or not (folder / SUCCESS).exists():
            studies = self.predictions.shards.studies
            log(f"generate: decoding: {described(self.config.generate, self.origins)}")
            record_launch(folder, started=time.time(), host=os.uname().nodename, studies=studies)
        return bool(left)

    def _intake(self, folder: Path) -> Intake:
        if earlier := Predictions.open(folder):
            for shard in earlier.finished()[:1]:
                check_columns(earlier.path(shard), PREDICTIONS_SCHEMA, folder)
        failed = earlier.failed_ids() if earlier and self.config.retry else frozenset[str]()
        base, whole = earlier.shards if earlier else None, self.source.whole
        return Intake(base, self.choice, output=folder, failed=failed, whole=whole)

    def _list(self, folder: Path, intake: Intake) -> Predictions:
        rules = self.config.generate
        return Predictions.create(folder, self.source, split=rules.split, shard_size=rules.shard_size, intake=intake)

    def work(self, folder: Path) -> None:
        """Passes over the shards that have no file, until there are none."""
        context: Counter[str] = Counter()
        missing, fruitless, studies = self.predictions.left(), 0, self.predictions.shards.studies
        done, before = studies - self.predictions.count(missing), self.predictions.reasons()
        with Progress("generate", studies, start=done, failed=before, live=True) as progress:
            while missing:
                count = Count(progress, self.config.generate)
                count.check()
                with contextlib.closing(self._written(missing, count)) as rows:
                    for row in rows:
                        if row["error"]:
                            raise from_json(str(row["error"]))
                        context.update(json.loads(row["context"]))
                        self.seconds += float(row["seconds"])
                        self.waited += float(row["waited"])
                        count.finished(str(row["shard"]), int(row["studies"]), json.loads(row["reasons"]))
                tried, missing = missing, self.predictions.left()
                fruitless = fruitless + 1 if len(missing) == len(tried) else 0
                if fruitless == FRUITLESS_PASSES:
                    raise MegptError(
                        f"the workers died {fruitless} times in a row without writing one of {len(missing)} shards",
                        cause="too little memory for the model or the films, or nodes that come and go",
                        next="see the workers' logs in Ray's session folder; "
                        "set a smaller generate.slots or shard_size",
                    )
                progress.advance(studies - self.predictions.count(missing) - progress.done)
        if self.waited > max(LONG_S, MOST_WAITING * self.seconds):
            share = 100 * self.waited / self.seconds
            log(f"generate: the model waited for films {share:.0f} % of the time: set a larger generate.decode_workers")
        if n := context:  # of the model's prompts; those of an earlier start were told then
            cut = f"a section of {n['cut']} was cut to the model's context_tokens"
            log(f"generate: {n['without']} of {n['studies']} studies have no context for the prompt; {cut}")

    def _written(self, missing: list[int], count: Count) -> Generator[dict[str, Any], None, None]:
        """Have shards written; a row of counts each, as they come."""
        if not self.in_process:
            from ray_jobs.watched import watched

            return watched(self._pass(missing, count.run), self.config.cluster, count)
        from ray_jobs.generate.here import written_here

        named = {"archive": self.source.place, "fingerprint": self.fingerprint, "llm": self.llm}
        return written_here(absolute(self.config), self.predictions, missing, count, **named)

    def _pass(self, missing: list[int], run: str) -> ray.data.Dataset:
        """Have shards written, in Ray Data's order; a row of counts each. Those of actors that die are left out."""
        import ray.data
        from ray.util.annotations import RayDeprecationWarning

        from ray_jobs.generate.worker import ShardWorker, calls_per_actor

        config, calls = absolute(self.config), calls_per_actor(self.config.generate)
        cpus, decode_cpus = cpu_shares(config.cluster)
        pool = ray.data.ActorPoolStrategy(
            min_size=min(config.cluster.min_workers, len(missing)),
            max_size=min(config.cluster.max_workers, len(missing)),
            max_tasks_in_flight_per_actor=calls,
            max_concurrent_calls_per_actor=calls,
            enable_true_multi_threading=True,
        )
        archive = self.source.place
        # One row a block: otherwise a small list is one block, and one actor does everything.
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
                ray_remote_args_fn=lambda: {"max_task_retries": 0} | elsewhere(),
                fn_constructor_args=(
                    config.to_yaml(),
                    self.predictions,
                    archive,
                    self.fingerprint,
                    {"num_cpus": decode_cpus} | elsewhere(),
                    run,
                    self.llm,
                ),
            )
        # Its own context, not the process's: other jobs may run in it.
        context = written.context
        quiet(context)
        context.max_errored_blocks = -1
        # A pool grows when its actors are full, and these never hold more calls than they work on: 1.0 is full.
        context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
        return written

    def finish(self, folder: Path) -> dict[str, Any]:
        """Prove that the table is complete, then write failed.parquet and run.json."""
        config = self.config
        return self.predictions.finish(
            seconds=time.monotonic() - self.began,
            config=config.model_dump(mode="json"),
            backend=config.generate.backend,
            decoding={**config.generate.model_dump(mode="json"), "seed": config.seed},
            model=self.fingerprint,
            film_wait=round(self.waited / self.seconds, 4) if self.seconds else None,
        )

    def kept(self, folder: Path) -> bool:
        return bool(finished_shards(folder))

    def tell(self, folder: Path, summary: dict[str, Any]) -> None:
        log(f"generate: {summary['studies']} studies, {summary['error']} of them without a report, in {folder}")

    def verdict(self, folder: Path, summary: dict[str, Any]) -> None:
        failed, allowed = summary["error"], self.config.generate.max_failed_fraction
        if failed > allowed * summary["studies"]:
            raise TooManyFailed(
                f"{failed} of {summary['studies']} studies failed, more than generate.max_failed_fraction={allowed:g}",
                where=str(folder / FAILED),
                cause="see its column `error`",
                next="repair those films and run the same command again with retry=failed",
            )
