"""DeepSpeed's JSON config and the checks of `train.*`, for the command that starts a run: none of it needs torch.

    settings = deepspeed_settings(config.train, world_size=2)

A JSON file may set anything DeepSpeed understands. Batch sizes, number format, clipping and the optimizer's own
figures come from `train.*`; a file that contradicts them is an error rather than a surprise.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megpt.config import Config, TrainConfig
from megpt.errors import InputError
from megpt.settings import find_shipped
from megpt.training.order import Cutting

SHIPPED = Path(__file__).parents[1] / "deepspeed"
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


def check_together(config: Config) -> None:
    """Raise InputError for settings of the model and of its training that exclude each other."""
    check_cache(config)
    check_findings(config)


def check_cache(config: Config) -> None:
    """Raise InputError for `train.cache_features` in a mode that trains the encoder."""
    if config.train.cache_features and config.model.mode != "shallow":
        raise InputError(
            f"train.cache_features needs model.mode = shallow, not {config.model.mode}",
            cause="this mode trains the encoder, so its features change with every step",
            next="set train.cache_features=false",
        )


def check_findings(config: Config) -> None:
    """Raise InputError for `model.findings` without the loss that teaches it, or for the loss without the head."""
    if config.model.findings and not config.train.label_loss:
        raise InputError(
            "model.findings needs train.label_loss above 0",
            cause="nothing else teaches the head which observations the films show",
            next="set train.label_loss=2, or model.findings=false",
        )
    if config.train.label_loss and not config.model.findings:
        raise InputError(
            f"train.label_loss = {config.train.label_loss:g} has no effect without model.findings",
            next="set model.findings=true, or train.label_loss=0",
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
