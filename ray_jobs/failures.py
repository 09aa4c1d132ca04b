"""What an error from a worker means to the person who started the job.

Ray wraps what a worker raises (once per layer: task, Data, Train), and its text holds the whole remote traceback.
Only the megpt error inside is for the screen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from megpt.errors import InputError, MegptError, TooManyFailed
from megpt.output import is_full, storage_error

# How a MegptError ends a traceback: its name and sentence, then the labelled lines of MegptError.__str__.
_PRINTED = re.compile(
    r"^megpt\.errors\.(?P<kind>\w+): (?P<what>.+)"
    r"(?:\n  where: (?P<where>.+))?(?:\n  cause: (?P<cause>.+))?(?:\n  next:  (?P<next>.+))?",
    re.MULTILINE,
)
_KINDS = {kind.__name__: kind for kind in (MegptError, InputError, TooManyFailed)}


def known_failure(error: BaseException, output: str | None = None) -> MegptError | None:
    """The MegptError, or the full disk, inside any number of Ray's wrappings; None when there is neither."""
    inner = list(_unwrapped(error))
    for one in inner:
        if isinstance(one, MegptError) and not isinstance(one.cause, BaseException):
            return one
    for one in inner:
        # Ray Data keeps the worker's error as text alone.
        if (found := _PRINTED.search(str(one))) and found["kind"] in _KINDS:
            return _KINDS[found["kind"]](found["what"], found["where"], found["cause"], found["next"])
    for one in inner:
        if is_full(one):
            filename = getattr(one, "filename", None)
            return storage_error(one, filename if isinstance(filename, str) else output or ".")
    return None


def _unwrapped(error: BaseException) -> Iterator[BaseException]:
    """The error and every error it says it came from, innermost of Ray's wrappings included."""
    queue, seen = [error], set()
    while queue:
        one = queue.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        # RayTaskError and ControllerError keep the worker's error as an attribute; WorkerGroupError one per rank.
        inside = [getattr(one, name, None) for name in ("cause", "controller_failure", "__cause__", "__context__")]
        failures = getattr(one, "worker_failures", None)
        inside += list(failures.values()) if isinstance(failures, dict) else []
        queue += [e for e in inside if isinstance(e, BaseException)]
