"""Reports for studies, in one process: the batch engine, the reference backend, and the table that they fill.

The names below are imported on first use, so that decoding films or reading a table does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megpt.generation.decoding import Decoding, EngineItem, EngineResult
    from megpt.generation.engine import GenerationEngine
    from megpt.generation.hf import HFBackend
    from megpt.generation.writer import Prediction, ReportWriter

_HOMES = {
    "Decoding": "decoding",
    "EngineItem": "decoding",
    "EngineResult": "decoding",
    "GenerationEngine": "engine",
    "HFBackend": "hf",
    "Prediction": "writer",
    "ReportWriter": "writer",
}

__all__ = [
    "Decoding",
    "EngineItem",
    "EngineResult",
    "GenerationEngine",
    "HFBackend",
    "Prediction",
    "ReportWriter",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"megpt.generation.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
