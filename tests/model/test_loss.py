"""The cross-entropy in chunks.

- Value and gradient are those of the plain formula to 1e-6, for every chunk size.
- The hidden states and the vocabulary projection give the logits of the language model itself: Llama, GPT-2, Qwen2, and
  models that cap (Gemma 2) or scale (Cohere, Granite) theirs.
- The model's loss is transformers' own loss on the same sequence; only report positions count, not prompt or padding;
  `num_items_in_batch` makes the parts of a batch add up to the whole.
- Peak memory with a vocabulary of 32,000 and 1,024 positions is a small part of the plain formula's.
- bfloat16 gives a finite loss and gradients near those of float32.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import MakeModel, films, labels_for
from transformers import AutoConfig, AutoModelForCausalLM

from megpt.model.language import vocabulary_head
from megpt.model.loss import chunked_cross_entropy

TEXTS = ["The heart is normal in size.", "There is a small right pleural effusion. No pneumothorax is seen."]
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
SHAPE |= {"intermediate_size": 48, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
MODELS: dict[str, dict[str, Any]] = {
    "llama": SHAPE,
    "qwen2": SHAPE,
    "gemma2": {**SHAPE, "head_dim": 16, "final_logit_softcapping": 1.0},
    "cohere": {**SHAPE, "logit_scale": 0.3},
    "granite": {**SHAPE, "logits_scaling": 4.0},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1},
}


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_chunks_equal_the_plain_formula(chunk: int) -> None:
    torch.manual_seed(0)
    hidden, targets = torch.randn(64, 16, requires_grad=True), torch.randint(0, 90, (64,))
    head = torch.nn.Linear(16, 90)
    plain = F.cross_entropy(head(hidden), targets, reduction="sum")
    wanted = torch.autograd.grad(plain, [hidden, head.weight])
    total = chunked_cross_entropy(hidden, targets, head, chunk=chunk)
    found = torch.autograd.grad(total, [hidden, head.weight])
    assert total.item() == pytest.approx(plain.item(), rel=1e-6)
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        assert chunked_cross_entropy(hidden, targets, head, chunk=chunk).item() == pytest.approx(plain.item(), rel=1e-6)


@pytest.mark.parametrize("kind", MODELS)
def test_head_gives_the_language_models_own_logits(kind: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **MODELS[kind])).eval()
    embeds = torch.randn(2, 5, 32)
    with torch.no_grad():
        hidden = model.base_model(inputs_embeds=embeds).last_hidden_state
        assert torch.allclose(vocabulary_head(model)(hidden), model(inputs_embeds=embeds).logits, atol=1e-6)


def test_loss_is_transformers_own(make_model: MakeModel) -> None:
    model, processor = make_model("vit")
    batch = processor(images=[films(1), films(2, seed=3)], return_tensors="pt")
    labels = labels_for(processor, TEXTS)
    out = model(**batch, labels=labels)
    embeds, mask = model.assemble(model.encode(**batch))
    known = labels != -100
    reports = model.get_input_embeddings()(labels.masked_fill(~known, 0))
    whole = torch.cat((torch.full(embeds.shape[:2], -100), labels), 1)
    full_mask = torch.cat((mask, known.long()), 1)
    theirs = model.language_model(
        inputs_embeds=torch.cat((embeds, reports), 1),
        attention_mask=full_mask,
        position_ids=(full_mask.cumsum(1) - 1).clamp(min=0),
        labels=whole,
    )
    assert out.cross_entropy.item() == pytest.approx(theirs.loss.item(), rel=1e-6)
    assert out.loss.item() == pytest.approx((out.cross_entropy + out.l2).item(), rel=1e-7)


def test_parts_add_up_to_the_whole(make_model: MakeModel) -> None:
    model, processor = make_model("vit")
    batch = processor(images=[films(1), films(1, seed=3)], return_tensors="pt")
    labels = labels_for(processor, TEXTS)
    items = int((labels != -100).sum())
    whole = model(**batch, labels=labels)
    parts = [
        model(
            batch["pixel_values"][i : i + 1], batch["view_mask"][i : i + 1], labels[i : i + 1], num_items_in_batch=items
        )
        for i in range(2)
    ]
    assert sum(p.cross_entropy.item() for p in parts) == pytest.approx(whole.cross_entropy.item(), rel=1e-5)
    padded = F.pad(labels, (0, 9), value=-100)
    assert model(**batch, labels=padded).loss.item() == pytest.approx(whole.loss.item(), rel=1e-6)


def peak_mib(work: Callable[[], None]) -> float:
    """How far resident memory rises while `work` runs, in MiB."""
    refs, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    refs.write_text("5")  # sets the process's high-water mark back to what it holds now

    def high_water() -> float:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024

    before = high_water()
    work()
    return high_water() - before


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's high-water mark")
def test_peak_memory() -> None:
    torch.manual_seed(0)
    hidden, targets = torch.randn(1024, 64, requires_grad=True), torch.randint(0, 32_000, (1024,))
    head = torch.nn.Linear(64, 32_000, bias=False).requires_grad_(False)
    chunked = lambda: chunked_cross_entropy(hidden, targets, head, chunk=32).backward()  # noqa: E731
    plain = lambda: F.cross_entropy(head(hidden).float(), targets, reduction="sum").backward()  # noqa: E731
    chunked()  # the first run also pays for libraries and thread pools
    small, large = peak_mib(chunked), peak_mib(plain)
    print(f"peak above the start: {small:.0f} MiB in chunks of 32, {large:.0f} MiB at once")
    assert large > 200 and small < large / 4


def test_bfloat16(make_model: MakeModel) -> None:
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        model, processor = make_model("vit", dtype=dtype)
        batch = processor(images=[films(1), films(1, seed=3)], return_tensors="pt")
        out = model.train()(**batch, labels=labels_for(processor, TEXTS))
        out.loss.backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
        losses.append(out.loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
