"""The private parts of Ray that megpt uses are in the installed Ray, by name and by attribute.

- a version of Ray that lacks one fails here, and ends a job, with a text that names it and the Ray to install
- no other file of ray_jobs imports from Ray's private modules
"""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest
import ray

import ray_jobs
from megpt.errors import MegptError
from ray_jobs import ray_private


@pytest.mark.parametrize("name", ray_private.HOMES)
def test_it_is_in_this_ray(name: str) -> None:
    part = getattr(ray_private, name)
    for attribute in ray_private.ATTRIBUTES.get(name, ()):
        # A method or field of the class, or what its constructor sets.
        known = hasattr(part, attribute) or f"self.{attribute} = " in inspect.getsource(part)
        assert known, f"Ray {ray.__version__}: {ray_private.HOMES[name]}.{name} has no {attribute}"


def test_what_its_public_errors_keep() -> None:
    from ray.train import ControllerError, WorkerGroupError

    inner = ValueError("x")
    assert ControllerError(inner).controller_failure is inner
    assert WorkerGroupError("x", {1: inner}).worker_failures == {1: inner}


def test_the_limits_and_the_logger() -> None:
    constants = vars(importlib.import_module(ray_private.CONSTANTS)).values()
    for variable in (ray_private.COLLECTIVE_LIMIT, ray_private.START_LIMIT):
        assert variable in constants, f"Ray {ray.__version__}: {ray_private.CONSTANTS} does not name {variable}"
    module = importlib.import_module(ray_private.REPORT_LOGGER)
    assert module.logger.name == ray_private.report_logger()


def test_its_key_value_store() -> None:
    store = importlib.import_module(ray_private.KV)
    for name, arguments in {
        "_internal_kv_put": {"key", "value", "overwrite", "namespace"},
        "_internal_kv_get": {"key", "namespace"},
        "_internal_kv_list": {"prefix", "namespace"},
        "_internal_kv_del": {"key", "del_by_prefix", "namespace"},
    }.items():
        assert arguments <= inspect.signature(getattr(store, name)).parameters.keys()


def test_a_ray_that_lacks_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ray_private.HOMES, "ResizingState", "ray.train.v3.state")
    with pytest.raises(MegptError) as caught:
        _ = ray_private.ResizingState
    assert str(caught.value) == (
        f"Ray {ray.__version__} has no ray.train.v3.state.ResizingState\n"
        "  where: ray_jobs/ray_private.py\n"
        "  cause: megpt uses this private part of Ray, which another version of Ray moved or removed\n"
        "  next:  install the Ray of constraints.txt"
    )
    with pytest.raises(AttributeError):
        _ = ray_private.Nothing


def test_nothing_else_imports_from_there() -> None:
    for path in Path(ray_jobs.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            private = [name for name in modules if name.startswith("ray.") and ("._" in name or ".v2" in name)]
            assert not private, f"{path}: {private[0]}"
