"""studies/ + prompts/ → checkpoint/: DeepSpeed ZeRO on Ray Train.

    megpt train --config configs/phantom.yaml studies=runs/studies prompts=runs/prompts output=runs/checkpoint

The command watches and the workers train (`ray_jobs.train.worker`). If a worker or a node dies, the group restarts from
the newest checkpoint; if the command dies, run it again. `OUT/steps/` holds what is needed to
resume, `OUT/log.jsonl` and `OUT/tensorboard/` the curves, and `OUT/` itself the Hugging Face folder once training is
done.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from megpt.config import Config
from megpt.config.model import divided
from megpt.data.cleaning import learnable
from megpt.data.sources import open_source
from megpt.data.studies import study_files
from megpt.errors import InputError, MegptError, TooManyFailed
from megpt.model.checkpoint.decoding import carried
from megpt.model.checkpoint.state import folder_state
from megpt.model.prompts import CENTROIDS, PROMPTS
from megpt.output import SUCCESS, Output
from megpt.places import is_address, place
from megpt.places.remembered import recall, remember, software
from megpt.places.whole import private_folder
from megpt.progress import log
from megpt.training.deepspeed import check_batch_sizes, check_together, deepspeed_settings
from megpt.training.log import check_loggers
from megpt.training.samples import input_fingerprint, weights_fingerprint
from ray_jobs.failures import PREEMPTED, cause_of, known_failure
from ray_jobs.imports import uncollected
from ray_jobs.job import Job, absolute
from ray_jobs.train.longer import Longer
from ray_jobs.train.start import checkpoint_fingerprint, named_start, started
from ray_jobs.train.validate import check_validation
from ray_jobs.train.watch import watching
from ray_jobs.train.worker import SUMMARY, take_error, worker


class Train(Job):
    name = "train"
    grows = True
    staged = False
    only_estimated = ("fit_prompts.num_clusters", "fit_prompts.candidates")
    """What the dry run alone reads: how many prompts there may be."""
    reads = (
        *("source", "studies", "prompts", "checkpoint", "limit", "seed"),
        *("data", "model", "train", "generate", *only_estimated),
    )

    def open(self) -> None:
        self.config = started(self.config.with_one_input("studies", "source"))
        check(self.config)
        check_inputs(self.config)
        self.config = with_usable_backend(self.config)

    def identity(self) -> dict[str, Any]:
        # Reports are written for validation alone.
        unused = (*self.only_estimated, *(() if self.config.train.val_every else ("generate",)))
        self.own = self.config.identity(*(key for key in self.reads if key not in unused)) | self.inputs()
        self.longer = Longer.of(self.config, json.loads(json.dumps(self.own)))
        return self.longer.record if self.longer else self.own

    def inputs(self) -> dict[str, Any]:
        model = self.config.model
        # Outputs from before runs could start from a checkpoint have no such entry.
        start = {"checkpoint": checkpoint_fingerprint(self.config)} if named_start(self.config) else {}
        place = divided(model.vision)[1]
        encoder = {"vision": weights_fingerprint(place)} if Path(place).is_dir() else {}
        return start | {
            "weights": {key: weights_fingerprint(getattr(model, key)) for key in ("llm", "vision_weights")} | encoder,
            "studies": input_fingerprint(self.config),
            "prompts": prompts_fingerprint(self.config),
        }

    def estimate(self) -> bool:
        """What the run will need: parameters, FLOPs, memory of each GPU."""
        check(self.config.overridden({"train.loggers": []}))  # an estimate logs nothing
        with_usable_backend(self.config)
        self._print_estimate()
        return True

    def _print_estimate(self) -> None:
        from rich.console import Console

        from megpt.model.cost.estimate import estimate

        Console().print(estimate(self.config).render())

    def preview(self, folder: Path) -> None:
        self._print_estimate()
        if self.longer and self.longer.grows:
            log(f"train: would be {self.longer.sentence()}")

    def has_grown(self, folder: Path) -> bool:
        return self.longer is not None and self.longer.grows

    def plan(self, folder: Path) -> bool:
        if self.longer and self.longer.grows:
            self.longer.lengthen(folder, self.own, self.config)
        return not (folder / SUCCESS).exists()

    def work(self, folder: Path) -> None:
        """Train, or resume training, to the end.

        Raises:
            MegptError: the loss is not a number, storage is full, or more restarts than `train.max_failures`.
        """
        self.summary = fit(self.config, folder)

    def finish(self, folder: Path) -> dict[str, Any]:
        return self.summary

    def nothing_to_do(self, output: Output) -> None:
        super().nothing_to_do(output)
        rules, held = self.config.generate, carried(output.path)
        if other := [f"{name}={value}" for name, value in held.items() if getattr(rules, name) != value]:
            log(f"train: the checkpoint carries the decoding that it was trained with: {', '.join(other)}")

    def kept(self, folder: Path) -> bool:
        from megpt.training.checkpoints import CheckpointStore

        return CheckpointStore(folder / "steps", keep=self.config.train.keep).newest() is not None

    def tell(self, folder: Path, summary: dict[str, Any]) -> None:
        used, failed = summary["studies"], summary["failed"]
        log(f"{folder}: {summary['steps']} steps on {used} studies, {failed} without a readable film")
        if found := summary.get("findings"):
            threshold, n = found["threshold"], found["studies"]
            chosen = (
                f"the best on {n} val studies, micro-F1 {found['micro_f1']:.3f}" if n else "no val split to choose on"
            )
            log(f"train: findings are told from a probability of {threshold}: {chosen}")

    def verdict(self, folder: Path, summary: dict[str, Any]) -> None:
        failed = summary["failed"]
        if failed > self.config.train.max_failed_fraction * (summary["studies"] + summary["missing"]):
            raise TooManyFailed(
                f"{failed} studies have no readable film, more than train.max_failed_fraction allows",
                where=str(folder / "failed.parquet"),
                cause="films are missing from the archive, or damaged",
                next="see the reasons there; the checkpoint is finished and usable",
            )


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
    learnable(config.data.cleaner)
    check_loggers(config.train)
    check_together(config)


def with_usable_backend(config: Config) -> Config:
    """The config with a backend that can write with its language model, tried before anything is trained.

    Raises:
        InputError: the language model cannot be used, or no backend can write with it.
    """
    llm, backend = config.model.llm, config.generate.backend
    settings, state = [backend, config.generate.num_beams, config.generate.max_new_tokens], folder_state(llm)
    # What passed without a word passes again as long as nothing has changed, and torch need not be imported for it.
    depends = [settings, state, software("generation", "model")]
    if state and recall("language model to train", depends):
        return config.overridden({"generate.backend": backend})
    from megpt.model.cost.architectures import language_model_config
    from megpt.model.source import look_at

    if Path(llm).exists():
        look_at(llm)
        with uncollected():
            from megpt.model.language import check_folder

        shape = check_folder(llm)
    else:
        shape = language_model_config(llm)
    with uncollected():
        from megpt.generation.trial import usable, verdict

    generate = usable(config.generate, shape, to_train=True)
    if state and generate.backend == backend and not verdict(shape, generate.num_beams).untried:
        remember("language model to train", depends, True)
    return config.overridden({"generate.backend": generate.backend})


def check_inputs(config: Config) -> None:
    """The inputs are named and there."""
    if config.model.dynamic_prompt:
        config.require("prompts")
    for key in ("studies", "prompts"):
        value = getattr(config, key)
        if value and not place(value).is_dir():
            raise InputError(f"no folder at {key}={value}", next=f"run the job that writes `{key}` first")
    if config.studies:
        study_files(config.studies, "train")
    else:
        open_source(str(config.source), data=config.data)
    check_validation(config)


def prompts_fingerprint(config: Config) -> str | None:
    """A hash over the prompt bank; None where none is used."""
    if not (config.prompts and config.model.dynamic_prompt):
        return None
    files = sorted(p for p in place(config.prompts).iterdir() if p.name in (PROMPTS, CENTROIDS))
    return hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()[:16]


def fit(config: Config, output: Path) -> dict[str, Any]:
    """Run the workers to the end of training, and return their summary."""
    from ray_jobs.train.group import AGAIN, interruptible, set_time_limits, take_mark

    set_time_limits(config.cluster, config.train.timeout_s)
    # Relative paths mean this command's folder; workers start elsewhere.
    config = absolute(config)
    while True:
        take_error(output)
        take_mark(output)
        with watching(output / "log.jsonl"), interruptible():
            try:
                error = trainer(config).fit().error
            except Exception as raised:  # Ray's own classes differ from version to version
                error = raised
        if left_behind := take_error(output):
            raise left_behind
        if error is None:
            return take_summary(output)
        if not take_mark(output):
            raise as_megpt_error(error, config) from error
        log(f"{AGAIN}: {PREEMPTED}")


def trainer(config: Config) -> Any:
    """Ray Train's trainer of a config with absolute paths."""
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from ray_jobs.train.group import GroupWatch, scaling

    v2: Any = ray.train  # Ray's types know both of its APIs
    return TorchTrainer(
        worker,
        train_loop_config={"config": config.model_dump(mode="json")},
        scaling_config=scaling(config.cluster),
        run_config=v2.RunConfig(
            name="train",
            storage_path=str(ray_folder(str(config.output))),
            failure_config=v2.FailureConfig(max_failures=config.train.max_failures),
            callbacks=[GroupWatch(config)],
            # Each lost worker would otherwise print the tracebacks of all; they stay in Ray's own log files.
            logging_config=v2.LoggingConfig(log_level="CRITICAL"),
        ),
        torch_config=TorchConfig(
            backend="nccl" if config.cluster.gpus_per_worker else "gloo", timeout_s=math.ceil(config.train.timeout_s)
        ),
    )


def ray_folder(output: str) -> Path:
    """Where Ray Train keeps its own state, which no resume needs: in the output, or on this machine for an address."""
    if not is_address(output):
        return Path(output) / ".ray"
    return private_folder(hashlib.sha256(output.encode()).hexdigest()[:16])


def take_summary(output: Path) -> dict[str, Any]:
    """The summary that the workers wrote when they finished."""
    return dict(json.loads((output / "steps" / SUMMARY).read_text(encoding="utf-8")))


def as_megpt_error(error: BaseException, config: Config) -> MegptError:
    """Ray Train's error as a screen: which worker, what kind, and how many restarts were tried."""
    restarts = f" after {config.train.max_failures} restarts (train.max_failures)"
    return known_failure(error, config.output) or MegptError(
        "training stopped" + (restarts if hasattr(error, "worker_failures") else ""),
        where=config.output,
        cause=cause_of(error, config.train.timeout_s),
        next="run the same command again to resume; --debug shows tracebacks",
    )
