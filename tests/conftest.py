"""Fixtures every test shares: one local Ray cluster, a tiny language model, and the folder of real material."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" not in os.environ:  # which have that of the process that started them
    # What commands remember of this machine is neither read from its user's cache nor left there.
    os.environ["MEGPT_CACHE"] = tempfile.mkdtemp(prefix="megpt-cache-")
    atexit.register(shutil.rmtree, os.environ["MEGPT_CACHE"], ignore_errors=True)

from ray_nodes import RayNodes
from small_runs import make_studies

import ray_jobs  # noqa: F401  (sets the environment that ray and deepspeed read at import)

# A slow machine is no wrong result, and the same commit passes twice. `HYPOTHESIS_PROFILE=explore` looks further.
settings.register_profile("megpt", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=3000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "megpt"))

FIRST = (
    "test_train.py",
    "test_promises.py",
    "test_ablate.py",
    "test_generate_losses.py",
    "test_demo.py",
    "test_submit.py",
    "test_zero.py",
    "test_combinations.py",
    "test_loop.py",
    "test_generate.py",
    "test_runtime.py",
    "test_resume.py",
    "test_equality.py",
    "test_fit_prompts.py",
    "test_prepare.py",
    "test_engine.py",
    "test_cost.py",
    "test_train_watch.py",
    "test_meteor.py",
    "test_page_in_browser.py",
    "test_intervals.py",
)
"""Files that take a minute and more."""

SENTENCES = (
    "The heart is normal in size. The lungs are clear.",
    "There is a small right pleural effusion. No pneumothorax is seen.",
    "The heart is mildly enlarged. No focal consolidation.",
    "Human: <Img></Img> Generate a comprehensive and detailed diagnosis report for this chest xray image."
    " label:0 \nAssistant:",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several processes, start the files of long tests first, so that none is left to wait for one at the end."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


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


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster is around, also where an earlier test of this process has started the session's."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray_jobs.runtime.started", lambda: False)


@pytest.fixture(params=[pytest.param("ray", marks=pytest.mark.slow), "here"])
def in_both_places(request: pytest.FixtureRequest) -> str:
    """A job's work on Ray, and in processes of this machine."""
    request.getfixturevalue("ray_cluster" if request.param == "ray" else "without_ray")
    return str(request.param)


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


@pytest.fixture(scope="session")
def small_studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 training and 5 validation studies: no batch of 8 divides them."""
    from megpt.data.studies import write_studies

    folder = tmp_path_factory.mktemp("small_studies")
    write_studies(folder, "train", make_studies(22), 0)
    write_studies(folder, "val", make_studies(5, "val"), 0)
    return folder


@pytest.fixture
def ray_nodes() -> Iterator[RayNodes]:
    """A Ray cluster of its own whose nodes can be added and killed; see tests/ray_nodes.py. Takes 20 s: mark slow."""
    with RayNodes() as nodes:
        yield nodes


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained MeGPT of three prompts over timm's smallest ViT at 64 px, as a checkpoint folder."""
    import torch

    from megpt.config import ModelConfig
    from megpt.model.build import build_encoder, build_model
    from megpt.model.prompts import PromptBank

    config = ModelConfig(vision="test_vit", vision_weights="none", image_size=64, llm=str(tiny_llm))
    encoder, identity = build_encoder(config, seed=0)
    centroids = torch.randn(3, encoder.channels, generator=torch.Generator().manual_seed(0))
    texts = ("Describe the heart.", "Describe the lungs and the pleura.", "Generate a report.")
    bank = PromptBank(texts=texts, centroids=centroids, encoder=identity)
    model, processor = build_model(config, bank=bank, seed=0)
    folder = tmp_path_factory.mktemp("tiny_checkpoint")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, for the module's tests."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()
