"""The engine beside `transformers.generate`: the same studies, the same lengths, the same texts, in one run.

    python benchmarks/generate.py --models demo,100m --studies 192 --out benchmarks/results/generate-DATE.json
    python benchmarks/generate.py --models 7b --device cuda --dtype bfloat16 --slots 256 --studies 2048

Random weights: speed does not depend on what the model knows. Report lengths are imposed on both sides alike (the end
token is forced at each study's own length), drawn evenly from the quantiles of the IU X-Ray test split. Needs no Ray.
Both sides run in turns, so that neither has the machine to itself for longer.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from megpt.generation import Decoding, EngineItem, GenerationEngine, HFBackend
from megpt.generation.decoding import Backend

# Every fifth percentile of the report lengths of IU X-Ray's test split (R2Gen's 590 studies), in words and marks.
QUANTILES = (10, 14, 19, 19, 23, 23, 26, 27, 28, 29, 30, 32, 35, 36, 37, 39, 43, 46, 54, 61, 108)
PREFIX, VISUAL, SUFFIX = 6, 49, 20

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
# TFLOP/s of dense bf16 on one H200, as measured for large matrices; the ceiling of docs and results.
H200_TFLOPS = 790


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
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    found = {result.key: result.token_ids for result in backend().run(studies)}
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began, found


def compare(model: Prompted, rule: str, options: argparse.Namespace) -> dict[str, Any]:
    """Reports a second of both, best of `--repeat` turns each, and whether the texts are equal."""
    studies = items(options.studies, model.language_model.config.hidden_size)
    rules = Decoding(max_new_tokens=max(QUANTILES) + 1, **RULES[rule])
    backends: dict[str, Callable[[], Backend]] = {
        "hf": lambda: HFBackend(model, rules, batch_size=options.batch),
        "engine": lambda: GenerationEngine(model, rules, slots=options.slots),
    }
    for backend in backends.values():  # threads, allocators and kernels of both are warm before the clock runs
        timed(backend, items(4, model.language_model.config.hidden_size))
    seconds: dict[str, list[float]] = {name: [] for name in backends}
    texts: dict[str, dict[str, tuple[int, ...]]] = {}
    for _ in range(options.repeat):
        for name, backend in backends.items():
            took, texts[name] = timed(backend, studies)
            seconds[name].append(took)
    rates = {name: len(studies) / min(times) for name, times in seconds.items()}
    tokens = sum(len(ids) for ids in texts["engine"].values())
    return {
        "reports_per_second": {name: round(rate, 3) for name, rate in rates.items()},
        "ratio": round(rates["engine"] / rates["hf"], 3),
        "equal_texts": sum(texts["hf"][key] == ids for key, ids in texts["engine"].items()),
        "studies": len(studies),
        "tokens_per_report": round(tokens / len(studies), 2),
        "seconds": {name: [round(t, 2) for t in times] for name, times in seconds.items()},
    }


def ceiling(model: Prompted, tokens: float) -> float:
    """Reports a second if every token cost its arithmetic alone: 2 FLOP a parameter."""
    parameters = sum(p.numel() for p in model.language_model.parameters())
    return H200_TFLOPS * 1e12 / (2 * parameters * (PREFIX + VISUAL + SUFFIX + tokens))


def hardware(device: str) -> dict[str, Any]:
    cpu = next((line.split(":")[1].strip() for line in cpu_lines() if line.startswith("model name")), "unknown")
    values: dict[str, Any] = {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if device == "cuda":
        values["gpu"] = torch.cuda.get_device_name()
    return values


def cpu_lines() -> list[str]:
    info = Path("/proc/cpuinfo")
    return info.read_text().splitlines() if info.exists() else []


def commit() -> str:
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="demo,100m")
    parser.add_argument("--rules", default="greedy,beam3")
    parser.add_argument("--studies", type=int, default=192)
    parser.add_argument("--batch", type=int, default=32, help="batch size of transformers.generate")
    parser.add_argument("--slots", type=int, default=32, help="slots of the engine")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    results: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(["python", "benchmarks/generate.py", *(sys.argv[1:] if argv is None else argv)]),
        "commit": commit(),
        "hardware": hardware(options.device),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "prompt_tokens": PREFIX + VISUAL + SUFFIX,
        "batch": options.batch,
        "slots": options.slots,
        "models": {},
    }
    for name in options.models.split(","):
        model = build(name, options.device, getattr(torch, options.dtype))
        parameters = sum(p.numel() for p in model.language_model.parameters())
        found: dict[str, Any] = {"parameters": parameters}
        for rule in options.rules.split(","):
            found[rule] = compare(model, rule, options)
            if options.device == "cuda":
                most = ceiling(model, found[rule]["tokens_per_report"])
                found[rule]["share_of_ceiling"] = round(found[rule]["reports_per_second"]["engine"] / most, 3)
            print(name, f"{parameters / 1e6:.1f} M", rule, json.dumps(found[rule]), flush=True)
        results["models"][name] = found
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
