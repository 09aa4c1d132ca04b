"""The contract between a job and a backend: the decoding rules, the studies that go in, the results that come out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from megpt.config import GenerateConfig


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How tokens are chosen; the fields mean the same as in `transformers.GenerationConfig`."""

    num_beams: int = 1
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0
    min_new_tokens: int = 0
    max_new_tokens: int = 100
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    @classmethod
    def from_config(cls, generate: GenerateConfig, seed: int) -> Decoding:
        """The decoding part of `generate.*`."""
        names = cls.__dataclass_fields__.keys() - {"seed"}
        return cls(seed=seed, **{name: getattr(generate, name) for name in names})


@dataclass(frozen=True, slots=True)
class EngineItem:
    """One study to write a report for.

    `tokens` (N, H) are its visual tokens in the language model's width; `prompt_id` is the number of its prompt.
    `suffix` holds ids that stand after the visual tokens instead of the prompt's own.
    `length` forces the end token to be exactly token number `length`, for measurements at equal lengths. Sampling
    draws by `study`, where one study is in flight under several keys.
    """

    key: str
    tokens: torch.Tensor
    prompt_id: int = 0
    length: int | None = None
    suffix: tuple[int, ...] | None = None
    study: str | None = None

    @property
    def name(self) -> str:
        """What its random numbers depend on."""
        return self.key if self.study is None else self.study


@dataclass(frozen=True, slots=True)
class EngineResult:
    """The tokens written for one study, with the end token if it was reached.

    `finish_reason` is stop (the end token), length (`max_new_tokens`) or error; `error` is the reason for an error.
    `logprobs` has the log-probability of each token under the model itself, without penalties and temperature.
    """

    key: str
    token_ids: tuple[int, ...]
    finish_reason: str
    error: str | None = None
    logprobs: tuple[float, ...] = field(default=(), compare=False)


class PromptedModel(Protocol):
    """The part of MeGPT that a backend needs: the language model, and the prompt's token ids around the image."""

    language_model: Any

    def prompt_ids(self) -> tuple[Sequence[int], Sequence[Sequence[int]]]:
        """Ids before the visual tokens (P,), and after them (S_k,) for each prompt."""
        ...


class Backend(Protocol):
    """Writes reports. `engine` and `hf` write the same ones."""

    def run(self, items: Iterable[EngineItem]) -> Iterator[EngineResult]: ...


def end_tokens(language_model: Any) -> tuple[int, ...]:
    """The ids that end a report.

    Raises:
        ValueError: the model has none.
    """
    for config in (getattr(language_model, "generation_config", None), language_model.config):
        ids = getattr(config, "eos_token_id", None)
        if ids is not None:
            return tuple(ids) if isinstance(ids, list | tuple) else (int(ids),)
    raise ValueError("the language model has no end token (eos_token_id)")


def uniforms(seed: int, key: str, count: int) -> torch.Tensor:
    """`count` numbers in [0, 1), float64 (count,), that depend on the seed and the study, never on its batch."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") & (2**63 - 1))
    return torch.rand(count, generator=generator, dtype=torch.float64)


def draw(scores: torch.Tensor, number: torch.Tensor, *, temperature: float, top_p: float) -> torch.Tensor:
    """One token per row, by inversion of the cumulative distribution.

    Args:
        scores: logits (R, V), float32.
        number: uniform numbers (R,), float64.

    Returns:
        Token ids (R,).
    """
    scores = scores / temperature if temperature != 1.0 else scores
    probabilities, order = scores.double().softmax(-1).sort(dim=-1, descending=True, stable=True)
    if top_p < 1.0:
        # The smallest set of likeliest tokens with a mass of top_p: a token stays if the mass before it is less.
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    mass = probabilities.cumsum(-1)
    position = torch.searchsorted(mass, (number * mass[:, -1]).unsqueeze(-1), right=True)
    return order.gather(-1, position.clamp_(max=scores.shape[-1] - 1)).squeeze(-1)
