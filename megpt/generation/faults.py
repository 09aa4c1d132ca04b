"""A study on which the model fails costs only its own report: its batch is halved until it is alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def reason(error: Exception) -> str:
    """The reason for a failure, short enough to be stored; never the error's message, which may quote its input."""
    if is_out_of_memory(error):
        return "out of memory"
    return f"the model failed ({type(error).__name__})"


def is_out_of_memory(error: Exception) -> bool:
    """Whether a smaller batch may help; torch has no class of its own for the CPU's allocator."""
    words = ("not enough memory", "can't allocate memory")  # of torch on Windows and elsewhere
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words)


def release(error: Exception) -> None:
    """Free the device memory that a failed batch holds."""
    error.__traceback__ = None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def halve_until_alone(
    work: Callable[[list[Item]], Iterable[Result]],
    batch: Sequence[Item],
    alone: Callable[[Item, str], Iterable[Result]],
) -> list[Result]:
    """The results of `work(batch)`; if it raises, those of both halves.

    A single item for which `work` still raises gives the results of `alone(item, reason)`.
    """
    items = list(batch)
    try:
        return list(work(items))
    except Exception as error:
        release(error)
        if len(items) == 1:
            return list(alone(items[0], reason(error)))
    middle = len(items) // 2
    return halve_until_alone(work, items[:middle], alone) + halve_until_alone(work, items[middle:], alone)
