"""The figures of a run, written to every place that asked for them; `megpt.training.meter` measures them.

`OUT/log.jsonl` always gets the rows (the command's own progress bar reads them from there); TensorBoard, MLflow and
Weights & Biases get them by `train.loggers`. The names of the figures are the keys of `FIGURES`.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from megpt.config import Config, TrainConfig
from megpt.errors import InputError

# ASCII: Ray describes its gauges in nothing else.
FIGURES = {
    "loss": "cross-entropy per report token + L2 term + label loss",
    "cross_entropy": "mean over the report tokens of the global batch",
    "l2": "l2 * (|W_proj|^2 + |gamma_LN|^2), the penalty",
    "label_loss": "label_loss * the mean cross-entropy of 14 observations a study",
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
            extra = "train" if name == "tensorboard" else name
            raise InputError(
                f"train.loggers names {name}, which is not installed", next=f'pip install "megpt[{extra}]"'
            )


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
        ("label_loss", "labels {:.4f}"),
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
