"""DeepSpeed JSON: the file a user may replace, with what megpt owns filled in from its own config.

    settings = deepspeed_settings(config.train, world_size=2)

A file may say anything DeepSpeed understands. Batch sizes, number format, clipping and the optimizer's own figures
come from `train.*`; a file that says otherwise is an error rather than a surprise.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megpt.config import TrainConfig
from megpt.errors import InputError
from megpt.training.order import Cutting

SHIPPED = Path(__file__).parents[1] / "deepspeed"
SCHEDULED_BY_MEGPT = ("scheduler", "data_efficiency", "curriculum_learning")


def deepspeed_file(train: TrainConfig) -> Path:
    """The JSON that `train.deepspeed`, or else `train.zero_stage`, names."""
    return Path(train.deepspeed) if train.deepspeed else SHIPPED / f"zero{train.zero_stage}.json"


def deepspeed_settings(train: TrainConfig, *, world_size: int) -> dict[str, Any]:
    """The complete DeepSpeed config for so many workers.

    Raises:
        InputError: no such file, not JSON, or a value that contradicts `train.*`.
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
    kind = settings.setdefault("optimizer", {}).setdefault("type", "AdamW")
    if str(kind).lower() not in ("adam", "adamw"):
        raise InputError(
            f"{path} sets optimizer.type = {kind!r}",
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
    return settings


def check_batch_sizes(train: TrainConfig, world_size: int) -> None:
    """Refuse a global batch that cannot be shared out evenly.

    Raises:
        InputError: `global_batch_size` is no multiple of the workers, or of workers × micro batch.
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
        known = ", ".join(str(p) for p in sorted(SHIPPED.glob("*.json")))
        raise InputError(f"no DeepSpeed config at {path}", where="train.deepspeed", next=f"one of {known}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read as JSON", cause=str(error)) from None
    if not isinstance(settings, dict):
        raise InputError(f"{path} holds {type(settings).__name__}, not an object")
    return settings


def _fill(settings: dict[str, Any], key: str, value: Any, field: str, path: Path) -> None:
    *sections, leaf = key.split(".")
    for name in sections:
        settings = settings.setdefault(name, {})
    said = settings.get(leaf, "auto")
    if said != "auto" and said != value:
        raise InputError(
            f"{path} says {key} = {said!r}, but {field} means {value!r}",
            where=str(path),
            cause=f"megpt fills {key} from its own config",
            next=f'delete {key} from the file (or write "auto"), and set {field}',
        )
    settings[leaf] = value
