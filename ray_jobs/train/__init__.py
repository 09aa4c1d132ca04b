"""studies/ + prompts/ → checkpoint/: DeepSpeed ZeRO on Ray Train.

    megpt train --config configs/phantom.yaml studies=runs/studies prompts=runs/prompts output=runs/checkpoint

The command watches; the workers train (`ray_jobs.train.worker`). A worker or node that dies restarts the group from
the newest checkpoint; the command that dies is run again, with the same effect. `OUT/steps/` holds what is needed to
resume, `OUT/log.jsonl` and `OUT/tensorboard/` the curves, `OUT/` itself the Hugging Face folder once training is done.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from megpt.config import Config
from megpt.errors import InputError, MegptError, TooManyFailed
from megpt.model.checkpoint.files import CENTROIDS, PROMPTS
from megpt.output import Output, claim
from megpt.progress import log
from megpt.training.deepspeed import check_batch_sizes, deepspeed_settings
from megpt.training.inputs import input_fingerprint, weights_fingerprint
from megpt.training.log import check_loggers
from ray_jobs.failures import PREEMPTED, cause_of, known_failure
from ray_jobs.runtime import cluster, require_resources
from ray_jobs.train.validate import check_validation
from ray_jobs.train.watch import watching
from ray_jobs.train.worker import SUMMARY, take_error, worker

# Settings that change how fast or where a run goes, but not where it arrives.
INDIFFERENT = {
    "zero_stage",
    "deepspeed",
    "micro_batch_size",
    "loss_chunk",
    "activation_checkpointing",
    "cache_features",
    "save_every",
    "keep",
    "log_every",
    "loader_workers",
    "max_failures",
    "max_failed_fraction",
    "timeout_s",
    "loggers",
}


def run(config: Config, *, dry_run: bool = False) -> int:
    """Train, or go on training; returns the exit code.

    Raises:
        InputError: paths missing, a DeepSpeed file that contradicts the config, batch sizes that do not divide.
        MegptError: the loss is not a number, storage is full, or more restarts than `train.max_failures`.
        TooManyFailed: done, but more films could not be used than `train.max_failed_fraction`.
    """
    check(config)
    if dry_run:
        from rich.console import Console

        from megpt.model.cost.estimate import plan

        Console().print(plan(config).render())
        return 0
    check_inputs(config)
    with claim(config.output, job="train", identity=identity(config), config=config) as output:
        if output.done:
            log(f"{output.path} is done; nothing to do")
            return 0
        with cluster(config.cluster):
            require_resources(config.cluster)
            summary = fit(config, output)
        output.finish(**summary)
    used, failed = summary["studies"], summary["failed"]
    log(f"{output.path}: {summary['steps']} steps on {used} studies, {failed} without a readable film")
    if failed > config.train.max_failed_fraction * (used + summary["missing"]):
        raise TooManyFailed(
            f"{failed} studies have no readable film, more than train.max_failed_fraction allows",
            where=str(output.path / "failed.parquet"),
            cause="films are missing from the archive, or damaged",
            next="see the reasons there; the checkpoint is finished and usable",
        )
    return 0


def check(config: Config) -> None:
    """What can be known to be wrong before anything is read."""
    least, most = config.cluster.min_workers, config.cluster.max_workers
    if least == most:
        check_batch_sizes(config.train, most)
    elif config.train.global_batch_size < most:
        raise InputError(
            f"train.global_batch_size = {config.train.global_batch_size} is less than {most} workers",
            next="set a larger train.global_batch_size, or fewer cluster.num_workers",
        )
    deepspeed_settings(config.train, world_size=most)
    check_loggers(config.train)


def check_inputs(config: Config) -> None:
    """The inputs are named and there, and so is a place for the output."""
    config.require("output")
    if config.studies is None:
        config.require("source")
    if config.model.dynamic_prompt:
        config.require("prompts")
    for key in ("studies", "prompts"):
        value = getattr(config, key)
        if value and not Path(value).is_dir():
            raise InputError(f"no folder at {key}={value}", next=f"run the job that writes `{key}` first")
    check_validation(config)


def identity(config: Config) -> dict[str, Any]:
    """What the trained weights depend on."""
    train = {k: v for k, v in config.train.model_dump(mode="json").items() if k not in INDIFFERENT}
    prompts = None
    if config.prompts and config.model.dynamic_prompt:
        files = sorted(p for p in Path(config.prompts).iterdir() if p.name in (PROMPTS, CENTROIDS))
        prompts = hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()[:16]
    return {
        "seed": config.seed,
        "limit": config.limit,
        "model": config.model.model_dump(mode="json"),
        "weights": {key: weights_fingerprint(getattr(config.model, key)) for key in ("llm", "vision_weights")},
        "train": train,
        "data": config.data.model_dump(mode="json"),
        "studies": input_fingerprint(config),
        "prompts": prompts,
    }


def fit(config: Config, output: Output) -> dict[str, Any]:
    """Run the workers to the end of training, and return their summary."""
    from ray_jobs.train.group import AGAIN, interruptible, set_time_limits, take_mark

    set_time_limits(config.cluster, config.train.timeout_s)
    # Relative paths mean this command's folder; workers start elsewhere.
    config = absolute(config)
    while True:
        take_error(output.path)
        take_mark(output.path)
        with watching(output.path / "log.jsonl"), interruptible():
            try:
                error = trainer(config).fit().error
            except Exception as raised:  # Ray's own classes differ from version to version
                error = raised
        if told := take_error(output.path):
            raise told
        if error is None:
            return take_summary(output.path)
        if not take_mark(output.path):
            raise as_megpt_error(error, config) from error
        log(f"{AGAIN}: {PREEMPTED}")


def trainer(config: Config) -> Any:
    """Ray Train's trainer of a config with absolute paths."""
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig

    from ray_jobs.train.group import GroupWatch, scaling

    return TorchTrainer(
        worker,
        train_loop_config={"config": config.model_dump(mode="json")},
        scaling_config=scaling(config.cluster),
        run_config=RunConfig(
            name="train",
            storage_path=str(Path(str(config.output)) / ".ray"),
            failure_config=FailureConfig(max_failures=config.train.max_failures),
            callbacks=[GroupWatch(config)],  # pyrefly: ignore[bad-argument-type]
            # Each lost worker would otherwise print the tracebacks of all; they stay in Ray's own log files.
            logging_config=LoggingConfig(log_level="CRITICAL"),
        ),
        torch_config=TorchConfig(
            backend="nccl" if config.cluster.gpus_per_worker else "gloo", timeout_s=math.ceil(config.train.timeout_s)
        ),
    )


def absolute(config: Config) -> Config:
    """The config with its local paths made absolute."""
    keys = ("output", "source", "studies", "prompts", "train.deepspeed", "data.reports", "data.annotations")
    changes: dict[str, Any] = {}
    for key in (*keys, "model.llm", "model.vision_weights"):
        value: Any = config
        for name in key.split("."):
            value = getattr(value, name)
        # The last two may be a hub id or a word instead of a path.
        if value is not None and (key in keys or Path(value).exists()):
            changes[key] = str(Path(value).absolute())
    return config.overridden(changes)


def take_summary(output: Path) -> dict[str, Any]:
    """What the workers said at their end."""
    return dict(json.loads((output / "steps" / SUMMARY).read_text(encoding="utf-8")))


def as_megpt_error(error: BaseException, config: Config) -> MegptError:
    """Ray Train's error as a screen: which worker, what kind, and how many restarts were tried."""
    restarts = f" after {config.train.max_failures} restarts (train.max_failures)"
    return known_failure(error, config.output) or MegptError(
        "training stopped" + (restarts if hasattr(error, "worker_failures") else ""),
        where=config.output,
        cause=cause_of(error, config.train.timeout_s),
        next="run the same command again: it resumes; --debug shows tracebacks",
    )
