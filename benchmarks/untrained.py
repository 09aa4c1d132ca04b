"""MeGPT checkpoints of random weights, for measurements in which what the model knows does not matter.

from untrained import write_checkpoint
write_checkpoint(folder, "tiny", image_size=32)
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from megpt.config import ModelConfig
from megpt.model.build import build_model

# Hidden size, width of the feed-forward layers, layers, heads, vocabulary.
SIZES = {"tiny": (32, 64, 1, 2, 320), "4m": (256, 688, 4, 4, 512), "16m": (384, 1024, 8, 6, 512)}
# One token in this many ends a report: drawn at random, reports have some thirty tokens, and very different lengths.
ENDS_EVERY = 32


def write_checkpoint(folder: Path, size: str, *, image_size: int) -> int:
    """A checkpoint over timm's smallest ViT, complete in itself; returns its parameters."""
    language_model = folder / "language_model"
    _write_language_model(language_model, *SIZES[size])
    config = ModelConfig(
        vision="test_vit",
        vision_weights="none",
        image_size=image_size,
        llm=str(language_model),
        dynamic_prompt=False,
    )
    model, processor = build_model(config, bank=None, seed=0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


def _write_language_model(
    folder: Path, hidden: int, feed_forward: int, layers: int, heads: int, vocabulary: int
) -> None:
    """A Llama, and a tokenizer that writes each token as itself."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<s>", "</s>", "<pad>", *alphabet]
    words += [f"Ġword{n}" for n in range(vocabulary - len(words))]
    tokenizer = Tokenizer(models.BPE(vocab={word: n for n, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=512,
        initializer_range=0.05,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = [1, *range(vocabulary - vocabulary // ENDS_EVERY + 1, vocabulary)]
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
