"""Everything that knows it is DeepSpeed: its JSON config, its engine, its process group.

    settings = deepspeed_settings(config.train, world_size=2)
    engine = make_engine(model, config.train)

A JSON file may set anything DeepSpeed understands. Batch sizes, number format, clipping and the optimizer's own
figures come from `train.*`; a file that contradicts them is an error rather than a surprise.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from megpt.config import TrainConfig
from megpt.errors import InputError
from megpt.settings import find_shipped
from megpt.training.order import Cutting

SHIPPED = Path(__file__).parents[1] / "deepspeed"
KERNELS_KEPT = 256
"""About as many as one step needs of an EfficientNet and a small Llama, forward and backward."""
SCHEDULED_BY_MEGPT = ("scheduler", "data_efficiency", "curriculum_learning")


def deepspeed_file(train: TrainConfig) -> Path:
    """The JSON that `train.deepspeed` (a path, or the name of a shipped file), or else `train.zero_stage`, names."""
    return find_shipped(train.deepspeed or f"zero{train.zero_stage}", SHIPPED, ".json")


def deepspeed_settings(train: TrainConfig, *, world_size: int) -> dict[str, Any]:
    """The complete DeepSpeed config for a number of workers.

    Raises:
        InputError: no such file, not JSON, a value that contradicts `train.*`, or a combination that cannot train.
    """
    path = deepspeed_file(train)
    settings = _read(path)
    cutting = Cutting.of(train.global_batch_size, train.micro_batch_size, world_size)
    micro = cutting.micro_batch_size or -(-train.global_batch_size // world_size)
    owned: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": (micro, "train.micro_batch_size"),
        "gradient_accumulation_steps": (cutting.slots, "train.micro_batch_size"),
        "train_batch_size": (micro * cutting.slots * world_size, "train.global_batch_size"),
        "gradient_clipping": (float(train.grad_clip), "train.grad_clip"),
        "bf16.enabled": (train.precision == "bf16", "train.precision"),
        "fp16.enabled": (False, "train.precision"),
        "optimizer.params.lr": (train.lr, "train.lr"),
        "optimizer.params.betas": (list(train.betas), "train.betas"),
        "optimizer.params.weight_decay": (train.weight_decay, "train.weight_decay"),
    }
    if train.deepspeed is None or "zero_optimization" not in settings:
        owned["zero_optimization.stage"] = (train.zero_stage, "train.zero_stage")
    optimizer = settings.setdefault("optimizer", {}).setdefault("type", "AdamW")
    if str(optimizer).lower() not in ("adam", "adamw"):
        raise InputError(
            f"{path} sets optimizer.type = {optimizer!r}",
            cause="checkpoints hold Adam's two moments, so that they load at any number of workers",
            next='set it to "AdamW"',
        )
    for key, (value, field) in owned.items():
        _fill(settings, key, value, field, path)
    if extra := [key for key in SCHEDULED_BY_MEGPT if key in settings]:
        raise InputError(
            f"{path} sets `{extra[0]}`",
            cause="megpt schedules the learning rate and the samples itself, so that a run resumes exactly",
            next=f"delete `{extra[0]}` there, and set train.lr, train.min_lr and train.warmup_steps instead",
        )
    _refuse_untrainable(settings["zero_optimization"], train, path)
    return settings


def _refuse_untrainable(zero: dict[str, Any], train: TrainConfig, path: Path) -> None:
    stage = zero.get("stage", 0)
    if stage == 0 and train.precision == "bf16":
        raise InputError(
            "train.precision = bf16 does not work with ZeRO stage 0",
            where=str(path),
            cause="DeepSpeed keeps no float32 weights at this stage that a checkpoint could be made of",
            next="set train.zero_stage=1, which costs the same on one worker, or train.precision=fp32",
        )
    for section, least in (("offload_optimizer", 1), ("offload_param", 3)):
        device = (zero.get(section) or {}).get("device", "none")
        if device not in ("none", "cpu"):
            raise InputError(
                f"{path} sets {section}.device = {device!r}",
                cause="checkpoints are gathered from memory",
                next='set it to "cpu" or "none"',
            )
        if device == "cpu" and stage < least:
            raise InputError(
                f"{path} sets {section}, which ZeRO stage {stage} does not have",
                cause=f"DeepSpeed offloads this from stage {least} on, and ignores it below",
                next=f"delete {section} there, or set zero_optimization.stage to {least} or more",
            )


def zero_stage(train: TrainConfig, world_size: int) -> int:
    """The ZeRO stage of the complete config; 0 where a file has a `zero_optimization` section without one."""
    return int(deepspeed_settings(train, world_size=world_size)["zero_optimization"].get("stage", 0))


def check_batch_sizes(train: TrainConfig, world_size: int) -> None:
    """Refuse a global batch that cannot be divided evenly.

    Raises:
        InputError: `global_batch_size` is not a multiple of the workers, or of workers × micro batch.
    """
    total, micro = train.global_batch_size, train.micro_batch_size
    if total % world_size:
        raise InputError(
            f"train.global_batch_size = {total} cannot be divided among {world_size} workers",
            cause="each worker takes an equal share of every step",
            next=f"set train.global_batch_size={-(-total // world_size) * world_size}, or another cluster.num_workers",
        )
    if micro and total // world_size % micro:
        raise InputError(
            f"train.micro_batch_size = {micro} does not divide a worker's share of {total // world_size}",
            where=f"train.global_batch_size = {total} over {world_size} workers",
            cause="a step is a whole number of forward passes on each worker",
            next=f"set train.micro_batch_size to a divisor of {total // world_size}",
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(p.stem for p in sorted(SHIPPED.glob("*.json")))
        raise InputError(
            f"no DeepSpeed config at {path}",
            where="train.deepspeed",
            cause="it is neither a file nor the name of a shipped one",
            next=f"give the path of a JSON file, or one of {known}",
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read as JSON", cause=str(error)) from None
    if not isinstance(settings, dict):
        raise InputError(f"{path} holds {type(settings).__name__}, not an object")
    return settings


def _fill(settings: dict[str, Any], key: str, value: Any, field: str, path: Path) -> None:
    *sections, leaf = key.split(".")
    for name in sections:
        settings = settings.setdefault(name, {})
    found = settings.get(leaf, "auto")
    if found != "auto" and found != value:
        raise InputError(
            f"{path} sets {key} = {found!r}, but {field} requires {value!r}",
            where=str(path),
            cause=f"megpt sets {key} from its own config",
            next=f'delete {key} from the file (or write "auto"), and set {field}',
        )
    settings[leaf] = value


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
    parameters = [p for p in model.parameters() if p.requires_grad]
    with _scalars_as_vectors(model), _time_limit(train.timeout_s):
        engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=parameters,  # pyrefly: ignore[bad-argument-type]
            config=settings,
            dist_init_required=False,
        )
    return engine


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
    """Set the learning rate of the next step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate


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
