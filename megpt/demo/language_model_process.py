"""The small language model trained in a process of its own, whose memory is given back when it ends."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megpt.config import LanguageModelConfig
from megpt.errors import MegptError

if TYPE_CHECKING:
    from megpt.demo.language_model import Fit


def train_apart(
    reports: list[str],
    held_out: list[str],
    settings: LanguageModelConfig,
    folder: Path,
    *,
    seed: int,
    on_step: Callable[[], None],
) -> Fit:
    """`train_language_model` apart from this process; `on_step` is called after each step.

    Raises:
        MegptError: as `train_language_model`, or the process was killed.
    """
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_train, args=(there, reports, held_out, settings, folder, seed), daemon=True)
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
    fit: Fit = message
    return fit


def _train(
    pipe: Any, reports: list[str], held_out: list[str], settings: LanguageModelConfig, folder: Path, seed: int
) -> None:
    """Sends the number of each step, then how it ended, or the error that ended it."""
    from megpt.demo.language_model import train_language_model

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both processes: the command ends this one

    def send_step(step: int, loss: float) -> None:
        pipe.send(step)

    try:
        pipe.send(train_language_model(reports, settings, folder, seed=seed, held_out=held_out, on_step=send_step))
    except MegptError as error:
        pipe.send(error)
