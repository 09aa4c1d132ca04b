"""MeGPT itself: vision encoder → FEM + DOConv → projector → dynamic prompt → language model.

The names below load on first use, so that importing the package stays cheap where no model is needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megpt.model.build import build_model
    from megpt.model.checkpoint.fingerprint import fingerprint
    from megpt.model.configuration import MeGPTConfig
    from megpt.model.doconv import DOConv2d
    from megpt.model.fem import FEM
    from megpt.model.modeling import MeGPTForConditionalGeneration
    from megpt.model.processing import MeGPTImageProcessor, MeGPTProcessor
    from megpt.model.projector import Projector
    from megpt.model.prompts import PromptBank, fit_prompt_bank
    from megpt.model.visual import VisualFeatures

_HOMES = {
    "build_model": "build",
    "fingerprint": "checkpoint.fingerprint",
    "MeGPTConfig": "configuration",
    "DOConv2d": "doconv",
    "FEM": "fem",
    "MeGPTForConditionalGeneration": "modeling",
    "VisualFeatures": "visual",
    "MeGPTImageProcessor": "processing",
    "MeGPTProcessor": "processing",
    "Projector": "projector",
    "PromptBank": "prompts",
    "fit_prompt_bank": "prompts",
}

__all__ = [
    "FEM",
    "DOConv2d",
    "MeGPTConfig",
    "MeGPTForConditionalGeneration",
    "MeGPTImageProcessor",
    "MeGPTProcessor",
    "Projector",
    "PromptBank",
    "VisualFeatures",
    "build_model",
    "fingerprint",
    "fit_prompt_bank",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"megpt.model.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
