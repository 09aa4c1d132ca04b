"""A study that makes the model fail must cost itself only: batches are halved until it is alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from megpt.generation.decoding import EngineItem, EngineResult


def reason(error: Exception) -> str:
    """What went wrong, in a few words that can be stored: never the message, which may quote its input."""
    if is_out_of_memory(error):
        return "out of memory"
    return f"the model failed ({type(error).__name__})"


def is_out_of_memory(error: Exception) -> bool:
    """Whether halving the batch would help by itself; torch has no class of its own for the CPU's allocator."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(error)


def release(error: Exception) -> None:
    """Let go of what a failed batch holds on the device."""
    error.__traceback__ = None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def split_until_alone(
    work: Callable[[list[EngineItem]], list[EngineResult]], batch: Sequence[EngineItem]
) -> list[EngineResult]:
    """`work(batch)`; where it raises, both halves by themselves, and a single study that raises is an error result."""
    items = list(batch)
    try:
        return work(items)
    except Exception as error:
        release(error)
        if len(items) == 1:
            return [EngineResult(items[0].key, (), "error", reason(error))]
    middle = len(items) // 2
    return split_until_alone(work, items[:middle]) + split_until_alone(work, items[middle:])
