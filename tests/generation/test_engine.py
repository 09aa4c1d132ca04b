"""The engine writes what `transformers.generate` writes, and each study's report depends on that study alone.

- greedy, with repetition penalty and length rules, and three beams with the paper's settings: equal token by token to
  generate, on Llama, grouped-query Llama, Qwen 2, Mistral and GPT-2, for prompts and reports of mixed lengths
- 500 studies with the paper's decoding are equal
- sampled reports depend on (seed, study) alone: not on slots, order or company; another seed gives others
- slots, order and company change no text; the same input gives the same results in the same order
- bfloat16 works, and most texts equal those of generate in bfloat16
- lengths can be imposed, on both backends alike
- studies with different numbers of visual tokens share one run
- an empty stream gives nothing; one study works; the model's own attention is restored behind a run
- a study with NaN tokens is an error by itself, its neighbours and the next user of its slot are untouched
- a study on which the model raises, in the prompt's pass or later, is found by halving, on both backends
- running out of memory is survived with fewer slots
- a prompt that leaves no room for a report, or a too small attention window, is refused before anything is written
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from bare_models import END, SHAPES, Prompted, language_model, studies

from megpt.errors import InputError
from megpt.generation import Decoding, EngineItem, EngineResult, GenerationEngine, HFBackend
from megpt.generation.cache import SlotCache

GREEDY = Decoding(max_new_tokens=30)
PENALISED = Decoding(max_new_tokens=30, repetition_penalty=2.0, min_new_tokens=5)
PAPER = Decoding(num_beams=3, repetition_penalty=2.0, length_penalty=2.0, min_new_tokens=4, max_new_tokens=30)
SAMPLED = Decoding(do_sample=True, temperature=0.8, top_p=0.9, max_new_tokens=20, seed=3)


def engine(model: Prompted, rules: Decoding, items: list[EngineItem], slots: int = 8) -> dict[str, EngineResult]:
    found = list(GenerationEngine(model, rules, slots=slots).run(items))
    assert len(found) == len({r.key for r in found}) == len(items)
    return {r.key: r for r in found}


def reference(model: Prompted, rules: Decoding, items: list[EngineItem]) -> dict[str, EngineResult]:
    return {r.key: r for r in HFBackend(model, rules, batch_size=8).run(items)}


@pytest.mark.parametrize("rules", [GREEDY, PENALISED, PAPER], ids=["greedy", "penalised", "paper"])
@pytest.mark.parametrize("kind", SHAPES)
def test_equal_to_generate(kind: str, rules: Decoding) -> None:
    model, items = language_model(kind), studies(20)
    expected = reference(model, rules, items)
    assert engine(model, rules, items) == expected
    assert len({r.token_ids for r in expected.values()}) > 3  # or equality would say little


@pytest.mark.slow
@pytest.mark.parametrize("rules", [PENALISED, PAPER], ids=["greedy", "paper"])
def test_500_studies_are_equal(rules: Decoding) -> None:
    model, items = language_model("llama_gqa"), studies(500)
    assert engine(model, rules, items, slots=32) == reference(model, rules, items)


def test_the_reference_is_plain_generate_one_by_one() -> None:
    model, items = language_model(), studies(4)
    embed = model.language_model.get_input_embeddings()
    prefix, suffixes = model.prompt_ids()
    for result in HFBackend(model, PAPER, batch_size=4).run(items):
        item = next(i for i in items if i.key == result.key)
        with torch.no_grad():
            prompt = torch.cat(
                [embed(torch.tensor(prefix)), item.tokens, embed(torch.tensor(suffixes[item.prompt_id]))]
            )
            (plain,) = model.language_model.generate(
                inputs_embeds=prompt[None],
                num_beams=3,
                repetition_penalty=2.0,
                length_penalty=2.0,
                min_new_tokens=4,
                max_new_tokens=30,
            ).tolist()
        assert tuple(plain[: len(result.token_ids)]) == result.token_ids


def test_sampling_depends_on_seed_and_study_alone() -> None:
    model, items = language_model(), studies(12)
    first = engine(model, SAMPLED, items, slots=4)
    assert engine(model, SAMPLED, items[::-1], slots=5) == first
    assert engine(model, SAMPLED, items[3:4])[items[3].key] == first[items[3].key]
    assert reference(model, SAMPLED, items) == first
    other = engine(model, Decoding(do_sample=True, temperature=0.8, top_p=0.9, max_new_tokens=20, seed=4), items)
    assert other != first
    assert first != engine(model, Decoding(max_new_tokens=20), items)


@pytest.mark.parametrize("slots", [1, 3, 40])
def test_company_changes_nothing(slots: int) -> None:
    model, items = language_model("llama_gqa"), studies(18)
    expected = engine(model, PAPER, items)
    assert engine(model, PAPER, items[::-1], slots=slots) == expected


def test_the_same_input_gives_the_same_order() -> None:
    model, items = language_model(), studies(15)
    runs = [[r.key for r in GenerationEngine(model, PENALISED, slots=4).run(items)] for _ in range(2)]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("beams", [1, 3])
def test_imposed_lengths(beams: int) -> None:
    model = language_model()
    items = [EngineItem(i.key, i.tokens, i.prompt_id, length=3 + n) for n, i in enumerate(studies(9))]
    rules = Decoding(num_beams=beams, max_new_tokens=20)
    found = engine(model, rules, items, slots=4)
    assert [len(found[i.key].token_ids) for i in items] == [i.length for i in items]
    assert all(r.token_ids[-1] == END and r.finish_reason == "stop" for r in found.values())
    assert found == reference(model, rules, items)


@pytest.mark.parametrize("rules", [PENALISED, PAPER], ids=["greedy", "paper"])
@pytest.mark.parametrize("kind", ["llama_gqa", "gpt2"])
def test_bfloat16(kind: str, rules: Decoding) -> None:
    model, items = language_model(kind), studies(20)
    precise = reference(model, rules, items)
    model.language_model.to(torch.bfloat16)
    found, expected = engine(model, rules, items), reference(model, rules, items)
    assert found != precise  # it is a different arithmetic
    assert all(rules.min_new_tokens < len(r.token_ids) <= 30 and r.error is None for r in found.values())
    # Sums are rounded differently in batches of different shapes, so that a near tie may fall either way.
    assert sum(found[key] == expected[key] for key in found) >= 10


def test_different_numbers_of_visual_tokens() -> None:
    model = language_model()
    items = [EngineItem(f"{n}", i.tokens, i.prompt_id) for n, i in enumerate(studies(5) + studies(5, 2, 18))]
    assert engine(model, PENALISED, items, slots=3) == reference(model, PENALISED, items)


def test_nothing_and_one() -> None:
    model = language_model()
    assert engine(model, PAPER, []) == {}
    before = model.language_model.config._attn_implementation
    assert len(engine(model, PAPER, studies(1))) == 1
    assert model.language_model.config._attn_implementation == before


def test_finish_reason() -> None:
    found = engine(language_model(), GREEDY, studies(20))
    for result in found.values():
        assert (result.finish_reason == "stop") == (result.token_ids[-1] == END)
        assert result.finish_reason == "stop" or len(result.token_ids) == 30
    assert {r.finish_reason for r in found.values()} == {"stop", "length"}


@pytest.mark.parametrize("rules", [PENALISED, PAPER], ids=["greedy", "beams"])
def test_not_a_number_costs_one_study(rules: Decoding) -> None:
    model, items = language_model(), studies(14)
    clean = engine(model, rules, items, slots=4)
    items[3] = EngineItem(items[3].key, torch.full_like(items[3].tokens, torch.nan), items[3].prompt_id)
    for found in (engine(model, rules, items, slots=4), reference(model, rules, items)):
        assert found[items[3].key].finish_reason == "error"
        assert found[items[3].key].token_ids == ()
        assert all(found[i.key] == clean[i.key] for i in items if i.key != items[3].key)


class Fails:
    """Lets the language model raise as soon as a prompt holds a marked study, or while it is in flight."""

    def __init__(self, model: Prompted, error: Exception, *, largest_batch: int | None = None):
        self.error, self.largest = error, largest_batch
        model.language_model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        embeds, ids = kwargs.get("inputs_embeds"), kwargs.get("input_ids")
        marked = embeds is not None and bool((embeds == 77.0).any())
        rows = len(embeds) if embeds is not None else len(ids)
        if marked or (self.largest is not None and rows > self.largest):
            raise self.error


def test_a_study_that_raises_is_found() -> None:
    items = studies(14)
    clean = engine(language_model(), PAPER, items, slots=4)
    items[5] = EngineItem(items[5].key, torch.full_like(items[5].tokens, 77.0), 0)
    for run in (engine, reference):
        model = language_model()
        Fails(model, RuntimeError("says something private"))
        found = run(model, PAPER, items)
        assert found[items[5].key].error == "the model failed (RuntimeError)"
        assert all(found[i.key] == clean[i.key] for i in items if i.key != items[5].key)


def test_out_of_memory_is_survived_with_fewer_slots() -> None:
    items = studies(14)
    clean = engine(language_model(), PAPER, items)
    model = language_model()
    Fails(model, torch.OutOfMemoryError("CUDA out of memory"), largest_batch=3)
    assert engine(model, PAPER, items, slots=8) == clean


CANNOT_ALLOCATE = (
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."),
)


@pytest.mark.parametrize("error", CANNOT_ALLOCATE, ids=["cuda", "cpu"])
def test_buffers_that_memory_does_not_suffice_for(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    items = studies(14)
    clean = engine(language_model(), PAPER, items)
    tried: list[tuple[int, int]] = []

    class Small(SlotCache):
        def __init__(self, slots: int, width: int):
            tried.append((slots, width))
            if slots > 3:
                raise error
            super().__init__(slots, width)

    monkeypatch.setattr("megpt.generation.engine.SlotCache", Small)
    assert engine(language_model(), PAPER, items, slots=8) == clean
    assert [slots for slots, _ in tried[:3]] == [8, 4, 2]

    # One study is too long even alone: it fails, and the others are written in as many slots as they fit in.
    giant = replace(items[3], tokens=items[3].tokens.repeat(8, 1))
    limit = max(width for _, width in tried)

    class Narrow(SlotCache):
        def __init__(self, slots: int, width: int):
            if width > limit:
                raise error
            super().__init__(slots, width)

    monkeypatch.setattr("megpt.generation.engine.SlotCache", Narrow)
    found = engine(language_model(), PAPER, [*items[:3], giant, *items[4:]], slots=4)
    assert found[giant.key].error == "out of memory"
    assert all(found[item.key] == clean[item.key] for item in items if item.key != giant.key)


def test_a_step_that_fails_for_all_but_few_rows_is_survived() -> None:
    items = studies(6)
    clean = engine(language_model(), GREEDY, items)
    model = language_model()
    Fails(model, RuntimeError("an index out of range"), largest_batch=1)
    assert engine(model, GREEDY, items, slots=4) == clean


def test_no_room_for_a_report_is_refused() -> None:
    with pytest.raises(InputError, match="context"):
        engine(language_model(), Decoding(max_new_tokens=250), studies(2))
    with pytest.raises(InputError, match="window"):
        engine(language_model("mistral", sliding_window=32), GREEDY, studies(2))
