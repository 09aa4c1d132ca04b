"""What an error from a worker means to the person who started the job.

Ray wraps what a worker raises (once per layer: task, Data, Train), and its text holds the whole remote traceback.
Only the megpt error inside is for the screen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from megpt.errors import MegptError, from_text
from megpt.output import is_full, storage_error

PREEMPTED = "a node was taken away after notice (preemption)"


def known_failure(error: BaseException, output: str | None = None) -> MegptError | None:
    """The MegptError, or the full disk, inside any number of Ray's wrappings; None when there is neither."""
    layers = list(_unwrapped(error))
    for layer in layers:
        if isinstance(layer, MegptError) and not isinstance(layer.cause, BaseException):
            return layer
    for layer in layers:
        # Ray Data keeps the worker's error as text alone.
        if known := from_text(str(layer)):
            return known
    for layer in layers:
        if is_full(layer):
            filename = getattr(layer, "filename", None)
            return storage_error(layer, filename if isinstance(filename, str) else output or ".")
    return None


def _unwrapped(error: BaseException) -> Iterator[BaseException]:
    """The error and every error it says it came from, innermost of Ray's wrappings included."""
    queue, seen = [error], set()
    while queue:
        layer = queue.pop(0)
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        yield layer
        # RayTaskError and ControllerError keep the worker's error as an attribute; WorkerGroupError one per rank.
        queue += _inside(layer, "cause", "controller_failure", "__cause__", "__context__")
        queue += _failures(layer).values()


def _inside(error: BaseException, *names: str) -> list[BaseException]:
    """The errors that an error of Ray keeps under these attributes."""
    return [inner for name in names if isinstance(inner := getattr(error, name, None), BaseException)]


def _failures(error: BaseException) -> dict[int, BaseException]:
    """Ray Train's error of each worker by rank; empty for any other error."""
    failures = getattr(error, "worker_failures", None)
    return failures if isinstance(failures, dict) else {}


def cause_of(error: BaseException, timeout_s: float) -> str:
    """Why a group of training workers ended, in a line.

    Args:
        timeout_s: the limit of a collective operation, which is named when it was met.
    """
    from ray.train import PreemptionError

    if isinstance(error, PreemptionError):
        return PREEMPTED
    causes = {rank: _chain(failure) for rank, failure in sorted(_failures(error).items())}
    # What the others say of a lost worker (a connection was closed) is its consequence.
    if gone := [rank for rank, chain in causes.items() if any(map(_lost, chain))]:
        return f"the process of worker {', '.join(map(str, gone[:3]))} died, or its node"
    if any(_timed_out(cause) for chain in causes.values() for cause in chain):
        return f"a collective operation hung longer than train.timeout_s = {timeout_s:g} s"
    if causes:
        return "; ".join(f"worker {rank}: {type(chain[-1]).__name__}" for rank, chain in list(causes.items())[:3])
    return type(_chain(error)[-1]).__name__


def _lost(cause: BaseException) -> bool:
    """Whether a worker's error is that there is no worker any more."""
    from ray.exceptions import NodeDiedError, RayActorError, WorkerCrashedError

    return isinstance(cause, (RayActorError, WorkerCrashedError, NodeDiedError))


def _timed_out(cause: BaseException) -> bool:
    from ray.exceptions import RayTaskError

    if isinstance(cause, RayTaskError):  # its text is a whole traceback, lines of code included
        return False
    return "Timeout" in type(cause).__name__ or re.search(r"[Tt]imed out|\btimeout\b", str(cause)) is not None


def _chain(error: BaseException) -> list[BaseException]:
    """An error, what it came from, and so on to the first cause."""
    chain: list[BaseException] = []
    inner: BaseException | None = error
    while inner is not None and inner not in chain:
        chain.append(inner)
        # Ray Train keeps what it saw of a lost worker, and what its own controller met, under names of its own.
        named = _inside(inner, "health_check_failure", "controller_failure", "cause")
        inner = named[0] if named else inner.__cause__
    return chain
