"""What a GPU can do at most: reports a second of a language model, by arithmetic from the GPU's data sheet.

    python benchmarks/roofline.py --gpu H200 --model 7b --slots 256
    python benchmarks/roofline.py --gpu H100 --model 7b --slots 64 --beams 3

The one ceiling that benchmarks and docs quote. Every pass through the model takes as long as its arithmetic at the peak
of the tensor cores, or as reading its weights, keys and values once, whichever is longer (Williams et al., "Roofline",
2009). Everything is in bf16; lengths are those of IU X-Ray in Llama's tokens. Sampling rules, the vision encoder,
launches and films are not counted, so no program reaches it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass

from megpt.training.meter import PEAK_FLOPS

# Bytes a second and bytes of GPU memory, from the vendors' data sheets; the arithmetic's peak is the trainer's.
MEMORY = {
    "B200": (8.0e12, 192e9),
    "H200": (4.8e12, 141e9),
    "H100": (3.35e12, 80e9),
    "A100": (2.04e12, 80e9),
    "L40S": (0.864e12, 48e9),
    "L4": (0.3e12, 24e9),
    "A10G": (0.6e12, 24e9),
}
REPORT_TOKENS = 52.6
"""Of IU X-Ray's reports, on average, by Llama's tokenizer (34.5 words and marks)."""
PROMPT_TOKENS = {"prefix": 6, "visual": 49, "suffix": 20}
"""The prefix is computed once for all."""
WIDTH = 2
"""Bytes of a number in bf16."""


@dataclass(frozen=True)
class Shape:
    """A decoder: its parameters, and what a token's keys and values take."""

    parameters: float
    layers: int
    key_value_width: int
    """Heads of keys and values times their size."""

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token."""
        return 2 * WIDTH * self.layers * self.key_value_width


MODELS = {
    "100m": Shape(98e6, 12, 768),
    "7b": Shape(6.74e9, 32, 4096),
    "8b": Shape(8.03e9, 32, 1024),
    "13b": Shape(13.0e9, 40, 5120),
}


def ceiling(
    shape: Shape, gpu: str, *, slots: int, beams: int = 1, tokens: float = REPORT_TOKENS, prompt: float | None = None
) -> dict[str, float]:
    """Reports a second at most, where the time goes, and the memory it takes.

    Args:
        slots: studies in flight. tokens: of a report. prompt: of a study, without the shared prefix.

    Returns:
        `reports_per_second`; `prompts`, the share of the time in prompts; `memory_bound`, whether a step waits for
        memory; `gigabytes` of weights, keys and values, and whether these fit (1 or 0).
    """
    peak, (bandwidth, memory) = PEAK_FLOPS[gpu], MEMORY[gpu]
    own = PROMPT_TOKENS["visual"] + PROMPT_TOKENS["suffix"] if prompt is None else prompt
    weights = WIDTH * shape.parameters
    # Half of a report is written on average; every beam has tokens of its own, and all see the prompt's.
    held = PROMPT_TOKENS["prefix"] / slots + own + beams * tokens / 2
    read = PROMPT_TOKENS["prefix"] + own + beams * tokens / 2
    arithmetic = slots * beams * 2 * shape.parameters / peak
    traffic = (weights + slots * read * shape.token_bytes) / bandwidth
    step = max(arithmetic, traffic)
    prompts = own * 2 * shape.parameters / peak
    seconds = prompts + tokens * step / slots
    gigabytes = (weights + slots * (held + beams * tokens / 2) * shape.token_bytes) / 1e9
    return {
        "reports_per_second": round(1 / seconds, 1),
        "prompts": round(prompts / seconds, 3),
        "memory_bound": float(traffic > arithmetic),
        "gigabytes": round(gigabytes, 1),
        "fits": float(gigabytes * 1e9 <= memory),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", default="H200", choices=sorted(MEMORY))
    parser.add_argument("--model", default="7b", choices=sorted(MODELS))
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--tokens", type=float, default=REPORT_TOKENS)
    options = parser.parse_args()
    found = ceiling(MODELS[options.model], options.gpu, slots=options.slots, beams=options.beams, tokens=options.tokens)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
