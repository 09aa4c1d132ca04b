"""Training from its newest checkpoint to its last step, on however many workers there are.

    summary = train_loop(config, output=Path("runs/checkpoint"), hooks=Hooks(validate=…))

Every worker of the process group calls it; without a group it trains in this process. Knows nothing of Ray: what a
cluster adds (notice of preemption, reports, validation) comes in as `Hooks`.

Why a resumed run is the uninterrupted one: the samples of a step follow from (seed, step), torch's random state is
set from (seed, step, piece) before every forward pass, the rate from the step; weights, moments and the step count
come from the checkpoint, in float32. Nothing else feeds into a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from megpt.config import Config
from megpt.progress import log
from megpt.training import state
from megpt.training.agreement import require_same_as_before, require_same_on_every_worker
from megpt.training.batches import Loader, MicroBatch
from megpt.training.checkpoints import CheckpointStore
from megpt.training.engine import (
    ensure_process_group,
    local_device,
    make_engine,
    set_learning_rate,
    share_threads,
    whole_model,
)
from megpt.training.features import FeatureCache, check_cache, feature_path
from megpt.training.log import Logbook
from megpt.training.memo import PromptMemo, is_of_use, prompt_path
from megpt.training.meter import Meter
from megpt.training.order import Cutting, GlobalOrder
from megpt.training.samples import Samples
from megpt.training.schedule import Schedule

STEPS = "steps"
PREEMPTION_EVERY = 10


@dataclass(frozen=True)
class Hooks:
    """What surrounds the loop.

    preempted: asked every few steps, by every worker alike: is a node about to go?
    report: told of each checkpoint, by every worker alike, with the newest figures.
    row: told of each log row, on worker 0.
    validate: (model, processor) → scores, by every worker alike, the same scores on all.
    best: scores → the number that picks the best checkpoint.
    """

    preempted: Callable[[], bool] = lambda: False
    report: Callable[[dict[str, float]], None] = lambda figures: None
    row: Callable[[dict[str, float]], None] = lambda figures: None
    validate: Callable[[nn.Module, Any], dict[str, float]] | None = None
    best: Callable[[dict[str, float]], float] = field(default=lambda scores: 0.0)


@dataclass(frozen=True)
class Parts:
    """What a run trains, and on what; made by `megpt.training.parts`."""

    model: nn.Module
    processor: Any
    samples: Samples
    folder: Path
    """On this node's own disk."""


def train_loop(
    config: Config, parts: Callable[[], Parts], *, output: Path, hooks: Hooks | None = None
) -> dict[str, Any]:
    """Train, validate, save, and export the checkpoint folder at `output`.

    Returns:
        The summary of the run (the same on every worker).

    Raises:
        MegptError: the loss is not a number, or storage failed.
        InputError: nothing to train on, a config that cannot be, or training studies that differ between the workers
            or from those the run began with.
    """
    check_cache(config)
    ensure_process_group(config.train.timeout_s)
    share_threads()
    with _Run(config, parts(), output, hooks or Hooks()) as run:
        run.train()
        return run.export()


class _Run:
    def __init__(self, config: Config, parts: Parts, output: Path, hooks: Hooks):
        self.config, self.train_config, self.output, self.hooks = config, config.train, output, hooks
        self.model, self.processor, self.samples = parts.model, parts.processor, parts.samples
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.device = local_device()
        require_same_on_every_worker(self.samples)
        self.order = GlobalOrder(len(self.samples), self.train_config.global_batch_size, config.seed)
        self.schedule = Schedule.of(self.train_config, self.order.steps_per_epoch)
        self.store = CheckpointStore(output / STEPS, keep=self.train_config.keep)
        self.cutting = Cutting.of(self.train_config.global_batch_size, self.train_config.micro_batch_size, self.world)
        self.failed: dict[str, str] = {}
        self.shapes = {name: parameter.shape for name, parameter in state.trainable(self.model)}
        self.cache = self._make_cache(parts.folder) if config.train.cache_features else None
        self.start = self._prepare()
        self.memo = self._make_memo(parts.folder)
        self.loader = Loader(
            self.samples,
            self.order,
            self.cutting,
            rank=self.rank,
            process=lambda films: self.processor(images=films, return_tensors="pt"),
            image_size=self.processor.image_size,
            data=config.data,
            threads=self.train_config.loader_workers,
            last_step=self.schedule.total_steps,
            **({"stored_views": self.cache.views} if self.cache else {}),
        )
        self.meter = Meter(self.device, self.order, self.samples)
        self.logbook = Logbook(output, config, start_step=self.start) if self.rank == 0 else None

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.loader.__exit__(None, None, None)
        if self.logbook:
            self.logbook.close()
        if kind is None:
            self.store.close()

    def _make_cache(self, folder: Path) -> FeatureCache:
        dtype = torch.bfloat16 if self.train_config.precision == "bf16" else torch.float32
        path = feature_path(self.config, folder)
        return FeatureCache(path, self.model.vision, self.samples.num_views, dtype=dtype)

    def _make_memo(self, folder: Path) -> PromptMemo | None:
        bank: Any = self.model.bank
        if not is_of_use(self.config, bank) or self.engine.zero_optimization_stage() == 3:
            return None
        return PromptMemo(prompt_path(self.config, bank, folder), len(self.samples), len(bank.texts))

    def _prepare(self) -> int:
        """Weights and optimizer from the newest checkpoint; the steps it has done.

        Worker 0 alone decides which checkpoint is the newest, so that all start from the same one.
        """
        found = self.store.newest() if self.rank == 0 else None
        path = _broadcast(str(found.path) if found else None)
        if path is None:
            self.engine = make_engine(self.model, self.train_config)
            return 0
        found = self.store.at(Path(path))
        require_same_as_before(self.samples, found.meta)
        tensors = found.tensors()
        state.load_weights(self.model, tensors)
        self.engine = make_engine(self.model, self.train_config)
        state.restore(self.engine, tensors, step=found.step)
        self.failed = dict(found.meta["failed"])
        if self.rank == 0:
            log(f"resuming from step {found.step} of {self.schedule.total_steps} ({found.path})")
        return found.step

    # ---- steps -----------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """All steps that are left."""
        self.engine.train()
        self._validate_late()
        every = min(PREEMPTION_EVERY, self.train_config.log_every)
        warned = False
        for step in range(self.start, self.schedule.total_steps):
            self._step(step)
            done = step + 1
            if done % self.train_config.log_every == 0 or done == self.schedule.total_steps:
                self._log(done)
            if not warned and done % every == 0 and self.hooks.preempted():
                warned = True
                self._save(done)
                self.store.wait()
                if self.rank == 0:
                    log(f"a node is about to go: step {done} is saved")
            elif self.schedule.saves_after(done):
                self._save(done)
            if self.schedule.validates_after(done):
                self._validate(done)

    def _step(self, step: int) -> None:
        set_learning_rate(self.engine, rate := self.schedule.learning_rate(step))
        batches = self.loader.step(step)
        items = self.loader.num_tokens(step) / (self.world * self.cutting.slots)
        losses = []
        for slot, batch in enumerate(batches):
            self._note_failed(batch)
            seed_torch(self.config.seed, step, slot * self.world + self.rank)
            with self.meter.count_flops(len(batch.indices)):
                out = self._forward(batch, items)
                self.engine.backward(out.loss)
            self.engine.step()
            losses.append(torch.stack((out.cross_entropy.detach().float(), out.l2.detach().float())))
        self.meter.add(step, torch.stack(losses).mean(0), rate)

    def _forward(self, batch: MicroBatch, items: float) -> Any:
        inputs = {
            "pixel_values": batch.pixel_values.to(self.device, non_blocking=True),
            "view_mask": batch.view_mask.to(self.device, non_blocking=True),
            "labels": batch.labels.to(self.device, non_blocking=True),
        }
        failed = set(batch.failed)
        if self.memo is not None and len(batch.indices):
            out = self.engine(
                **inputs, num_items_in_batch=items, prompt_id=self.memo.known(batch.indices).to(self.device)
            )
            self.memo.keep(batch.indices, out.prompt_id, failed)
            return out
        if self.cache is None:
            return self.engine(**inputs, num_items_in_batch=items)
        with self.cache.around(batch.indices, inputs["view_mask"], failed=failed, stored=batch.stored):
            return self.engine(**inputs, num_items_in_batch=items)

    def _note_failed(self, batch: MicroBatch) -> None:
        for index, reason in batch.failed.items():
            study = self.samples.study(index).study_id
            if study not in self.failed:
                log(f"warning: study {study} has no readable film and is left out of the loss: {reason}")
                self.failed[study] = reason

    # ---- figures, checkpoints, validation --------------------------------------------------------------------------

    def _log(self, done: int) -> dict[str, float]:
        """Figures of the step just done, the same on all workers. Raises when a loss was not finite."""
        figures = self.meter.figures(self.engine, self.loader)
        figures["epoch"] = done / self.schedule.steps_per_epoch
        figures["total_steps"] = self.schedule.total_steps
        figures["failed"] = len(self.failed)
        if self.logbook:
            self.logbook.write(done, figures)
            self.hooks.row({"step": done, **figures})
        return figures

    def _save(self, done: int) -> None:
        """Hand the state to the writing thread; every worker takes part in gathering it."""
        self.meter.check_finite()
        tensors = state.snapshot(self.engine, keep=self.rank == 0)
        self._share_failed()
        if self.rank == 0:
            place = self.order.position(done)
            meta = {
                "step": done,
                "total_steps": self.schedule.total_steps,
                "epoch": place.epoch,
                "step_in_epoch": place.step_in_epoch,
                "num_samples": len(self.samples),
                "samples": self.samples.fingerprint,
                "global_batch_size": self.train_config.global_batch_size,
                "seed": self.config.seed,
                "random_state": "torch is seeded from (seed, step, piece) before each forward pass",
                "lr": self.schedule.learning_rate(done - 1),
                "failed": self.failed,
            }
            self.store.save(tensors, meta)
        self.hooks.report({"step": done, **self.meter.last})

    def _share_failed(self) -> None:
        shares: list[dict[str, str]] = [{} for _ in range(self.world)]
        dist.all_gather_object(shares, self.failed)
        for share in shares:
            self.failed |= share

    def _validate(self, done: int) -> None:
        if self.hooks.validate is None:
            return
        with whole_model(self.engine) as model:
            scores = self.hooks.validate(model, self.processor)
        self.engine.train()
        best = self.hooks.best(scores)
        figures = {f"val_{name}": value for name, value in scores.items()} | {"val_best_metric": best}
        if self.logbook:
            if self.store.note_score(done, best):
                log(f"step {done}: best so far, {self.train_config.best_metric} = {best:.4f}")
            self.logbook.write(done, figures)
            self.hooks.row({"step": done, **figures})
        self.meter.restart_clock(self.loader)

    def _validate_late(self) -> None:
        """The validation of the checkpoint that is resumed from, where the run was killed before it was through."""
        if self.hooks.validate and self.start and self.schedule.validates_after(self.start):
            done = self.logbook.validated if self.logbook else None
            if not _broadcast(done):
                self._validate(self.start)

    # ---- the end ---------------------------------------------------------------------------------------------------

    def export(self) -> dict[str, Any]:
        """Write the Hugging Face folder from the best checkpoint, or else the last; a collective."""
        from megpt.training.export import export

        self._share_failed()
        if self.rank == 0:
            self.store.wait()
        with whole_model(self.engine) as model:
            summary = (
                export(
                    model,
                    self.processor,
                    self.store,
                    self.output,
                    shapes=self.shapes,
                    samples=self.samples,
                    failed=self.failed,
                )
                if self.rank == 0
                else None
            )
        return dict(_broadcast(summary))


def seed_torch(seed: int, step: int, piece: int) -> None:
    """Every random number of a forward pass follows from these three."""
    words = np.random.SeedSequence([seed & (2**63 - 1), step, piece]).generate_state(1, np.uint64)
    torch.manual_seed(int(words[0]) >> 1)


def _broadcast(value: Any) -> Any:
    """Worker 0's value, on every worker."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
