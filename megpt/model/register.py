"""Making transformers' Auto classes know MeGPT as soon as they exist, without importing them.

`import megpt` must be cheap, since every Ray worker does it, and must register with `AutoConfig` and its kin, whose
import takes seconds. So the registration waits until somebody imports them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

# Importing each of ours registers it.
WAITING = {
    "transformers.models.auto.configuration_auto": "megpt.model.configuration",
    "transformers.models.auto.processing_auto": "megpt.model.processing",
}


class _Loader(Loader):
    """The module's own loader, and our registration behind it."""

    def __init__(self, loader: Loader, then: str):
        self.loader, self.then = loader, then

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        importlib.import_module(self.then)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in WAITING:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, WAITING[fullname])
        return spec


def install() -> None:
    """Register now with what is imported already, and with the rest when it is."""
    for theirs, ours in WAITING.items():
        if theirs in sys.modules:
            importlib.import_module(ours)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
