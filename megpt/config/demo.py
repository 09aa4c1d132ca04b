"""Settings of what a run without a hub makes for itself: drawn films, and a small language model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megpt.settings import Positive, Section


class PhantomConfig(Section):
    """The demo's archive: drawn films with findings of known kind, side and size."""

    num_studies: Positive = 5000
    """How many studies to draw."""
    image_size: Positive = 128
    """Shorter side of a drawn film, in pixels."""
    broken: int = Field(default=12, ge=0)
    """Studies whose film is damaged on purpose: truncated, empty, misnamed or missing."""


class LanguageModelConfig(Section):
    """The small language model that is fitted to the training reports, an ordinary Hugging Face folder."""

    vocab_size: Positive = 512
    """Size of its vocabulary, in tokens."""
    hidden_size: Positive = 128
    """Width of its hidden states."""
    num_layers: Positive = 4
    """Number of its decoder layers."""
    num_heads: Positive = 4
    """Attention heads per layer."""
    steps: Positive = 600
    """Optimizer steps of its training."""
    batch_size: Positive = 32
    """Reports per step."""
    lr: float = Field(default=2e-3, gt=0)
    """Peak learning rate of AdamW."""
    val_every: Positive | None = None
    """Steps between losses on the val split's reports; the step with the lowest is kept. Never by default."""
    patience: Positive = 3
    """Such losses in a row without a new lowest after which training stops."""


class RunConfig(Section):
    """Which weights a run of all jobs starts from."""

    language_model: Literal["named", "packaged", "fitted"] = "named"
    """`model.llm` as named; that of an installed package (`pretrained`); or a small one that `language-model` fits."""
    encoder: Literal["named", "packaged"] = "named"
    """`model.vision_weights` as named, or the EfficientNet-Lite0 of an installed package (`pretrained`)."""
