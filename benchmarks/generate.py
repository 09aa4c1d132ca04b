r"""The engine beside `transformers.generate`: the same studies, the same lengths, the same texts, in one run.

    python benchmarks/generate.py --repeat demo=2,100m=1 --hf-studies demo=256,100m=32 --out RESULT.json
    python benchmarks/generate.py --models 7b --device cuda --dtype bfloat16 --slots 256 --batch 16,64 \
        --studies 2048 --hf-studies 256 --repeat 1

Random weights: speed does not depend on what the model knows. Report lengths are imposed on both sides alike (the end
token is forced at each study's own length), drawn evenly from the quantiles of the IU X-Ray test split. Both sides run
in turns, with the same threads, so that neither has the machine to itself for longer, `generate` at each size of
`--batch`. A last pass says where the engine's time goes. Needs no Ray.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from record import record, save
from roofline import MEMORY, PROMPT_TOKENS, Shape, ceiling
from transformers import LlamaConfig, LlamaForCausalLM

from megpt.generation import Decoding, EngineItem, GenerationEngine, HFBackend
from megpt.generation.decoding import Backend
from megpt.generation.rules import Rule
from megpt.generation.step import Recorder

# Every fifth percentile of the report lengths of IU X-Ray's test split (R2Gen's 590 studies), in words and marks.
QUANTILES = (10, 14, 19, 19, 23, 23, 26, 27, 28, 29, 30, 32, 35, 36, 37, 39, 43, 46, 54, 61, 108)
PREFIX, VISUAL, SUFFIX = PROMPT_TOKENS.values()

MODELS = {
    "demo": {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "heads": 4},
    "4m": {"vocab_size": 2048, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "heads": 4},
    "100m": {"vocab_size": 8192, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "heads": 12},
    "7b": {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "heads": 32},
}
RULES = {
    "greedy": {"num_beams": 1},
    "beam3": {"num_beams": 3, "repetition_penalty": 2.0, "length_penalty": 2.0},
}


@dataclass
class Prompted:
    """A language model and a prompt of random ids: what the backends need of MeGPT."""

    language_model: Any

    def prompt_ids(self) -> tuple[list[int], list[list[int]]]:
        return list(range(3, 3 + PREFIX)), [list(range(20, 20 + SUFFIX))]


def build(name: str, device: str, dtype: torch.dtype) -> Prompted:
    """A Llama of that size with random weights."""
    shape = dict(MODELS[name])
    config = LlamaConfig(
        num_attention_heads=shape.pop("heads"),
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        initializer_range=0.05,
        **shape,
    )
    torch.manual_seed(0)
    with torch.device(device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            model = LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(before)
    return Prompted(model.eval())


def lengths(count: int, seed: int = 0) -> list[int]:
    """Report lengths, the end token included: an even draw from the quantiles, in random order."""
    generator = torch.Generator().manual_seed(seed)
    spots = (torch.arange(count) + 0.5) / count * (len(QUANTILES) - 1)
    low = spots.long()
    table = torch.tensor(QUANTILES, dtype=torch.float)
    values = table[low] + (spots - low) * (table[low + 1] - table[low])
    return [int(v) + 1 for v in values[torch.randperm(count, generator=generator)]]


def items(count: int, width: int) -> list[EngineItem]:
    generator = torch.Generator().manual_seed(1)
    return [
        EngineItem(f"study{n}", torch.randn(VISUAL, width, generator=generator) * 0.5, 0, length)
        for n, length in enumerate(lengths(count))
    ]


def timed(backend: Callable[[], Backend], studies: list[EngineItem]) -> tuple[float, dict[str, tuple[int, ...]]]:
    """Seconds and texts; buffers are made inside the time, as a job makes them."""
    wait()
    began = time.perf_counter()
    found = {result.key: result.token_ids for result in backend().run(studies)}
    wait()
    return time.perf_counter() - began, found


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compare(model: Prompted, rule: str, count: int, hf_count: int, repeat: int, options: Any) -> dict[str, Any]:
    """Reports a second of each side, best of `repeat` turns, and whether the texts are equal."""
    width = model.language_model.config.hidden_size
    studies = items(count, width)
    rules = Decoding(max_new_tokens=max(QUANTILES) + 1, **RULES[rule])
    engine = partial(GenerationEngine, model, rules, slots=options.slots)
    sides: dict[str, tuple[Callable[[], Backend], list[EngineItem]]] = {
        f"hf, batch {size}": (partial(HFBackend, model, rules, batch_size=int(size)), studies[:hf_count])
        for size in options.batch.split(",")
    }
    sides["engine"] = engine, studies
    for backend, _ in sides.values():  # threads, allocators and kernels are warm before the clock runs
        timed(backend, items(4, width))
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    texts: dict[str, dict[str, tuple[int, ...]]] = {}
    for _ in range(repeat):
        for name, (backend, given) in sides.items():
            took, texts[name] = timed(backend, given)
            seconds[name].append(took)
    rates = {name: len(texts[name]) / min(times) for name, times in seconds.items()}
    written = texts.pop("engine")
    return {
        "reports_per_second": {name: round(rate, 3) for name, rate in rates.items()},
        "ratio_to_the_best_hf": round(rates["engine"] / max(rates[name] for name in texts), 3),
        "equal_texts": {name: sum(written[key] == ids for key, ids in found.items()) for name, found in texts.items()},
        "studies": {name: len(given) for name, (_, given) in sides.items()},
        "tokens_per_report": round(sum(map(len, written.values())) / count, 2),
        "seconds": {name: [round(t, 2) for t in times] for name, times in seconds.items()},
        "engine_time": shares(engine, studies[: 2 * options.slots]),
    }


class Stopwatch:
    """Time spent inside functions, by the device's own clock where it has one."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.spans: dict[str, list[tuple[Any, Any]]] = {}

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed_function(*args: Any, **kwargs: Any) -> Any:
            began = self.now()
            result = function(*args, **kwargs)
            self.spans.setdefault(name, []).append((began, self.now()))
            return result

        return timed_function

    def now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, name: str) -> float:
        wait()
        return sum(a.elapsed_time(b) / 1e3 if self.cuda else b - a for a, b in self.spans[name])


def shares(make: Callable[..., GenerationEngine], studies: list[EngineItem]) -> dict[str, float]:
    """Where the time of a pass over `studies` goes, steps computed one by one (no CUDA graphs): shares of the whole.

    `prompts`: passes over prompts, the choice of first tokens included. `model`: the model in decode steps. `rules`:
    the choice of tokens in decode steps. `rest`: everything between.
    """
    plain = Recorder()
    plain.refused = "steps are computed one by one"
    engine = make(recorder=plain)
    watch = Stopwatch(engine.device)
    engine.prefill = watch.around("prompts", engine.prefill)
    open_slots = engine.open

    def opened(*args: Any, **kwargs: Any) -> Any:
        slots = open_slots(*args, **kwargs)
        rule: Rule = slots.rule
        begin, advance = rule.begin, rule.advance
        watched = watch.around("rules", advance)

        def unwatched_begin(*args: Any) -> Any:  # counted with its prompt
            rule.advance = advance
            state = begin(*args)
            rule.advance = watched
            return state

        rule.begin, rule.advance = unwatched_begin, watched
        slots.step = watch.around("steps", slots.step)
        return slots

    engine.open = opened
    whole, _ = timed(lambda: engine, studies)
    spent = {name: watch.seconds(name) for name in ("prompts", "steps", "rules")}
    parts = {
        "prompts": spent["prompts"],
        "model": spent["steps"] - spent["rules"],
        "rules": spent["rules"],
        "rest": whole - spent["prompts"] - spent["steps"],
    }
    return {name: round(part / whole, 3) for name, part in parts.items()}


def most(model: Prompted, rule: str, tokens: float, slots: int) -> float | None:
    """Reports a second that this GPU could reach at most (benchmarks/roofline.py); None for one that is not known."""
    gpu = next((name for name in MEMORY if name in torch.cuda.get_device_name()), None)
    if gpu is None:
        return None
    config = model.language_model.config
    parameters = sum(p.numel() for p in model.language_model.parameters())
    width = config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    shape = Shape(parameters, config.num_hidden_layers, width)
    found = ceiling(shape, gpu, slots=slots, beams=RULES[rule]["num_beams"], tokens=tokens)
    return found["reports_per_second"]


def counts(text: str, models: list[str]) -> dict[str, int]:
    """`512`, or `demo=512,100m=64`: a number for each model."""
    if text.isdigit():
        return dict.fromkeys(models, int(text))
    given = dict(part.split("=") for part in text.split(","))
    return {name: int(given[name]) for name in models}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="demo,100m")
    parser.add_argument("--rules", default="greedy,beam3")
    parser.add_argument("--studies", default="demo=256,100m=64", help="a number, or one for each model")
    parser.add_argument("--batch", default="16,32", help="batch sizes of transformers.generate")
    parser.add_argument("--hf-studies", help="let transformers.generate do only so many of the studies")
    parser.add_argument("--slots", type=int, default=32, help="slots of the engine")
    parser.add_argument(
        "--repeat", default="2", help="turns, of which the best counts: a number, or one for each model"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    names = options.models.split(",")
    studies, repeat = counts(options.studies, names), counts(options.repeat, names)
    hf_studies = counts(options.hf_studies or options.studies, names)
    result = record("generate.py", "torch", "transformers")
    result |= {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "dtype": options.dtype,
        "prompt_tokens": PREFIX + VISUAL + SUFFIX,
        "slots": options.slots,
        "models": {},
    }
    for name in names:
        model = build(name, options.device, getattr(torch, options.dtype))
        found: dict[str, Any] = {"parameters": sum(p.numel() for p in model.language_model.parameters())}
        result["models"][name] = found
        for rule in options.rules.split(","):
            found[rule] = compare(model, rule, studies[name], hf_studies[name], repeat[name], options)
            if options.device == "cuda":
                found[rule]["ceiling"] = limit = most(model, rule, found[rule]["tokens_per_report"], options.slots)
                if limit:
                    found[rule]["share_of_ceiling"] = round(found[rule]["reports_per_second"]["engine"] / limit, 3)
                found[rule]["gigabytes"] = round(torch.cuda.max_memory_allocated() / 1e9, 1)
            print(name, rule, found[rule], file=sys.stderr, flush=True)
            save(result, options.out)  # what was measured stays, whatever comes next
        del model


if __name__ == "__main__":
    main()
