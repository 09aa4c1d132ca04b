"""Tiny models of every shape: `make_model(kind, **model_settings)`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import TINY, MakeModel, films

from megpt.config import ModelConfig


@pytest.fixture(scope="session")
def make_model(tiny_llm: Path) -> MakeModel:
    """Build an untrained model; K prompts whose centres are the features of K films, so that all of them are in use."""
    from megpt.model import PromptBank, build_model
    from megpt.model.build import build_encoder, build_image_processor
    from megpt.model.vision import prompt_features

    def make(kind: str = "vit", *, prompts: int = 3, seed: int = 0, dtype: Any = torch.float32, **settings: Any) -> Any:
        tree = {"vision_weights": "none", "llm": str(tiny_llm), **TINY[kind], **settings}
        config = ModelConfig.model_validate(tree)
        bank = None
        if config.dynamic_prompt:
            encoder, identity = build_encoder(config, seed=seed)
            inputs = build_image_processor(encoder)([[film] for film in films(prompts, seed=1)])
            centres = prompt_features(encoder, inputs["pixel_values"], inputs["view_mask"])
            texts = [f"Describe the {part}." for part in ("heart", "lungs and the pleura", "bones", "film")][:prompts]
            bank = PromptBank(texts=tuple(texts), centroids=centres, encoder=identity)
        return build_model(config, bank=bank, seed=seed, dtype=dtype)

    return make
