"""The figures of a run: measured between two log rows, and written to every place that asked for them.

`OUT/log.jsonl` always gets the rows (the command's own progress bar reads them from there); TensorBoard, MLflow and
Weights & Biases get them by `train.loggers`. The names of the figures are the keys of `FIGURES`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from megpt.config import Config, TrainConfig
from megpt.errors import InputError, MegptError

if TYPE_CHECKING:
    from megpt.training.batches import Loader

# ASCII: Ray describes its gauges in nothing else.
FIGURES = {
    "loss": "cross-entropy per report token + L2 term",
    "cross_entropy": "mean over the report tokens of the global batch",
    "l2": "l2 * (|W_proj|^2 + |gamma_LN|^2), the penalty",
    "grad_norm": "before clipping",
    "lr": "learning rate of this step",
    "total_steps": "the last step",
    "epoch": "passes over the training split done",
    "studies_per_s": "over all workers",
    "tokens_per_s": "report tokens over all workers",
    "mfu": "model FLOP/s over the device's peak, where that is known",
    "memory_gib": "highest memory of worker 0: the GPU's, or the process's where there is none",
    "data_wait": "share of the time in which the step waited for its films",
    "failed": "studies so far whose films could not be read",
}


def check_loggers(train: TrainConfig) -> None:
    """Raise InputError for a logger that is not installed."""
    for name in train.loggers:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"train.loggers names {name}, which is not installed", next=f"pip install 'megpt[{name}]'")


# Dense bf16 FLOP/s by a part of the device's name, from the vendors' data sheets.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 peak of a device in FLOP/s; None for a CPU or an unknown GPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


class Meter:
    """Collects the losses of steps, and turns them into the figures of `FIGURES`.

    Nothing here waits for the device until a row is due.
    """

    def __init__(self, device: torch.device, loader: Loader):
        self.device, self.loader = device, loader
        self.peak = peak_flops(device)
        self.last: dict[str, float] = {}
        self._steps: list[int] = []
        self._losses: list[Tensor] = []
        self._rate = 0.0
        self._flops_per_study: float | None = None
        self._began, self._waited = time.monotonic(), 0.0

    def add(self, step: int, losses: Tensor, rate: float) -> None:
        """A step's (cross-entropy, L2) of this worker, (2,), on the device, and its learning rate."""
        self._steps.append(step)
        self._losses.append(losses)
        self._rate = rate

    def check_finite(self) -> None:
        """Average the losses over the workers.

        Raises:
            MegptError: one of them is not a number. Every worker raises alike.
        """
        if not self._losses:
            return
        table = torch.stack(self._losses)  # (steps, 2)
        dist.all_reduce(table)
        table /= dist.get_world_size()
        rows = table.tolist()
        for step, (cross_entropy, l2) in zip(self._steps[-len(rows) :], rows, strict=True):
            if not math.isfinite(cross_entropy + l2):
                raise MegptError(
                    f"the loss is {cross_entropy + l2} at step {step}",
                    where=f"cross-entropy {cross_entropy}, L2 term {l2}, learning rate {self._rate:.1e}",
                    cause="the learning rate is too high, or the weights of the encoder or language model hold NaN",
                    next="lower train.lr or train.grad_clip, or add train.warmup_steps, with a new output=PATH",
                )
        cross_entropy, l2 = rows[-1]
        self.last = {"loss": cross_entropy + l2, "cross_entropy": cross_entropy, "l2": l2, "lr": self._rate}
        self._losses = []

    def figures(self, engine: Any) -> dict[str, float]:
        """The figures since the last call. A collective; raises as `check_finite` does."""
        self.check_finite()
        seconds = max(time.monotonic() - self._began, 1e-9)
        figures = dict(self.last)
        norm = engine.get_global_grad_norm()
        if norm is not None:
            figures["grad_norm"] = float(norm)
        figures["studies_per_s"] = sum(len(self.loader.order.batch(step)) for step in self._steps) / seconds
        figures["tokens_per_s"] = sum(map(self.loader.num_tokens, self._steps)) / seconds
        if self.peak and self._flops_per_study:
            achieved = self._flops_per_study * figures["studies_per_s"]
            figures["mfu"] = achieved / (self.peak * dist.get_world_size())
        figures["memory_gib"] = self._memory() / 2**30
        figures["data_wait"] = (self.loader.waited_s - self._waited) / seconds
        self.last = figures
        self._steps = []
        self.restart_clock()
        return dict(figures)

    @contextlib.contextmanager
    def count_flops(self, studies: int) -> Iterator[None]:
        """Around the first whole forward and backward pass: counts its matrix arithmetic, where the peak is known.

        With activation checkpointing the count is an upper bound: it includes the share that is computed twice.
        """
        if self.peak is None or self._flops_per_study is not None or not studies:
            yield
            return
        with FlopCounterMode(display=False) as counter:
            yield
        self._flops_per_study = counter.get_total_flops() / studies

    def restart_clock(self) -> None:
        """Leave out the time since the last row (a validation is not training)."""
        self._began, self._waited = time.monotonic(), self.loader.waited_s

    def _memory(self) -> float:
        if self.device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self.device))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


class Logbook:
    """The writers of one run. Rows of steps that are run again after a resume are dropped.

    Args:
        row: called with each row. Rank 0 alone writes and calls it.
    """

    def __init__(
        self,
        output: Path,
        config: Config,
        *,
        start_step: int,
        rank: int = 0,
        row: Callable[[dict[str, float]], None] = lambda row: None,
    ):
        self._path, self._row = output / "log.jsonl", row
        self.validated = False
        """On rank 0, whether the step that the run resumes from has been validated."""
        self._file: TextIO | None = None
        self._writers: list[Any] = []
        if rank == 0:
            output.mkdir(parents=True, exist_ok=True)
            self._drop_after(start_step)
            self._file = self._path.open("a", encoding="utf-8")
            self._writers = [_WRITERS[name](output, config, start_step) for name in config.train.loggers]

    def __enter__(self) -> Logbook:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()
        for writer in self._writers:
            writer.close()

    def _drop_after(self, step: int) -> None:
        """Forget rows after the step that the run resumes from, and a row that a kill cut short."""
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                if row["step"] <= step:
                    kept.append(line + "\n")
                    self.validated |= row["step"] == step and "val_best_metric" in row
            except (ValueError, KeyError):
                continue
        self._path.write_text("".join(kept), encoding="utf-8")

    def write(self, step: int, figures: dict[str, float]) -> None:
        """One row; `step` counts the steps done."""
        if self._file is None:
            return
        row = {key: value for key, value in figures.items() if value is not None}
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        self._file.flush()
        for writer in self._writers:
            writer.write(step, row)
        self._row({"step": step, **figures})


class _TensorBoard:
    def __init__(self, output: Path, config: Config, start_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(output / "tensorboard"), purge_step=start_step or None)

    def write(self, step: int, row: dict[str, float]) -> None:
        for key, value in row.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        self._writer.close()


class _MLflow:
    def __init__(self, output: Path, config: Config, start_step: int):
        import mlflow

        self._mlflow: Any = mlflow
        mlflow.set_experiment("megpt")
        mlflow.start_run(run_name=output.name)
        mlflow.log_params({key: str(value)[:500] for key, value in config.train.model_dump().items()})

    def write(self, step: int, row: dict[str, float]) -> None:
        self._mlflow.log_metrics(row, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


class _Wandb:
    def __init__(self, output: Path, config: Config, start_step: int):
        import wandb

        self._run: Any = wandb.init(
            project="megpt", name=output.name, dir=str(output), resume="allow", config=config.model_dump(mode="json")
        )

    def write(self, step: int, row: dict[str, float]) -> None:
        self._run.log(row, step=step)

    def close(self) -> None:
        self._run.finish()


_WRITERS: dict[str, Any] = {"tensorboard": _TensorBoard, "mlflow": _MLflow, "wandb": _Wandb}


def line(row: dict[str, float]) -> str:
    """One row for a person."""
    of = f"/{row['total_steps']:.0f}" if "total_steps" in row else ""
    parts = [f"step {row['step']:.0f}{of}"]
    shown = (
        ("loss", "loss {:.4f}"),
        ("cross_entropy", "ce {:.4f}"),
        ("l2", "l2 {:.1e}"),
        ("lr", "lr {:.2e}"),
        ("grad_norm", "grad {:.2f}"),
        ("studies_per_s", "{:.1f} studies/s"),
        ("tokens_per_s", "{:.0f} tokens/s"),
        ("mfu", "MFU {:.1%}"),
        ("memory_gib", "{:.2f} GiB"),
        ("data_wait", "data wait {:.1%}"),
    )
    parts += [text.format(row[key]) for key, text in shown if row.get(key) is not None]
    parts += [f"{key} {value:.4f}" for key, value in row.items() if key.startswith("val_")]
    if row.get("failed"):
        parts.append(f"{row['failed']:.0f} unreadable")
    return "  ".join(parts)
