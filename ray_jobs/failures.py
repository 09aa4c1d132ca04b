"""What an error from a worker means to the person who started the job.

Ray wraps what a worker raises (once per layer: task, Data, Train), and its text holds the whole remote traceback.
Only the megpt error inside is for the screen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from megpt.errors import MegptError, from_text
from megpt.output import is_full, storage_error
from megpt.places import screen

# Faults in code and configuration, which every new start meets again. Their texts name code, never data.
_OF_CODE = (NotImplementedError, TypeError, AttributeError, NameError, ImportError, AssertionError)
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
        if (refused := screen(layer)) is not None:
            return refused
    for layer in layers:
        if is_full(layer):
            filename = getattr(layer, "filename", None)
            return storage_error(layer, filename if isinstance(filename, str) else output or ".")
    return None


def _unwrapped(error: BaseException) -> Iterator[BaseException]:
    """The error and every error that it wraps or names as its cause."""
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
        return "; ".join(f"worker {rank}: {_described(chain[-1])}" for rank, chain in list(causes.items())[:3])
    return _described(_chain(error)[-1])


def raised_by_workers(error: BaseException) -> tuple[tuple[str, str], ...]:
    """Type and text of what the workers raised; nothing where a worker was lost or hung, whatever the others say.

    Two starts that raise the same will raise it a third time.
    """
    chains = [_chain(failure) for failure in _failures(error).values()]
    if any(_lost(cause) or _timed_out(cause) for chain in chains for cause in chain):
        return ()
    return tuple(sorted({(type(chain[-1]).__name__, str(chain[-1])) for chain in chains}))


def is_fault_of_code(error: BaseException) -> bool:
    """Whether a worker raised what no restart mends, such as a NotImplementedError or a TypeError."""
    failures = _failures(error).values()
    return bool(raised_by_workers(error)) and any(isinstance(_chain(failure)[-1], _OF_CODE) for failure in failures)


def _described(cause: BaseException) -> str:
    """The type of an error; and its first line if it cannot hold anything from a report or a table."""
    name = type(cause).__name__
    text = str(cause).strip().partition("\n")[0][:200]
    return f"{name}: {text}" if text and (isinstance(cause, _OF_CODE) or type(cause) is RuntimeError) else name


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
