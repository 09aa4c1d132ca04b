"""A decode step can be recorded once and replayed, which is what a CUDA graph does; here a tape of operators does it.

The tape refuses what no CUDA graph can hold: values of tensors read by the host, tensors whose size depends on values,
tensors made from Python lists, boolean indices. Replaying runs the recorded operators on the same buffers, and no line
of Python: whatever a step took from the host and a replay would get wrong shows up in the texts.

- replayed steps write what transformers.generate writes: greedy, beams, sampling, imposed lengths, all architectures,
  looking for finished rows every fourth step as on a GPU
- most steps are replayed, and few sizes are recorded
- prompt and report may fill the model's context to the last position, though finished rows are computed further
- a study with NaN tokens still costs itself alone
- a model that asks the device for a value is not recorded: said once, kept as `refused`, texts the same
- on the meta device, which has no values at all, a step runs, and touches no tensor of the host's
- the tape refuses each of the things it is there to refuse, and the meta device gives no value away
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from bare_models import SHAPES, WIDTH, Prompted, language_model, studies
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from megpt.generation import Decoding, EngineItem, GenerationEngine, HFBackend
from megpt.generation.cache import slot_attention
from megpt.generation.decoding import EngineResult
from megpt.generation.step import DecodeStep, Recorder, Work

RULES = {
    "greedy": Decoding(max_new_tokens=30, repetition_penalty=2.0, min_new_tokens=5),
    "paper": Decoding(num_beams=3, repetition_penalty=2.0, length_penalty=2.0, min_new_tokens=4, max_new_tokens=30),
    "sampled": Decoding(do_sample=True, temperature=0.8, top_p=0.9, max_new_tokens=20, seed=3),
}
HOST_READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "repeat_interleave"}
FROM_HOST = {"lift_fresh", "lift"}


class Refused(RuntimeError):
    """The operator cannot be part of a CUDA graph."""


class Watch(TorchDispatchMode):
    """Sees every operator: refuses some, keeps all."""

    def __init__(self, device: str = "cpu"):
        super().__init__()
        self.device, self.operators = device, []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if name in HOST_READS | FROM_HOST:
            raise Refused(name)
        if name.startswith("index") and any(is_boolean(x) for x in tree_flatten(args[1:2])[0]):
            raise Refused("boolean index")
        result = func(*args, **kwargs)
        for tensor in tree_flatten((args, kwargs, result))[0]:
            if isinstance(tensor, torch.Tensor) and tensor.device.type != self.device:
                raise Refused(f"{name} on {tensor.device.type}")
        self.operators.append((func, args, kwargs, result))
        return result


def is_boolean(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in (torch.bool, torch.uint8)


class Tape(Recorder):
    """Records by running the work once, so that the first replay, which follows at once, has nothing to do."""

    def __init__(self) -> None:
        self.recorded = self.replayed = self.warmed = 0

    def warm(self, work: Work) -> None:
        self.warmed += 1
        work()

    def record(self, work: Work) -> Work:
        with Watch() as watch:
            work()
        self.recorded += 1
        begun = False

        def replay() -> None:
            nonlocal begun
            if begun:
                self.replayed += 1
                run(watch.operators)
            begun = True

        return replay


def run(operators: list[tuple[Any, tuple, dict, Any]]) -> None:
    """The same operators on the same buffers; what one of them made is what the next one takes."""
    made: dict[int, torch.Tensor] = {}

    def current(value: Any) -> Any:
        return made.get(id(value), value) if isinstance(value, torch.Tensor) else value

    for func, args, kwargs, result in operators:
        again = func(*tree_map(current, args), **tree_map(current, kwargs))
        for old, new in zip(tree_flatten(result)[0], tree_flatten(again)[0], strict=True):
            if isinstance(old, torch.Tensor):
                made[id(old)] = new


def replayed(
    model: Prompted, rules: Decoding, items: list[EngineItem], tape: Recorder, slots: int = 5
) -> dict[str, EngineResult]:
    engine = GenerationEngine(model, rules, slots=slots, recorder=tape)
    engine.poll = 4
    return {r.key: r for r in engine.run(items)}


def reference(model: Prompted, rules: Decoding, items: list[EngineItem]) -> dict[str, EngineResult]:
    return {r.key: r for r in HFBackend(model, rules, batch_size=8).run(items)}


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("kind", SHAPES)
def test_replayed_steps_write_the_same(kind: str, rules: str) -> None:
    model, items, tape = language_model(kind), studies(14), Tape()
    assert replayed(model, RULES[rules], items, tape) == reference(model, RULES[rules], items)
    assert tape.refused is None
    assert tape.recorded <= tape.warmed <= 8
    assert tape.replayed > 2 * tape.recorded > 0


@pytest.mark.parametrize("beams", [1, 3])
def test_imposed_lengths_and_different_images(beams: int) -> None:
    model, tape = language_model("llama_gqa"), Tape()
    mixed = studies(5) + studies(5, 2, 18)
    items = [EngineItem(f"{n}", i.tokens, i.prompt_id, length=3 + n) for n, i in enumerate(mixed)]
    rules = Decoding(num_beams=beams, max_new_tokens=20)
    assert replayed(model, rules, items, tape, slots=3) == reference(model, rules, items)
    assert tape.replayed


@pytest.mark.parametrize("rules", ["greedy", "paper"])
def test_the_context_may_be_used_up(rules: str) -> None:
    to_the_end = replace(RULES[rules], min_new_tokens=RULES[rules].max_new_tokens)
    longest = 4 + 9 + 5 + to_the_end.max_new_tokens
    model, items = language_model("gpt2", max_position_embeddings=longest), studies(9)
    found = replayed(model, to_the_end, items, Tape(), slots=3)
    assert found == reference(model, to_the_end, items)
    assert {r.finish_reason for r in found.values()} == {"length"}


@pytest.mark.parametrize("rules", ["greedy", "paper"])
def test_not_a_number_costs_one_study(rules: str) -> None:
    model, items = language_model(), studies(14)
    clean = reference(model, RULES[rules], items)
    items[3] = EngineItem(items[3].key, torch.full_like(items[3].tokens, torch.nan), items[3].prompt_id)
    found = replayed(model, RULES[rules], items, Tape())
    assert found.pop(items[3].key).finish_reason == "error"
    assert found == {key: result for key, result in clean.items() if key != items[3].key}


def asks(module: torch.nn.Module, args: tuple, output: Any) -> None:
    if output.logits[0, 0, 0] > 0:
        return


def test_a_model_that_asks_the_device_is_not_recorded(caplog: pytest.LogCaptureFixture) -> None:
    items = studies(9)
    clean = reference(language_model(), RULES["greedy"], items)
    model, tape = language_model(), Tape()
    model.language_model.register_forward_hook(asks)
    with caplog.at_level(logging.WARNING):
        assert replayed(model, RULES["greedy"], items, tape) == clean
    assert (tape.refused, tape.recorded, tape.replayed) == ("Refused", 0, 0)
    assert [r.message for r in caplog.records] == [
        "decoding continues without CUDA graphs, more slowly: recording a step failed (Refused)"
    ]


@pytest.mark.parametrize("forced", [False, True], ids=["free", "forced"])
@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("kind", SHAPES)
def test_a_step_needs_no_values(kind: str, rules: str, forced: bool) -> None:
    model = language_model(kind)
    model.language_model.to("meta")
    item = EngineItem("study", torch.empty(9, WIDTH, device="meta"))
    engine = GenerationEngine(model, RULES[rules], slots=4)
    with torch.no_grad(), slot_attention(model.language_model):
        step = engine.open(item, forced=forced).step
        assert isinstance(step, DecodeStep)
        step.compute(4, 32, (1, step.rule.width))
        with Watch("meta") as watch:
            step.compute(4, 32, (1, step.rule.width))
    assert len(watch.operators) > 50


@pytest.mark.parametrize(
    ("forbidden", "name"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x[x > 0], "boolean index"),
        (lambda x: x + torch.tensor([1.0, 2.0]), "lift_fresh"),
        (lambda x: x.to("meta"), "_to_copy on meta"),
    ],
    ids=["item", "nonzero", "mask", "list", "device"],
)
def test_the_tape_refuses(forbidden: Callable[[torch.Tensor], Any], name: str) -> None:
    with pytest.raises(Refused, match=name), Watch():
        forbidden(torch.ones(2))


@pytest.mark.parametrize("read", [torch.Tensor.item, torch.Tensor.tolist, bool], ids=["item", "tolist", "bool"])
def test_the_meta_device_has_no_values(read: Callable[[torch.Tensor], Any]) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        read(torch.ones((), device="meta"))
