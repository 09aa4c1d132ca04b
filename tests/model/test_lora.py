"""Delta mode: LoRA on query and value.

- The key rows' update is exactly zero, after training steps too, for fused qkv (ViT, Swin) and for layers that read the
  weight themselves (Swin v2); key projections of encoders with separate layers are left alone.
- The folder on disk is an ordinary peft adapter: peft loads it onto the bare encoder and computes the same.
- Merging changes no output; the language model's LoRA likewise, through peft; a merged model saves and loads.
- Only adapters and projector are trained; prompts are chosen by the encoder without adapters.
- The language model's LoRA goes where it is told, with a rank and alpha of its own.
- An encoder without attention is refused, and so is a layer that the language model does not have.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from peft import PeftModel
from tiny_models import MakeModel, films, labels_for
from torch import nn

from megpt.errors import InputError
from megpt.model import MeGPTForConditionalGeneration
from megpt.model.lora import RowLoRA, adapted, add_adapters, save_adapters


def stir(module: nn.Module) -> None:
    """Adapters as training leaves them: B no longer zero."""
    torch.manual_seed(1)
    for name, parameter in module.named_parameters():
        if ".lora_" in name:
            nn.init.normal_(parameter, std=0.2)


def reports(processor: Any) -> torch.Tensor:
    return labels_for(processor, ["The heart is normal in size.", "Clear lungs."])


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_key_rows_stay(make_model: MakeModel, kind: str) -> None:
    model, processor = make_model(kind, mode="delta", lora_rank=4)
    batch = processor(images=[films(1), films(2, seed=4)], return_tensors="pt")
    layers = adapted(model.vision.trunk)
    before = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(2):
        model.train()(**batch, labels=reports(processor)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert layers
    for name, layer in layers.items():
        third = layer.base_layer.out_features // 3
        change = layer.weight.detach() - before[name]
        assert not change[third : 2 * third].any()
        assert change[:third].any() and change[2 * third :].any()
        assert not layer.update()[third : 2 * third].any()


def test_layer_that_is_read_and_not_called() -> None:
    torch.manual_seed(0)
    arguments = {"embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2), "img_size": 64, "window_size": 8}
    trunk = timm.create_model("swinv2_tiny_window8_256", num_classes=0, **arguments).eval()
    for name, parameter in trunk.named_parameters():
        if "norm" in name and name.endswith("weight"):
            nn.init.ones_(parameter)  # timm starts them at 0, where attention has no effect
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        plain = trunk.forward_features(x)
        add_adapters(trunk, "swinv2", rank=2, alpha=4, dropout=0.0)
        assert torch.equal(trunk.forward_features(x), plain)
        stir(trunk)
        assert not torch.allclose(trunk.forward_features(x), plain, atol=1e-3)


def test_separate_projections() -> None:
    trunk = timm.create_model("pvt_v2_b0", num_classes=0)
    names = add_adapters(trunk, "pvt", rank=2, alpha=2, dropout=0.0)
    assert {name.rsplit(".", 1)[1] for name in names} == {"q", "kv"}
    kv = next(layer for name, layer in adapted(trunk).items() if name.endswith("kv"))
    nn.init.ones_(kv.lora_B[0])
    half = kv.base_layer.out_features // 2
    assert not kv.update()[:half].any() and kv.update()[half:].any()


def test_rows_of_heads_that_come_first() -> None:
    rows = [[h * 6 + r for h in range(4) for r in pair] for pair in ((0, 1), (4, 5))]
    adapter = RowLoRA(nn.Linear(8, 24), rows, rank=2, alpha=2)
    for b in adapter.lora_B:
        nn.init.ones_(b)
    changed = adapter.update().abs().sum(1) > 0
    assert [r for r in range(24) if not changed[r]] == [h * 6 + r for h in range(4) for r in (2, 3)]


def test_on_disk_it_is_an_ordinary_peft_adapter(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = timm.create_model("test_vit", num_classes=0, img_size=64).eval()
    ours = timm.create_model("test_vit", num_classes=0, img_size=64).eval()
    ours.load_state_dict(plain.state_dict())
    add_adapters(ours, "test_vit", rank=4, alpha=8, dropout=0.0)
    stir(ours)
    save_adapters(ours, tmp_path, base="test_vit")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA"
    theirs = PeftModel.from_pretrained(plain, str(tmp_path)).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(theirs.base_model.model.forward_features(x), ours.forward_features(x), atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_merging_gives_equal_outputs(make_model: MakeModel, tmp_path: Path, kind: str) -> None:
    model, processor = make_model(kind, mode="delta", llm_lora=True, lora_rank=4)
    stir(model)
    batch = processor(images=[films(1), films(2, seed=4)], return_tensors="pt")
    labels = reports(processor)
    model.eval()
    with torch.no_grad():
        before, ids = model(**batch, labels=labels).loss.item(), model.encode(**batch).prompt_id
    model.save_pretrained(tmp_path / "delta")
    loaded = MeGPTForConditionalGeneration.from_pretrained(tmp_path / "delta")
    model.export(tmp_path / "merged")
    merged = MeGPTForConditionalGeneration.from_pretrained(tmp_path / "merged")
    assert not any("lora" in name for name in merged.state_dict())
    assert sorted(p.name for p in (tmp_path / "delta").glob("adapter_*")) == [
        "adapter_language_model",
        "adapter_vision",
    ]
    assert not list((tmp_path / "merged").glob("adapter_*"))
    for other, tolerance in ((loaded, 1e-7), (model, 1e-5), (merged, 1e-5)):
        with torch.no_grad():
            assert other(**batch, labels=labels).loss.item() == pytest.approx(before, rel=tolerance)
            assert torch.equal(other.encode(**batch).prompt_id, ids)


def test_peft_loads_the_language_models_adapter(make_model: MakeModel, tmp_path: Path, tiny_llm: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, _ = make_model("vit", llm_lora=True, lora_rank=4)
    stir(model)
    model.eval().save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tiny_llm, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(plain, str(tmp_path / "adapter_language_model")).eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, model.language_model(ids).logits, atol=1e-5)
        assert not torch.allclose(theirs(ids).logits, plain.base_model(ids).last_hidden_state.sum(), atol=1e-3)


def test_what_is_trained(make_model: MakeModel) -> None:
    for mode, parts in {
        "shallow": {"projector"},
        "delta": {"projector", "lora"},
        "deep": {"projector", "vision"},
    }.items():
        model, _ = make_model("vit", mode=mode)
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        found = {"lora" if ".lora_" in name else name.split(".")[0] for name in names}
        assert found == parts, mode
        if mode == "deep":
            assert {n for n, _ in model.named_parameters() if n.startswith("vision.")} <= set(names)
            assert not any(p.requires_grad for p in model.prompt_encoder.parameters())


@pytest.mark.parametrize("mode", ["delta", "deep"])
def test_training_moves_no_study_to_another_prompt(make_model: MakeModel, mode: str) -> None:
    model, processor = make_model("vit", mode=mode)
    batch = processor(images=[[film] for film in films(3, seed=1)], return_tensors="pt")
    assert model.encode(**batch).prompt_id.tolist() == [0, 1, 2]
    stir(model)
    for parameter in model.vision.parameters():
        if mode == "deep":
            nn.init.normal_(parameter)
    assert model.encode(**batch).prompt_id.tolist() == [0, 1, 2]


def test_encoder_without_attention_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(InputError, match=r"model\.mode = delta"):
        make_model("convnext", mode="delta")


@pytest.mark.parametrize(
    ("targets", "layers"),
    [(None, {"q_proj", "v_proj"}), (["o_proj", "down_proj"], {"o_proj", "down_proj"}), ("all-linear", None)],
)
def test_the_language_models_layers_and_size(
    make_model: MakeModel, targets: Any, layers: set[str] | None, tmp_path: Path
) -> None:
    own = {"llm_lora": True, "llm_lora_targets": targets, "llm_lora_rank": 3, "llm_lora_alpha": 6, "lora_rank": 5}
    model, processor = make_model(mode="delta", **own)
    found = {n.rsplit(".", 2)[-2]: p for n, p in model.language_model.named_modules() if n.endswith(".lora_A")}
    every = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert found.keys() == (layers or every)
    assert all(part["default"].weight.shape[0] == 3 for part in found.values())
    assert {layer.rank for layer in adapted(model.vision.trunk).values()} == {5}
    stir(model)
    inputs = processor(images=[films(1)])
    expected = model.eval()(**inputs).logits
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = MeGPTForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(again(**inputs).logits, expected)
    assert torch.allclose(again.merge()(**inputs).logits, expected, atol=1e-5)


def test_a_layer_that_the_language_model_does_not_have(make_model: MakeModel) -> None:
    with pytest.raises(InputError, match="a llama language model has no layer 'k_pro'") as raised:
        make_model(llm_lora=True, llm_lora_targets=["q_proj", "k_pro"])
    assert raised.value.next == "did you mean k_proj or o_proj or q_proj?"
    with pytest.raises(InputError, match="cannot be adapted"):
        make_model(llm_lora=True, llm_lora_targets=["input_layernorm"])
