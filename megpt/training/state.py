"""The trainable state of a run by parameter name, whatever ZeRO stage and number of workers hold it.

    tensors = snapshot(engine)                 # every rank calls; rank 0 gets {"master/NAME": …, "exp_avg/NAME": …}
    load_weights(model, tensors)               # before deepspeed.initialize
    restore(engine, tensors, step=120)         # after it; every rank calls

DeepSpeed's own checkpoints hold one file per rank and load at the world size that wrote them. What megpt trains is
small (the frozen language model is not in it), so it is gathered in full: float32 master weights and both moments
of Adam. DeepSpeed's public `safe_get/set_*` reach into its partitions; only the state that Adam makes at its first
step has to be made by hand before it can be filled.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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

from megpt.errors import MegptError

MASTER, BUFFER = "master", "buffer"
MOMENTS = ("exp_avg", "exp_avg_sq")


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that are trained, by name."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def trained_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers that training moves: those beside trained parameters (the running statistics of a batch norm)."""
    kept = model.state_dict().keys() if any(True for _ in model.buffers()) else ()
    for prefix, module in model.named_modules():
        if any(p.requires_grad for p in module.parameters(recurse=False)):
            for name, buffer in module.named_buffers(recurse=False):
                full = f"{prefix}.{name}" if prefix else name
                if full in kept:
                    yield full, buffer


def snapshot(engine: Any, *, keep: bool) -> dict[str, Tensor]:
    """The whole trainable state on the CPU. A collective: every rank calls, those with `keep` get the tensors.

    The tensors are copies, so that training may go on while they are written.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in trainable(engine.module):
        for kind in (MASTER, *MOMENTS):
            value = _get(engine, parameter, kind)
            if keep:
                tensors[f"{kind}/{name}"] = value.detach().to("cpu", torch.float32, copy=True).contiguous()
    if keep:
        for name, buffer in trained_buffers(engine.module):
            tensors[f"{BUFFER}/{name}"] = buffer.detach().to("cpu", copy=True).contiguous()
    return tensors


def load_weights(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy master weights and buffers into a model that DeepSpeed has not taken over yet.

    Raises:
        MegptError: the state belongs to another model.
    """
    wanted: dict[str, Tensor] = {f"{MASTER}/{name}": p for name, p in trainable(model)}
    wanted |= {f"{BUFFER}/{name}": b for name, b in trained_buffers(model)}
    held = {key: value for key, value in tensors.items() if key.split("/", 1)[0] in (MASTER, BUFFER)}
    wrong = [k for k in wanted.keys() | held.keys() if k not in wanted or k not in held] or [
        k for k in wanted if wanted[k].shape != held[k].shape and held[k].numel() != 1
    ]
    if wrong:
        raise MegptError(
            f"the checkpoint does not fit the model: {len(wrong)} tensors differ, the first is {sorted(wrong)[0]}",
            cause="it was written by a run with other model.* settings",
            next="choose another output=PATH",
        )
    with torch.no_grad():
        for key, target in wanted.items():
            target.copy_(held[key].view_as(target))


def restore(engine: Any, tensors: dict[str, Tensor], *, step: int) -> None:
    """Fill the optimizer of a fresh engine; the weights are already in the model. A collective.

    Args:
        step: optimizer steps done, which Adam's bias correction counts.
    """
    _make_adam_state(engine, step)
    for name, parameter in trainable(engine.module):
        for kind in (MASTER, *MOMENTS):
            _set(engine, parameter, kind, tensors[f"{kind}/{name}"])


def _is_plain(engine: Any) -> bool:
    """Without ZeRO and in float32 the engine holds the torch optimizer itself, and the weights are the masters."""
    return isinstance(engine.optimizer, torch.optim.Optimizer)


def _get(engine: Any, parameter: nn.Parameter, kind: str) -> Tensor:
    if _is_plain(engine):
        return parameter if kind == MASTER else engine.optimizer.state[parameter][kind]
    # pyrefly: ignore[bad-return]
    return safe_get_full_fp32_param(parameter) if kind == MASTER else safe_get_full_optimizer_state(parameter, kind)


def _set(engine: Any, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
    with torch.no_grad():
        if _is_plain(engine):
            (parameter if kind == MASTER else engine.optimizer.state[parameter][kind]).copy_(value.view_as(parameter))
        elif hasattr(parameter, "ds_tensor"):
            part = _own_part(parameter, value)
            if kind == MASTER:
                safe_set_local_fp32_param(parameter, part)
            else:
                safe_set_local_optimizer_state(parameter, part, kind)
        elif kind == MASTER:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, kind)


def _own_part(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """What this worker holds of a value under ZeRO-3: equal parts, the last one filled up with zeros.

    DeepSpeed's `safe_set_full_*` fail there when a parameter does not divide by the number of workers.
    """
    size = parameter.ds_tensor.numel()  # pyrefly: ignore[missing-attribute]
    begin = dist.get_rank() * size
    part = value.flatten()[begin : begin + size]
    return F.pad(part, (0, size - len(part)))


def _make_adam_state(engine: Any, step: int) -> None:
    """Adam makes its state at its first step; a resumed run needs it before."""
    wrapper = engine.optimizer
    base = wrapper if _is_plain(engine) else wrapper.optimizer
    for partition in _partitions(engine):
        state = base.state[partition]
        for kind in MOMENTS:
            state[kind] = torch.zeros_like(partition, dtype=torch.float32)
        # torch's Adam counts in a tensor, DeepSpeed's own in a number.
        state["step"] = torch.tensor(float(step)) if isinstance(base, torch.optim.Adam) else step
    for group in base.param_groups:
        if "step" in group:
            group["step"] = step
    if link := getattr(wrapper, "_lazy_init_hp_params_optimizer_state", None):
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
