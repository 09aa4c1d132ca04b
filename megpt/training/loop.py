"""Training from its newest checkpoint to its last step, on any number of workers.

    summary = train_loop(config, lambda: make_parts(config), output=Path("runs/checkpoint"), hooks=Hooks(validate=…))

Every worker of the process group calls it; without a group it trains in this process. Knows nothing of Ray: what a
cluster adds (notice of preemption, reports, validation) comes in as `Hooks`.

Why a resumed run equals the uninterrupted one: the samples of a step follow from (seed, step), torch's random state is
set from (seed, step, piece) before every forward pass, the rate from the step; weights, moments and the step count
come from the checkpoint, in float32. Nothing else enters a step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from megpt.config import Config, TrainConfig
from megpt.model import PromptBank, build_model
from megpt.model.checkpoint.decoding import carry
from megpt.model.checkpoint.fetch import local_folder
from megpt.model.checkpoint.start import start_from
from megpt.model.context import Context
from megpt.places import here, is_address
from megpt.places.whole import put_tree, staged
from megpt.progress import log
from megpt.training.batches import Loader
from megpt.training.checkpoints import CheckpointStore, export
from megpt.training.deepspeed import check_together, zero_stage
from megpt.training.engine import ensure_process_group, local_device, set_learning_rate, share_machine, whole_model
from megpt.training.log import Logbook
from megpt.training.memo import open_memo
from megpt.training.meter import Meter
from megpt.training.observations import Observe, open_observations, rarity
from megpt.training.order import Cutting, GlobalOrder
from megpt.training.sameness import require_same_on_every_worker
from megpt.training.samples import (
    Samples,
    open_samples,
    sample_folder,
    tokenizer_for,
    training_origin,
    training_studies,
)
from megpt.training.schedule import Schedule
from megpt.training.state import Hooks, Run, broadcast, resume, save, seed_torch, trainable

STEPS = "steps"
PREEMPTION_EVERY = 10


@dataclass(frozen=True)
class Parts:
    """What a run trains, and on what."""

    model: nn.Module
    processor: Any
    samples: Samples
    folder: Path
    """On this node's own disk."""
    observations: NDArray[Any] | None = None
    """(N, 14) bool of the samples, where the run balances them or learns them."""


def make_parts(config: Config, observe: Observe | None = None) -> Parts:
    """Build the model from its settings and seed, and open (or write) this node's sample file; alike on every worker.

    Args:
        observe: reads the observations of reports, for `train.balance` and `train.label_loss`.

    Raises:
        InputError: weights, prompts or studies that are missing or do not fit.
    """
    model, processor = build_model(
        config.model,
        bank=PromptBank.load(here(config.prompts)) if config.prompts else None,
        seed=config.seed,
        l2=config.train.l2,
        loss_chunk=config.train.loss_chunk,
        dtype=torch.bfloat16 if config.train.precision == "bf16" else torch.float32,
    )
    if model.findings is not None:
        model.findings.scale = config.train.label_loss
    if config.checkpoint:
        start = start_from(model, local_folder(config.checkpoint))
        if dist.get_rank() == 0:
            for line in start.lines():
                log(f"train: {line}")
    carry(model.generation_config, config.generate)
    context = Context.of(config.model, processor.tokenizer)
    samples = open_samples(
        lambda: training_studies(config),
        folder=sample_folder(config),
        data=config.data,
        tokenize=tokenizer_for(processor.tokenizer, config.train.max_report_tokens),
        context=context.ids,
    )
    observations, folder = None, sample_folder(config)
    if needs_observations(config):
        if observe is None:
            raise ValueError("train.balance and train.label_loss need `observe`")
        observations = open_observations(samples, lambda: training_studies(config), folder, config.data, observe)
    if told := context.told():  # by the process that has read the texts
        log(f"train: {told}")
    return Parts(model, processor, samples, folder, observations)


def draw_weights(made: Parts, train: TrainConfig) -> NDArray[np.float64] | None:
    """How often each sample is drawn, relative to the others; None for all alike."""
    if made.observations is None or train.balance != "findings":
        return None
    return rarity(made.observations, power=train.balance_power)


def needs_observations(config: Config) -> bool:
    """Whether a run has to know what its reports say."""
    return config.train.balance != "none" or config.train.label_loss > 0


@contextlib.contextmanager
def workplace(output: Path, store: CheckpointStore, *, rank: int) -> Iterator[Path]:
    """Where the log and the exported folder are written: the output, or for an address a folder of this machine.

    That one begins with the log of the earlier starts, and is put with each checkpoint and at the end. Rank 0 writes.
    """
    if rank or not is_address(output):
        yield output
        return
    with staged(output) as folder:
        for old in (output / "log.jsonl", *(output / "tensorboard").glob("*")):
            if old.is_file():
                copy = folder / old.relative_to(output)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(old.read_bytes())
        store.before = lambda: put_tree(folder, output)
        yield folder


def train_loop(
    config: Config, parts: Callable[[], Parts], *, output: Path, hooks: Hooks | None = None
) -> dict[str, Any]:
    """Train, validate, save, and export the checkpoint folder at `output`.

    Returns:
        The summary of the run (the same on every worker).

    Raises:
        MegptError: the loss is not a number, or storage failed.
        InputError: nothing to train on, an impossible config, or studies unlike another worker's or an earlier start's.
    """
    check_together(config)
    ensure_process_group(config.train.timeout_s)
    share_machine()
    made, hooks, train = parts(), hooks or Hooks(), config.train
    model, samples, rank, world = made.model, made.samples, dist.get_rank(), dist.get_world_size()
    require_same_on_every_worker(samples)
    shapes = {name: parameter.shape for name, parameter in trainable(model)}
    memo = open_memo(config, model, samples, made.folder, zero_stage=zero_stage(train, world))
    order = GlobalOrder(len(samples), train.global_batch_size, config.seed, draw_weights(made, train))
    schedule = Schedule.of(train, order.steps_per_epoch)
    store = CheckpointStore(output / STEPS, keep=train.keep)
    engine, step, failed = resume(config, model, samples, store)
    loader = Loader(
        samples,
        order,
        Cutting.of(train.global_batch_size, train.micro_batch_size, world),
        rank=rank,
        processor=made.processor,
        data=config.data,
        threads=train.loader_workers,
        last_step=schedule.total_steps,
        with_context=bool(config.model.context),
        stored_views=memo.stored_views,
        observations=made.observations if train.label_loss else None,
    )
    run = Run(config, hooks, schedule, loader, memo, engine, store, Meter(local_device(), loader), step, failed)
    with (
        workplace(output, store, rank=rank) as folder,
        loader,
        Logbook(folder, config, start_step=step, rank=rank, row=hooks.row) as logbook,
    ):
        take_all_steps(run, made.processor, logbook)
        store.wait()
        with whole_model(engine) as whole:
            summary = broadcast(
                export(
                    *(whole, made.processor, store, folder),
                    shapes=shapes,
                    samples=samples,
                    failed=run.failed,
                    origin=training_origin(config),
                    ready=hooks.exported,
                )
                if rank == 0
                else None
            )
    store.close()
    return dict(summary)


def take_all_steps(run: Run, processor: Any, logbook: Logbook) -> None:
    """Every step that is left, with its log rows, checkpoints and validations."""
    schedule, every = run.schedule, min(PREEMPTION_EVERY, run.config.train.log_every)
    noticed = False
    run.engine.train()
    # A run that was killed during a validation makes it up before its next step.
    if run.step and schedule.validates_after(run.step) and not broadcast(logbook.validated):
        validate(run, processor, logbook)
    while run.step < schedule.total_steps:
        take_step(run)
        done = run.step
        if done % run.config.train.log_every == 0 or done == schedule.total_steps:
            progress = {"epoch": done / schedule.steps_per_epoch, "total_steps": schedule.total_steps}
            logbook.write(done, run.meter.figures(run.engine) | progress | {"failed": len(run.failed)})
        if not noticed and done % every == 0 and run.hooks.preempted():
            noticed = True
            save(run)
            run.store.wait()
            if dist.get_rank() == 0:
                log(f"a node is about to go: step {done} is saved")
        elif schedule.saves_after(done):
            save(run)
        if schedule.validates_after(done):
            validate(run, processor, logbook)


def take_step(run: Run) -> None:
    """One optimizer step on this worker's part of the global batch."""
    step, loader, world = run.step, run.loader, dist.get_world_size()
    set_learning_rate(run.engine, rate := run.schedule.learning_rate(step))
    passes = world * loader.cutting.slots
    whole = {"num_items_in_batch": loader.num_tokens(step) / passes}
    losses = []
    for slot, batch in enumerate(loader.step(step)):
        for index, reason in batch.failed.items():
            study = loader.samples.study(index).study_id
            if study not in run.failed:
                log(f"warning: study {study} has no readable film and is left out of the loss: {reason}")
                run.failed[study] = reason
        tensors = {name: getattr(batch, name) for name in ("pixel_values", "view_mask", "labels")}
        if batch.observations is not None:
            tensors["observations"] = batch.observations
            whole["num_studies_in_batch"] = len(loader.order.batch(step)) / passes
        if batch.context_ids is not None:
            tensors["context_ids"] = batch.context_ids
        inputs = {name: tensor.to(run.meter.device, non_blocking=True) for name, tensor in tensors.items()}
        seed_torch(run.config.seed, step, slot * world + loader.rank)
        with run.meter.count_flops(len(batch.indices)):
            out = run.memo.forward(run.engine, batch, inputs | whole)
            run.engine.backward(out.loss)
        run.engine.step()
        parts = [part for part in (out.cross_entropy, out.l2, out.label_loss) if part is not None]
        losses.append(torch.stack([part.detach().float() for part in parts]))
    run.meter.add(step, torch.stack(losses).mean(0), rate)
    run.step += 1


def validate(run: Run, processor: Any, logbook: Logbook) -> None:
    """Score the reports for the validation split, and pin the checkpoint if it is the best so far. A collective."""
    if run.hooks.validate is None:
        return
    with whole_model(run.engine) as model:
        scores = run.hooks.validate(model, processor)
    run.engine.train()
    best = run.hooks.best(scores)
    if dist.get_rank() == 0 and run.store.note_score(run.step, best):
        log(f"step {run.step}: best so far, {run.config.train.best_metric} = {best:.4f}")
    logbook.write(run.step, {f"val_{name}": value for name, value in scores.items()} | {"val_best_metric": best})
    run.meter.restart_clock()
