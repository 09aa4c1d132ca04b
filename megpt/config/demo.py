"""Settings of what only the demo makes: drawn films and a small language model."""

from __future__ import annotations

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
    """The small language model that the demo trains on report text and saves as an ordinary Hugging Face folder."""

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
