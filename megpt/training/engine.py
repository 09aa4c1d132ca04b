"""The DeepSpeed engine around the model, and the process that it runs in."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from megpt.config import TrainConfig
from megpt.training.deepspeed import deepspeed_settings

KERNELS_KEPT = 256
"""About as many as one step needs of an EfficientNet and a small Llama, forward and backward."""


def ensure_process_group(timeout_s: float) -> None:
    """Make a group of this process alone if no launcher has made one."""
    if not dist.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        store = dist.HashStore()
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timedelta(seconds=timeout_s))
        for key, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
            os.environ.setdefault(key, value)


def local_device() -> torch.device:
    """This worker's GPU, or the CPU of a machine without one."""
    if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def share_machine() -> None:
    """Give each worker of a machine an equal share of its cores, and bound what its CPU kernels keep.

    More threads than cores slow all of them down. In bf16 every matrix product of a new shape makes oneDNN compile a
    kernel, which torch's binding and oneDNN itself each keep: 1,024 of them by default, about a megabyte each, and
    reports of ever other lengths fill both caches. Both read these variables when they first compute.
    """
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(KERNELS_KEPT))
    workers = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))


def make_engine(model: nn.Module, train: TrainConfig) -> Any:
    """DeepSpeed's engine for the trained parameters of `model`."""
    # DeepSpeed picks its accelerator when it is imported.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if os.environ["DS_ACCELERATOR"] == "cpu":
        # Otherwise each start looks for a compiler, and builds a shared-memory reduction that only inference uses.
        deepspeed.ops.__compatible_ops__ = {}  # pyrefly: ignore[missing-attribute]
    settings = deepspeed_settings(train, world_size=dist.get_world_size())
    if train.activation_checkpointing:
        model.gradient_checkpointing_enable()  # pyrefly: ignore[not-callable]
    _import_muon_uncompiled()
    parameters = parameter_groups(model, train)
    with _scalars_as_vectors(model), _time_limit(train.timeout_s):
        engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=parameters,  # pyrefly: ignore[bad-argument-type]
            config=settings,
            dist_init_required=False,
        )
    return engine


def parameter_groups(model: nn.Module, train: TrainConfig) -> list[dict[str, Any]]:
    """The trained parameters by learning rate: one group where all parts have the same."""
    rates = {"vision": train.lr_vision, "language_model": train.lr_llm}
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(rates.get(name.partition(".")[0]) or train.lr, []).append(parameter)
    return [{"params": group, "lr": rate, "lr_scale": rate / train.lr} for rate, group in groups.items()]


def _import_muon_uncompiled() -> None:
    """ZeRO checks whether the optimizer is a Muon, and importing Muon starts torch's compiler, which takes seconds."""
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        if before is None:
            del os.environ["TORCHDYNAMO_DISABLE"]
        else:
            os.environ["TORCHDYNAMO_DISABLE"] = before


@contextmanager
def _time_limit(timeout_s: float) -> Iterator[None]:
    """DeepSpeed makes process groups of its own, which would use torch's limit of half an hour, not the run's."""
    new_group = dist.new_group
    dist.new_group = partial(new_group, timeout=timedelta(seconds=timeout_s))
    try:
        yield
    finally:
        dist.new_group = new_group


@contextmanager
def _scalars_as_vectors(model: nn.Module) -> Iterator[None]:
    """DeepSpeed broadcasts parameters as bytes when it starts, which fails for a tensor without dimensions.

    Trained ones stay vectors, because it multiplies their gradients by a vector.
    """
    scalars = [p for p in model.parameters() if p.ndim == 0]
    for parameter in scalars:
        parameter.data = parameter.data.view(1)
    try:
        yield
    finally:
        for parameter in scalars:
            if not parameter.requires_grad and not hasattr(parameter, "ds_tensor"):
                parameter.data = parameter.data.view(())


def set_learning_rate(engine: Any, rate: float) -> None:
    """Set the learning rate of the next step; parts with a rate of their own keep their proportion to it."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


@contextmanager
def whole_model(engine: Any) -> Iterator[nn.Module]:
    """The model with all its weights on every worker, without ZeRO-3's collectives, for generation and export.

    Workers generate different numbers of tokens, so a forward pass must not wait for the others. A collective.
    """
    model: nn.Module = engine.module
    if engine.zero_optimization_stage() < 3:
        yield model
        return
    import deepspeed

    offload = engine.optimizer.parameter_offload
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        for parameter in model.parameters():
            parameter.ds_active_sub_modules.clear()  # pyrefly: ignore[missing-attribute]
        for hook in (*offload.forward_hooks, *offload.backward_hooks):
            hook.remove()
        offload.forward_hooks, offload.backward_hooks = [], []
        try:
            yield model
        finally:
            offload._register_deepspeed_module(offload.module)
