"""Groups of training processes without Ray: gloo over localhost, forked from one server that has imported torch."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megpt.config import Config
from megpt.training.loop import Hooks, train_loop
from megpt.training.parts import make_parts

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    [
        *["torch", "deepspeed.runtime.engine", "transformers.models.llama.modeling_llama", "timm"],
        *["pandas", "pyarrow.dataset", "pyarrow.pandas_compat", "megpt.training.parts", "megpt.training.loop"],
    ]
)


def train(config: Config, hooks: Hooks | None = None) -> dict[str, Any]:
    """One run to its end, as one rank; with the validation of the config where it has one."""
    if hooks is None and config.train.val_every:
        from ray_jobs.train.validate import best_score, validator

        hooks = Hooks(validate=validator(config), best=lambda scores: best_score(scores, config.train.best_metric))
    return train_loop(config, lambda: make_parts(config), output=Path(str(config.output)), hooks=hooks)


def train_each(configs: list[Config]) -> None:
    """Several runs one after the other in the same processes: starting them costs more than the steps."""
    for config in configs:
        train(config)


def losses(output: Path) -> list[float]:
    """The loss of every step, from the run's log."""
    rows = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def run_group(world_size: int, function: Callable[..., Any], *arguments: Any, timeout: float = 240) -> list[Any]:
    """`function(*arguments)` on every rank of a gloo group; their results by rank. Raises what a rank raised."""
    processes, pipes = start_group(world_size, function, *arguments)
    results = []
    for pipe, process in zip(pipes, processes, strict=True):
        if not pipe.poll(timeout):
            results.append(("error", "no answer"))
        else:
            try:
                results.append(pipe.recv())
            except EOFError:
                results.append(("error", f"exit code {process.exitcode}"))
    for process in processes:
        process.join(5)
        if process.is_alive():
            process.kill()
    for kind, value in results:
        if kind == "error":
            raise AssertionError(value)
    return [value for _, value in results]


def start_group(world_size: int, function: Callable[..., Any], *arguments: Any) -> tuple[list[Any], list[Any]]:
    """The processes of a group, and a pipe from each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes, pipes = [], []
    for rank in range(world_size):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_rank, args=(there, rank, world_size, port, function, arguments))
        process.start()
        there.close()
        processes.append(process)
        pipes.append(here)
    return processes, pipes


def _rank(pipe: Any, rank: int, world_size: int, port: int, function: Callable[..., Any], arguments: Any) -> None:
    os.environ |= {
        "DS_ACCELERATOR": "cpu",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": "2",
    }
    import torch.distributed as dist

    try:
        dist.init_process_group("gloo", rank=rank, world_size=world_size)
        pipe.send(("ok", function(*arguments)))
    except BaseException:
        pipe.send(("error", traceback.format_exc()))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
