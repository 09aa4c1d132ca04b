"""Can this class of language model be trained, and who can write with it? Tried before anything is paid for.

    generate = usable_backend(config.generate, text_config)      # the same, or backend=hf with a word, or InputError

A small model of the class computes a few tokens in four ways, which must agree to rounding: the plain forward pass
over a whole sequence, without padding or cache; the pass that training makes, over a padded batch; the engine's, step
by step with beams that share one cache; and that of `transformers.generate`. A class that ignores the mask, keeps a
state that cannot be shared, or needs token ids shows here, in about a second, and not after the training. The verdict
is remembered (megpt/places/remembered.py): the next command does not pay for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from megpt.config import GenerateConfig
from megpt.errors import InputError
from megpt.generation.cache import slot_attention
from megpt.generation.decoding import Decoding, EngineItem
from megpt.generation.engine import GenerationEngine
from megpt.generation.hf import HFBackend
from megpt.generation.limits import chosen, model_class
from megpt.model.language import hidden_states, vocabulary_head
from megpt.model.reduced import quiet_transformers, reduced_language_model
from megpt.places.remembered import recall, remember, software
from megpt.progress import log

MORE = "its layers need more than keys, values and a mask"
STEPS = 3
PREFIX, SUFFIXES = [3, 4, 5], [[6, 7, 8], [9, 10, 11, 12, 13]]
VISUAL = 4
TOLERANCE = 2e-3
"""Largest difference of two logits, in standard deviations of all of them; rounding gives about 1e-5."""


@dataclass(frozen=True)
class Verdict:
    """Why training, the engine or `hf` cannot work with a class; None where it can. `untried` says why nobody knows."""

    training: str | None = None
    engine: str | None = None
    hf: str | None = None
    untried: str | None = None


class Disagreement(Exception):
    """Logits that differ from those of the plain forward pass."""


def usable(
    generate: GenerateConfig, config: PreTrainedConfig, *, prompt: int | None = None, to_train: bool = False
) -> GenerateConfig:
    """The settings with a backend that works with this class of language model: as configured, or `hf` with a word.

    Args:
        config: the language model's.
        prompt: the longest prompt in tokens, visual ones included, where it is known already.
        to_train: whether the class must be fit for training too.

    Raises:
        InputError: the class cannot be trained, or no backend can write with it.
    """
    found = verdict(config, generate.num_beams)
    name = model_class(config)
    if found.untried:
        log(f"language model: {name} cannot be tried at a small size ({found.untried}); taken as it is configured")
    if to_train and found.training:
        raise InputError(
            f"a {name} cannot be the language model of MeGPT",
            where="model.llm",
            cause=found.training,
            next="set model.llm to a decoder that takes embeddings and a mask, such as Llama, Qwen, Mistral or Gemma",
        )
    reasons = {"engine": found.engine, "hf": found.hf}
    return chosen(generate, config, {backend: why for backend, why in reasons.items() if why}, prompt)


def verdict(config: PreTrainedConfig, beams: int) -> Verdict:
    """Try the class of a language model's config, with two seeds where the first disagrees.

    Raises nothing: a class that cannot be built small is `untried`.
    """
    key = (type(config), config.to_json_string(use_diff=False), beams)
    if key not in _KNOWN:
        _KNOWN[key] = _recalled(config, beams)
    return _KNOWN[key]


_KNOWN: dict[tuple[type[PreTrainedConfig], str, int], Verdict] = {}


def _recalled(config: PreTrainedConfig, beams: int) -> Verdict:
    """What an earlier command has found, or what is found now."""
    home = type(config).__module__
    if not home.startswith("transformers."):
        return _tried(config, beams)[0]  # nothing is known of the code of other classes
    fields = json.loads(config.to_json_string(use_diff=False))
    fields.pop("_name_or_path", None)
    depends = [f"{home}.{type(config).__name__}", fields, beams, software("generation", "model")]
    try:
        return Verdict(**recall("trial", depends))
    except TypeError:  # nothing, or not what was written
        found, certain = _tried(config, beams)
        if certain:
            remember("trial", depends, asdict(found))
        return found


def _tried(config: PreTrainedConfig, beams: int) -> tuple[Verdict, bool]:
    """The verdict, and whether the next trial would come to the same."""
    models: list[_Tried] = []
    unforeseen: list[Exception] = []

    def fault(check: Callable[[_Tried], None]) -> str | None:
        """Why a check fails; None when it passes with either seed: two experts may tie by chance."""
        found = None
        for seed in range(2):
            if len(models) == seed:
                models.append(_Tried(reduced_language_model(config, seed=seed)))
            try:
                check(models[seed])
                return None
            except Disagreement as error:
                found = str(error)
            except NotImplementedError as error:  # the engine's own, and names what
                return f"{MORE}: {error}"
            except (IndexError, AttributeError) as error:
                return f"{MORE} ({type(error).__name__})"
            except Exception as error:
                unforeseen.append(error)  # too little memory, for instance
                return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:160]}"
        return found

    try:
        with torch.no_grad(), quiet_transformers():
            found = Verdict(
                fault(check_training),
                fault(lambda model: check_engine(model, beams)),
                fault(lambda model: check_hf(model, beams)),
            )
            return found, not unforeseen
    except InputError as error:
        return Verdict(untried=error.cause), False


class _Tried:
    """A small model, with what a backend asks of MeGPT, and two studies of unequal prompts."""

    def __init__(self, language_model: Any):
        self.language_model = language_model
        self.attention = language_model.config._attn_implementation
        self.embed = language_model.get_input_embeddings()
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randn(2, VISUAL, self.embed.embedding_dim, generator=generator)
        self.items = [EngineItem(str(n), visual, n) for n, visual in enumerate(tokens)]

    def prompt_ids(self) -> tuple[list[int], list[list[int]]]:
        return PREFIX, SUFFIXES

    def prompt(self, number: int) -> Tensor:
        """Embeddings (T, H)."""
        ids = (torch.tensor(PREFIX), torch.tensor(SUFFIXES[number]))
        return torch.cat([self.embed(ids[0]), self.items[number].tokens, self.embed(ids[1])])

    def plain(self, number: int, report: Tensor) -> Tensor:
        """Logits (L + 1, vocabulary) behind the prompt and behind each token of a report (L,), without any cache."""
        whole = torch.cat([self.prompt(number), self.embed(report)])[None]
        return self.language_model(inputs_embeds=whole, use_cache=False).logits[0, -len(report) - 1 :].float()


def check_training(model: _Tried) -> None:
    """A padded batch of two studies, as training computes it."""
    report = torch.tensor([20, 21, 22, 23])
    prompts = [model.prompt(number) for number in range(2)]
    longest = max(map(len, prompts))
    rows = [torch.cat([p.new_zeros(longest - len(p), p.shape[1]), p, model.embed(report)]) for p in prompts]
    mask = torch.ones(2, longest + len(report), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        mask[row, : longest - len(prompt)] = 0
    hidden = hidden_states(model.language_model, torch.stack(rows), mask)
    logits = vocabulary_head(model.language_model)(hidden[:, longest - 1 :]).float()
    for number in range(2):
        _compare(logits[number], model.plain(number, report), "a padded batch gives other scores than a study alone")


def check_engine(model: _Tried, beams: int) -> None:
    """The prompts, then steps in which beams part."""
    lengths = {"min_new_tokens": STEPS + 1, "max_new_tokens": STEPS + 1}
    engine = GenerationEngine(model, Decoding(num_beams=beams, **lengths), slots=2)
    seen: list[Tensor] = []
    with slot_attention(model.language_model):
        slots = engine.open(model.items[1], forced=False)
        state = slots.flight.state
        engine.prefill(slots, [0, 1], model.items)
        expected = [(row, _own_attention(model, row, model.items[row].tokens.new_empty(0).long())) for row in range(2)]
        for row, logits in expected:
            logits[-1, list(engine.end)] = -torch.inf
            best = logits[-1].topk(beams)[0].sort()[0]
            _compare(logits[-1][state.tokens[row, :, 0]].sort()[0], best, "its first scores are wrong")
        handle = model.language_model.register_forward_hook(lambda _, __, out: seen.append(out.logits.float().clone()))
        try:
            for step in range(1, STEPS + 1):
                written = state.tokens[:, :, :step].clone()
                slots.decode()
                decoded = seen[-1]
                for row, reports in enumerate(written):
                    for beam, report in enumerate(reports):
                        logits = _own_attention(model, row, report)[-1]
                        _compare(decoded[row, beam], logits, "its scores with beams in one cache are wrong")
        finally:
            handle.remove()


def _own_attention(model: _Tried, row: int, report: Tensor) -> Tensor:
    """`plain` inside `slot_attention`."""
    config = model.language_model.config
    engine, config._attn_implementation = config._attn_implementation, model.attention
    logits = model.plain(row, report)
    config._attn_implementation = engine
    return logits


def check_hf(model: _Tried, beams: int) -> None:
    """A padded batch through `transformers.generate`."""
    rules = Decoding(num_beams=beams, length_penalty=0.0, min_new_tokens=STEPS + 1, max_new_tokens=STEPS + 1)
    backend = HFBackend(model, rules, batch_size=2)
    embeds, mask = backend.assemble(model.items)
    out = model.language_model.generate(
        inputs_embeds=embeds,
        attention_mask=mask,
        generation_config=backend.settings(),
        output_logits=True,
        output_scores=True,
        return_dict_in_generate=True,
    )
    for row, report in enumerate(out.sequences):
        logits = model.plain(row, report)[:-1]
        if beams == 1:
            found = torch.stack([step[row].float() for step in out.logits])
            _compare(found, logits, "its scores in a padded batch are wrong")
        else:
            total = logits.log_softmax(-1).gather(1, report[:, None]).sum()
            _compare(out.sequences_scores[row], total, "its scores with beams in a padded batch are wrong")


def _compare(found: Tensor, expected: Tensor, what: str) -> None:
    if not expected.isfinite().any():
        return  # random weights that give no numbers say nothing about the class
    scale = float(expected[expected.isfinite()].std()) if expected.numel() > 1 else 1.0
    difference = (found - expected).nan_to_num(posinf=0.0, neginf=0.0).abs().max()
    if bool(found.isnan().any()) or float(difference) > TOLERANCE * max(scale, 1e-3):
        raise Disagreement(what)
