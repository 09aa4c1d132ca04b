"""Language models of random weights with a prompt around the image: what the backends need of MeGPT, and no more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf

from megpt.generation import EngineItem

WIDTH, VOCABULARY, END = 64, 300, 1
SHAPES = {
    "llama": ("Llama", {"intermediate_size": 128, "num_key_value_heads": 4}),
    "llama_gqa": ("Llama", {"intermediate_size": 128, "num_key_value_heads": 2}),
    "qwen2": ("Qwen2", {"intermediate_size": 128, "num_key_value_heads": 2}),
    "mistral": ("Mistral", {"intermediate_size": 128, "num_key_value_heads": 1}),
    "gpt2": ("GPT2", {}),
}


@dataclass
class Prompted:
    """Two prompts of different lengths behind the image, one beginning before it."""

    language_model: Any

    def prompt_ids(self) -> tuple[list[int], list[list[int]]]:
        return [0, 5, 6, 7], [[8, 9, 10], [11, 12, 13, 14, 15]]


def language_model(kind: str = "llama", **further: Any) -> Prompted:
    """Two layers, spread-out scores, and an end token likely enough to give reports of all lengths."""
    name, shape = SHAPES[kind]
    torch.manual_seed(0)
    config = getattr(hf, f"{name}Config")(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=0,
        eos_token_id=END,
        pad_token_id=2,
        initializer_range=0.1,
        **{"max_position_embeddings": 256, **shape, **further},
    )
    model = getattr(hf, "GPT2LMHeadModel" if kind == "gpt2" else f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight[END] *= 3
    return Prompted(model)


def studies(count: int, seed: int = 1, visual: int = 9) -> list[EngineItem]:
    generator = torch.Generator().manual_seed(seed)
    return [EngineItem(f"study{n}", torch.randn(visual, WIDTH, generator=generator) * 0.5, n % 2) for n in range(count)]
