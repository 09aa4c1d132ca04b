"""What a run holds between two steps, saved and resumed at any ZeRO stage and number of workers.

    engine, step, failed = resume(config, model, samples, store)      # every rank calls, as it does all below
    save(run)
    tensors = snapshot(engine, keep=True)      # {"master/NAME": …, "exp_avg/NAME": …}
    load_weights(model, tensors)               # before DeepSpeed takes the model over
    restore(engine, tensors, step=120)         # after that

DeepSpeed's own checkpoints hold one file per rank and load at the world size that wrote them. What megpt trains is
small (the frozen language model is not in it), so it is gathered in full: float32 master weights and both moments
of Adam. DeepSpeed's public `safe_get/set_*` reach into its partitions; only the state that Adam creates at its first
step has to be created by hand before it can be filled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from megpt.config import Config
from megpt.errors import MegptError
from megpt.progress import log
from megpt.training.batches import Loader
from megpt.training.checkpoints import BUFFER, MASTER, CheckpointStore
from megpt.training.engine import make_engine
from megpt.training.memo import Memo
from megpt.training.meter import Meter
from megpt.training.sameness import require_same_as_before
from megpt.training.samples import Samples
from megpt.training.schedule import Schedule

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Hooks:
    """The surroundings of the loop.

    preempted: whether a node is about to go; every worker asks every few steps.
    report: called by every worker after each checkpoint, with the newest figures.
    row: called with each log row, on worker 0.
    validate: (model, processor) → scores; every worker calls it, and gets the same scores.
    best: scores → the number that picks the best checkpoint.
    exported: (model, processor) → more of the run's summary; called on worker 0 with the weights to be exported.
    """

    preempted: Callable[[], bool] = lambda: False
    report: Callable[[dict[str, float]], None] = lambda figures: None
    row: Callable[[dict[str, float]], None] = lambda figures: None
    validate: Callable[[nn.Module, Any], dict[str, float]] | None = None
    best: Callable[[dict[str, float]], float] = field(default=lambda scores: 0.0)
    exported: Callable[[nn.Module, Any], dict[str, Any]] = lambda model, processor: {}


@dataclass
class Run:
    """A run between two steps. The last two fields are all that changes outside of the engine."""

    config: Config
    hooks: Hooks
    schedule: Schedule
    loader: Loader
    memo: Memo
    engine: Any
    store: CheckpointStore
    meter: Meter
    step: int
    """Optimizer steps done."""
    failed: dict[str, str]
    """Study id → why its films could not be read. Each worker has its own until a checkpoint shares them."""


def resume(
    config: Config, model: nn.Module, samples: Samples, store: CheckpointStore
) -> tuple[Any, int, dict[str, str]]:
    """DeepSpeed's engine with the weights and moments of the newest checkpoint, its steps and its unreadable studies.

    Rank 0 alone decides which checkpoint is the newest, so that all workers start from the same one. A collective.
    """
    newest = store.newest() if dist.get_rank() == 0 else None
    path = broadcast(newest.path if newest else None)
    if path is None:
        return make_engine(model, config.train), 0, {}
    checkpoint = store.at(path)
    require_same_as_before(samples, checkpoint.meta)
    tensors = checkpoint.tensors()
    load_weights(model, tensors)
    engine = make_engine(model, config.train)
    restore(engine, tensors, step=checkpoint.step)
    if dist.get_rank() == 0:
        log(f"resuming from step {checkpoint.step} of {checkpoint.meta['total_steps']} ({checkpoint.path})")
    return engine, checkpoint.step, dict(checkpoint.meta["failed"])


def save(run: Run) -> None:
    """Hand the state to the writing thread. A collective: all workers gather it, and share their unreadable studies."""
    run.meter.check_finite()
    tensors = snapshot(run.engine, keep=dist.get_rank() == 0)
    shares: list[dict[str, str]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(shares, run.failed)
    for share in shares:
        run.failed |= share
    if dist.get_rank() == 0:
        meta = {
            "step": run.step,
            "total_steps": run.schedule.total_steps,
            "num_samples": len(run.loader.samples),
            "samples": run.loader.samples.fingerprint,
            "global_batch_size": run.config.train.global_batch_size,
            "seed": run.config.seed,
            "lr": run.schedule.learning_rate(run.step - 1),
            "failed": run.failed,
        }
        run.store.save(tensors, meta | asdict(run.loader.order.position(run.step)))
    run.hooks.report({"step": run.step, **run.meter.last})


def seed_torch(seed: int, step: int, piece: int) -> None:
    """Make every random number of a forward pass follow from these three."""
    words = np.random.SeedSequence([seed & (2**63 - 1), step, piece]).generate_state(1, np.uint64)
    torch.manual_seed(int(words[0]) >> 1)


def broadcast(value: Any) -> Any:
    """Rank 0's value, on every worker."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that are trained, by name."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def trained_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers that training changes: those beside trained parameters (the running statistics of a batch norm)."""
    persistent = model.state_dict().keys() if any(True for _ in model.buffers()) else ()
    for prefix, module in model.named_modules():
        if any(p.requires_grad for p in module.parameters(recurse=False)):
            for name, buffer in module.named_buffers(recurse=False):
                full = f"{prefix}.{name}" if prefix else name
                if full in persistent:
                    yield full, buffer


def snapshot(engine: Any, *, keep: bool) -> dict[str, Tensor]:
    """The whole trainable state on the CPU. A collective: every rank calls, those with `keep` get the tensors.

    The tensors are copies, so that training can continue while they are written.
    """
    tensors: dict[str, Tensor] = {}
    _link_moments(engine)
    for name, parameter in trainable(engine.module):
        for role in (MASTER, *MOMENTS):
            value = _get(engine, parameter, role)
            if keep:
                tensors[f"{role}/{name}"] = value.detach().to("cpu", torch.float32, copy=True).contiguous()
    if keep:
        for name, buffer in trained_buffers(engine.module):
            tensors[f"{BUFFER}/{name}"] = buffer.detach().to("cpu", copy=True).contiguous()
    return tensors


def load_weights(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy master weights and buffers into a model that DeepSpeed has not taken over yet.

    Raises:
        MegptError: the state belongs to another model.
    """
    expected: dict[str, Tensor] = {f"{MASTER}/{name}": p for name, p in trainable(model)}
    expected |= {f"{BUFFER}/{name}": b for name, b in trained_buffers(model)}
    stored = {key: value for key, value in tensors.items() if key.split("/", 1)[0] in (MASTER, BUFFER)}
    differing = [k for k in expected.keys() | stored.keys() if k not in expected or k not in stored] or [
        k for k in expected if expected[k].shape != stored[k].shape and stored[k].numel() != 1
    ]
    if differing:
        raise MegptError(
            f"the checkpoint does not fit the model: {len(differing)} tensors differ, first {sorted(differing)[0]}",
            cause="it was written by a run with other model.* settings",
            next="choose another output=PATH",
        )
    with torch.no_grad():
        for key, target in expected.items():
            target.copy_(stored[key].view_as(target))


def restore(engine: Any, tensors: dict[str, Tensor], *, step: int) -> None:
    """Fill the optimizer of a fresh engine; the weights are already in the model. A collective.

    Args:
        step: optimizer steps done, which Adam's bias correction counts.
    """
    _make_adam_state(engine, step)
    for name, parameter in trainable(engine.module):
        for role in (MASTER, *MOMENTS):
            _set(engine, parameter, role, tensors[f"{role}/{name}"])


def _is_plain(engine: Any) -> bool:
    """Without ZeRO and in float32 the engine holds the torch optimizer itself, and the weights are the masters."""
    return isinstance(engine.optimizer, torch.optim.Optimizer)


def _get(engine: Any, parameter: nn.Parameter, role: str) -> Tensor:
    if _is_plain(engine):
        return parameter if role == MASTER else engine.optimizer.state[parameter][role]
    # pyrefly: ignore[bad-return]
    return safe_get_full_fp32_param(parameter) if role == MASTER else safe_get_full_optimizer_state(parameter, role)


def _set(engine: Any, parameter: nn.Parameter, role: str, value: Tensor) -> None:
    with torch.no_grad():
        if _is_plain(engine):
            (parameter if role == MASTER else engine.optimizer.state[parameter][role]).copy_(value.view_as(parameter))
        elif hasattr(parameter, "ds_tensor"):
            part = _own_part(parameter, value)
            if role == MASTER:
                safe_set_local_fp32_param(parameter, part)
            else:
                safe_set_local_optimizer_state(parameter, part, role)
        elif role == MASTER:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, role)


def _own_part(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """This worker's part of a value under ZeRO-3: the parts are equal, the last one padded with zeros.

    DeepSpeed's `safe_set_full_*` fail when the number of workers does not divide a parameter.
    """
    size = parameter.ds_tensor.numel()  # pyrefly: ignore[missing-attribute]
    begin = dist.get_rank() * size
    part = value.flatten()[begin : begin + size]
    return F.pad(part, (0, size - len(part)))


def _make_adam_state(engine: Any, step: int) -> None:
    """Adam creates its state at its first step; a resumed run needs it earlier."""
    wrapper = engine.optimizer
    base = wrapper if _is_plain(engine) else wrapper.optimizer
    for partition in _partitions(engine):
        state = base.state[partition]
        for moment in MOMENTS:
            state[moment] = torch.zeros_like(partition, dtype=torch.float32)
        # torch's Adam counts in a tensor, DeepSpeed's own in a number.
        state["step"] = torch.tensor(float(step)) if isinstance(base, torch.optim.Adam) else step
    for group in base.param_groups:
        if "step" in group:
            group["step"] = step
    _link_moments(engine)


def _link_moments(engine: Any) -> None:
    """Let parameters find their moments; DeepSpeed does it at the first step, in the first group only."""
    if link := getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", None):
        engine.optimizer._hp_optimizer_states_linked = False
        link()


def _partitions(engine: Any) -> list[Tensor]:
    """The tensors that the innermost optimizer keeps moments for."""
    wrapper = engine.optimizer
    if _is_plain(engine):
        return [p for group in wrapper.param_groups for p in group["params"]]
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
        if (partitions := getattr(wrapper, name, None)) is not None:
            return list(partitions)
    raise MegptError(
        f"checkpoints of DeepSpeed's {type(wrapper).__name__} are not supported",
        next="use one of deepspeed_configs/, or train.precision=fp32",
    )
