"""The parts of Ray that megpt needs and Ray does not promise to keep; nothing else in ray_jobs names them.

    from ray_jobs import ray_private
    class GroupWatch(ray_private.ControllerCallback): ...

Each is imported when it is first used. tests/ray_jobs/test_ray_private.py holds every name and attribute below against
the installed Ray.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megpt.errors import MegptError

STATES = "ray.train.v2._internal.execution.controller.state"
HOMES = {
    "ExecutionCallback": "ray.data._internal.execution.execution_callback",
    "ControllerCallback": "ray.train.v2._internal.execution.callback",
    "WorkerHealthCheckFailedError": "ray.train.v2._internal.exceptions",
    **dict.fromkeys(("InitializingState", "RestartingState", "ReschedulingState"), STATES),
    **dict.fromkeys(("SchedulingState", "ResizingState", "PreemptingState", "ShuttingDownState"), STATES),
}
"""Name → the module of Ray that has it."""

ATTRIBUTES = {
    "ExecutionCallback": ("on_execution_step",),
    "ControllerCallback": ("after_controller_state_update",),
    "WorkerHealthCheckFailedError": ("health_check_failure",),
    "RestartingState": ("training_failed_error",),
}
"""What megpt overrides in a class or reads from its objects."""

CONSTANTS = "ray.train.v2._internal.constants"
COLLECTIVE_LIMIT, START_LIMIT = "RAY_TRAIN_COLLECTIVE_TIMEOUT_S", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
"""Environment variables that Ray Train reads; the module `CONSTANTS` names them."""

REPORT_LOGGER = "ray.train.v2._internal.execution.context"
"""The module whose logger prints each training report in full; it is named by the module's file."""


UTILS = "ray._private.utils"
"""The module through which Ray sets its handler of SIGTERM."""
PACKAGING = "ray._private.runtime_env.packaging"
"""The module that walks a working directory for its upload."""

KV, KV_SPACE = "ray.experimental.internal_kv", b"megpt"
"""The cluster's own key-value store, which holds what is small and for a short time, and the namespace used in it."""


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(HOMES[name]), name)
    except (ImportError, AttributeError):
        raise missing(f"{HOMES[name]}.{name}") from None


def missing(name: str) -> MegptError:
    import ray

    return MegptError(
        f"Ray {ray.__version__} has no {name}",
        where="ray_jobs/ray_private.py",
        cause="megpt uses this private part of Ray, which another version of Ray moved or removed",
        next="install the Ray of constraints.txt",
    )


@contextlib.contextmanager
def without_sigterm_handler() -> Iterator[None]:
    """`ray.init` in the block leaves SIGTERM as it is: its own handler would end the process with exit code 15."""
    try:
        utils: Any = importlib.import_module(UTILS)
        handler = utils.set_sigterm_handler
    except (ImportError, AttributeError):
        raise missing(f"{UTILS}.set_sigterm_handler") from None
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = handler


def uploaded(folder: Path) -> list[str]:
    """The files that Ray would upload with a job submitted from a folder, relative to it, in order."""
    try:
        packaging = importlib.import_module(PACKAGING)
        travel = packaging._dir_travel
    except (ImportError, AttributeError):
        raise missing(f"{PACKAGING}._dir_travel") from None
    found: list[Path] = []
    quiet = logging.getLogger("megpt.upload")
    quiet.setLevel(logging.ERROR)
    travel(folder, [], found.append, include_gitignore=True, logger=quiet)
    return sorted(str(path.relative_to(folder)) for path in found if path.is_file())


def tell(key: str, text: str) -> None:
    """Put a short text into the cluster's key-value store."""
    _kv("_internal_kv_put")(key, text, overwrite=True, namespace=KV_SPACE)


def told(prefix: str) -> dict[str, bytes]:
    """What was told under keys that begin so, by the rest of each key."""
    found = {}
    for key in _kv("_internal_kv_list")(prefix, namespace=KV_SPACE):
        if (text := _kv("_internal_kv_get")(key, namespace=KV_SPACE)) is not None:
            found[key.decode().removeprefix(prefix)] = text
    return found


def forget(prefix: str) -> None:
    """Remove what was told under keys that begin so."""
    _kv("_internal_kv_del")(prefix, del_by_prefix=True, namespace=KV_SPACE)


def _kv(name: str) -> Any:
    try:
        return getattr(importlib.import_module(KV), name)
    except (ImportError, AttributeError):
        raise missing(f"{KV}.{name}") from None


def report_logger() -> str:
    """The name of the logger of `REPORT_LOGGER`."""
    try:
        return str(importlib.import_module(REPORT_LOGGER).__file__)
    except ImportError:
        raise missing(REPORT_LOGGER) from None
