"""Training steps a second and peak memory: megpt's step beside the reference's way, same weights, same batch.

    python benchmarks/train.py                                     # CPU, a small model with a 32,000-word vocabulary
    python benchmarks/train.py --device cuda --size 7b             # an H200: a random Llama of 7 B in bf16, and its MFU

The reference's way (R2GenGPT's loop, written plainly below): text padded to max_length, vocabulary logits at every
position of prompt, image and text, and the frozen encoder run again for each step over all films at once. Ours: logits
at report positions only, a chunk at a time, padding to the longest report of the batch; with and without cached encoder
features (`train.cache_features`) and activations computed again (`train.activation_checkpointing`). Batch and
max_length are the reference's for MIMIC-CXR, its four devices' share on one. Each way runs in a process of its own; the
losses must agree. Needs megpt/ alone: no ray, no deepspeed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from megpt.config import ModelConfig
from megpt.model import MeGPTConfig, MeGPTForConditionalGeneration
from megpt.model.vision import VisionEncoder
from megpt.training.meter import peak_flops

WAYS = ("reference", "ours", "ours, cached features", "ours, cached and checkpointed")
VOCABULARY = 32_000
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "vision": "swin_tiny_patch4_window7_224",
        "llm": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 8},
    },
    "7b": {
        "vision": "swin_base_patch4_window7_224",
        "llm": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    },
}


def build(size: str, device: torch.device, dtype: torch.dtype) -> MeGPTForConditionalGeneration:
    """The model with random weights from seed 0; its prompt is 35 fixed token ids."""
    torch.manual_seed(0)
    with torch.device(device):
        torch.set_default_dtype(dtype)
        text = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=512, **SIZES[size]["llm"])
        llm = LlamaForCausalLM(text)
        vision = VisionEncoder(SIZES[size]["vision"])
        settings = ModelConfig(vision=SIZES[size]["vision"], dynamic_prompt=False)
        prompts = {"prefix": list(range(3, 11)), "suffixes": [list(range(11, 38))], "texts": [""]}
        config = MeGPTConfig.of(settings, text, l2=1e-5, prompts=prompts, frozen={})
        model = MeGPTForConditionalGeneration(config, vision=vision, language_model=llm)
        torch.set_default_dtype(torch.float32)
    return model.to(device, dtype).train()


def make_batch(batch: int, max_length: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Two films a study, reports of 10 … 0.6·max_length tokens (IU X-Ray's mean is 33 of 60)."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(batch, 2, 3, 224, 224, generator=generator)
    lengths = torch.randint(10, int(0.6 * max_length) + 1, (batch,), generator=generator)
    labels = torch.randint(40, VOCABULARY, (batch, int(lengths.max())), generator=generator)
    labels[torch.arange(labels.shape[1]) >= lengths[:, None]] = -100
    return pixels.to(device), torch.ones(batch, 2, dtype=torch.bool, device=device), labels.to(device)


def reference_loss(
    model: MeGPTForConditionalGeneration, pixels: Tensor, mask: Tensor, labels: Tensor, max_length: int
) -> Tensor:
    """Everything padded to `max_length`, and transformers' own loss over the whole sequence."""
    visual = model.encode(pixels, mask)
    embeds, attention = model.assemble(visual)
    padded = labels.new_full((len(labels), max_length), -100)
    padded[:, : labels.shape[1]] = labels
    known = padded != -100
    text = model.get_input_embeddings()(padded.masked_fill(~known, 0))
    targets = torch.cat((padded.new_full(attention.shape, -100), padded), 1)
    out = model.language_model(
        inputs_embeds=torch.cat((embeds, text), 1),
        attention_mask=torch.cat((attention, known.long()), 1),
        labels=targets,
        use_cache=False,
    )
    return out.loss + visual.l2


def measure(way: str, options: argparse.Namespace, pipe: Any) -> None:
    """Run one way and send what it took."""
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
    model = build(options.size, device, getattr(torch, options.dtype))
    pixels, mask, labels = make_batch(options.batch, options.max_length, device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    if way == "reference":
        model.vision.forward = model.vision.one_pass
    if "checkpointed" in way:
        model.gradient_checkpointing_enable()
    if "cached" in way:
        with torch.no_grad():
            maps = model.vision(pixels[mask].to(trained[0].dtype))
        model.vision.forward = lambda films: maps

    def step() -> float:
        if way == "reference":
            loss = reference_loss(model, pixels, mask, labels, options.max_length)
        else:
            loss = model(pixel_values=pixels, view_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    before = reset_peak(device)
    first = step()
    seconds, losses = [], [first]
    for _ in range(options.steps):
        began = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - began)
    peak = peak_memory(device)
    with FlopCounterMode(display=False) as counter:
        step()
    pipe.send(
        {
            "way": way,
            "seconds_per_step": statistics.median(seconds),
            "peak_gib": peak / 2**30,
            "peak_above_weights_gib": (peak - before) / 2**30,
            "tflop_per_step": counter.get_total_flops() / 1e12,
            "losses": [losses[0], losses[-1]],
        }
    )


def reset_peak(device: torch.device) -> int:
    """Forget earlier peaks; bytes in use now."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("VmRSS")


def peak_memory(device: torch.device) -> int:
    """Bytes at the peak since `reset_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return status_bytes("VmHWM")


def status_bytes(key: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key + ":"))
    return int(line.split()[1]) * 1024


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    name = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), "")
    return f"{name.partition(':')[2].strip() or platform.processor()}, {os.cpu_count()} logical CPUs"


def main() -> int:
    parser = argparse.ArgumentParser(description="megpt's training step beside the reference's way")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=100)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", help="JSON file; benchmarks/results/train-DATE-DEVICE.json by default")
    options = parser.parse_args()
    device = torch.device(options.device)
    options.dtype = "float32" if device.type == "cpu" else "bfloat16"
    spawn = multiprocessing.get_context("spawn")
    results = {}
    for way in WAYS:
        here, there = spawn.Pipe(duplex=False)
        process = spawn.Process(target=measure, args=(way, options, there))
        process.start()
        there.close()
        results[way] = here.recv()
        process.join()
        found = results[way]
        print(
            f"{way:30} {1 / found['seconds_per_step']:8.3f} steps/s  peak {found['peak_gib']:.2f} GiB, "
            f"{found['peak_above_weights_gib']:.2f} above the weights  loss {found['losses'][0]:.5f}",
            flush=True,
        )
    reference, ours = results["reference"], results["ours"]
    tolerance = 1e-3 if options.dtype == "float32" else 2e-2
    for found in results.values():
        for a, b in zip(reference["losses"], found["losses"], strict=True):
            assert abs(a - b) <= tolerance * abs(a), f"the losses differ: {a} and {b}"
    summary = {}
    for way in WAYS[1:]:
        found = results[way]
        summary[f"{way}: speed"] = reference["seconds_per_step"] / found["seconds_per_step"]
        summary[f"{way}: peak memory"] = found["peak_gib"] / reference["peak_gib"]
        summary[f"{way}: above the weights"] = found["peak_above_weights_gib"] / reference["peak_above_weights_gib"]
    if peak := peak_flops(device):
        summary["mfu"] = ours["tflop_per_step"] * 1e12 / ours["seconds_per_step"] / peak
    for key, value in summary.items():
        print(f"{key:48} {value:.3f}")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    record = {
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(device),
        "commit": commit,
        "command": " ".join(["python", "benchmarks/train.py", *sys.argv[1:]]),
        "versions": {"torch": torch.__version__},
        "summary": summary,
        "ways": results,
    }
    path = Path(options.output or f"benchmarks/results/train-{record['date']}-{device.type}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
