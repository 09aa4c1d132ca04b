"""The small language model trained in a process of its own, whose memory is given back when it ends."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megpt.config import LanguageModelConfig
from megpt.errors import MegptError


def train_apart(
    reports: list[str], settings: LanguageModelConfig, folder: Path, *, seed: int, on_step: Callable[[], None]
) -> float:
    """`train_language_model` apart from this process; `on_step` is called after each step. Returns the last loss.

    Raises:
        MegptError: as `train_language_model`, or the process was killed.
    """
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_train, args=(there, reports, settings, folder, seed), daemon=True)
    process.start()
    there.close()
    try:
        while isinstance(message := here.recv(), int):
            on_step()
    except EOFError:
        process.join()
        raise MegptError(
            "the process that trains the language model has ended",
            where=str(folder),
            cause=f"it was killed (exit code {process.exitcode}), perhaps for want of memory",
            next="run the same command again",
        ) from None
    process.join()
    if isinstance(message, MegptError):
        raise message
    return float(message)


def _train(pipe: Any, reports: list[str], settings: LanguageModelConfig, folder: Path, seed: int) -> None:
    """Sends the number of each step, then the loss or the error that ended it."""
    from megpt.demo.language_model import train_language_model

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both processes: the command ends this one

    def send_step(step: int, loss: float) -> None:
        pipe.send(step)

    try:
        loss = train_language_model(reports, settings, folder, seed=seed, on_step=send_step)
        pipe.send(float(loss))
    except MegptError as error:
        pipe.send(error)
