"""Fixtures every test shares: one local Ray cluster, a tiny language model, and the folder of real material."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from ray_nodes import RayNodes

import ray_jobs  # noqa: F401  (sets the environment that ray and deepspeed read at import)

SENTENCES = (
    "The heart is normal in size. The lungs are clear.",
    "There is a small right pleural effusion. No pneumothorax is seen.",
    "The heart is mildly enlarged. No focal consolidation.",
    "Human: <Img></Img> Generate a comprehensive and detailed diagnosis report for this chest xray image."
    " label:0 \nAssistant:",
)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder `MEGPT_REAL_DATA` names; tests that need it skip without."""
    folder = os.environ.get("MEGPT_REAL_DATA")
    if not folder:
        pytest.skip("MEGPT_REAL_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray cluster for the whole session."""
    from ray_jobs.runtime import cluster

    with cluster():
        yield


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama of random weights with a byte-level BPE tokenizer, as a Hugging Face folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    folder = tmp_path_factory.mktemp("tiny_llm")
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def ray_nodes() -> Iterator[RayNodes]:
    """A Ray cluster of its own whose nodes can be added and killed; see tests/ray_nodes.py. Takes 20 s: mark slow."""
    with RayNodes() as nodes:
        yield nodes
