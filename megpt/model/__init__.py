"""MeGPT itself: vision encoder → FEM + DOConv → projector → dynamic prompt → language model.

The names below are loaded on first use, so that importing the package stays cheap if no model is needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megpt.model.build import build_model as build_model
    from megpt.model.checkpoint.fingerprint import fingerprint as fingerprint
    from megpt.model.clusters import fit_prompt_bank as fit_prompt_bank
    from megpt.model.configuration import MeGPTConfig as MeGPTConfig
    from megpt.model.doconv import DOConv2d as DOConv2d
    from megpt.model.fem import FEM as FEM
    from megpt.model.modeling import MeGPTForConditionalGeneration as MeGPTForConditionalGeneration
    from megpt.model.processing import MeGPTImageProcessor as MeGPTImageProcessor
    from megpt.model.processing import MeGPTProcessor as MeGPTProcessor
    from megpt.model.projector import Projector as Projector
    from megpt.model.prompts import PromptBank as PromptBank
    from megpt.model.vision import VisualFeatures as VisualFeatures

_HOMES = {
    "build_model": "build",
    "fingerprint": "checkpoint.fingerprint",
    "MeGPTConfig": "configuration",
    "DOConv2d": "doconv",
    "FEM": "fem",
    "MeGPTForConditionalGeneration": "modeling",
    "VisualFeatures": "vision",
    "MeGPTImageProcessor": "processing",
    "MeGPTProcessor": "processing",
    "Projector": "projector",
    "PromptBank": "prompts",
    "fit_prompt_bank": "clusters",
}

__all__ = list(_HOMES)  # pyrefly: ignore


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"megpt.model.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
