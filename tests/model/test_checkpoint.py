"""Checkpoint folders.

- Round trips are bit-equal in every mode: partial, full, sharded, bfloat16; safetensors only.
- A partial checkpoint holds what was trained and names the rest; frozen parts that differ or are gone are refused, and
  so is a folder without some of the weights it should hold.
- Keywords of transformers that have no effect are logged.
- A second checkpoint in the same folder leaves nothing of the first.
- The Auto classes load it after `import megpt.hf`; `import megpt` itself imports neither torch nor transformers.
- An edited prompts.yaml is what the model reads next; a broken one is refused.
- Folded and exported, it computes the same; the card names the intended use.
- A damaged or missing file is refused by name; a pickle is never read.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_models import MakeModel, films, labels_for
from torch import nn

from megpt.errors import InputError
from megpt.model import DOConv2d, MeGPTForConditionalGeneration, MeGPTProcessor, PromptBank

CASES: list[tuple[str, dict[str, Any]]] = [
    ("vit", {"mode": "shallow"}),
    ("vit", {"mode": "delta", "llm_lora": True}),
    ("swin", {"mode": "deep"}),
    ("resnet", {"mode": "deep", "fem_norm": "batch", "dynamic_prompt": False}),
    ("vit", {"fem_domain": "token", "dtype": torch.bfloat16}),
]


def load(folder: Path, **kwargs: Any) -> Any:
    return MeGPTForConditionalGeneration.from_pretrained(folder, **kwargs)


def same(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(v, two[k]) and v.dtype == two[k].dtype for k, v in one.items())


@pytest.mark.parametrize(("kind", "settings"), CASES, ids=str)
def test_round_trip_is_bit_equal(make_model: MakeModel, tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    model, processor = make_model(kind, **settings)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name.startswith(("vision", "language")):
            nn.init.normal_(parameter, std=0.1)
    model.eval()
    batch = processor(images=[films(2), films(1, seed=5)], return_tensors="pt")
    labels = labels_for(processor, ["The heart is normal.", "Clear lungs."])
    wanted = model(**batch, labels=labels).loss
    for name, options in {
        "partial": {},
        "full": {"full": True},
        "sharded": {"full": True, "max_shard_size": "200KB"},
    }.items():
        folder = tmp_path / name
        model.save_pretrained(folder, **options)
        processor.save_pretrained(folder)
        loaded = load(folder)
        assert same(model, loaded), name
        assert torch.equal(loaded(**batch, labels=labels).loss, wanted)
        again = MeGPTProcessor.from_pretrained(folder)
        assert torch.equal(again(images=[films(2)])["pixel_values"], batch["pixel_values"][:1])
        assert not [p for p in folder.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
        assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 1


def test_partial_checkpoint_holds_what_was_trained(make_model: MakeModel, tmp_path: Path) -> None:
    first, _ = make_model("vit")
    weights = tmp_path / "vit.safetensors"
    save_file(first.vision.trunk.state_dict(), weights)
    for mode, held in {"shallow": {"projector"}, "deep": {"projector", "vision"}}.items():
        model, _ = make_model("vit", mode=mode, vision_weights=str(weights))
        for parameter in model.vision.parameters():
            if mode == "deep":
                nn.init.normal_(parameter, std=0.1)
        folder = tmp_path / mode
        model.save_pretrained(folder)
        assert {name.split(".")[0] for name in load_file(folder / "model.safetensors")} == held
        frozen = json.loads((folder / "config.json").read_text())["frozen"]
        assert set(frozen) == {"language_model", "vision"} and frozen["vision"]["source"] == "../vit.safetensors"
        assert same(model, load(folder))


def test_frozen_parts_are_checked(make_model: MakeModel, tmp_path: Path, tiny_llm: Path) -> None:
    first, _ = make_model("vit")
    weights = tmp_path / "vit.safetensors"
    save_file(first.vision.trunk.state_dict(), weights)
    llm = tmp_path / "llm"
    shutil.copytree(tiny_llm, llm)
    model, _ = make_model("vit", vision_weights=str(weights), llm=str(llm))
    folder = tmp_path / "checkpoint"
    model.save_pretrained(folder)
    moved = tmp_path / "moved"
    shutil.move(llm, moved)
    with pytest.raises(InputError, match=r"model\.llm(.|\n)*llm"):
        load(folder)
    assert same(model, load(folder, llm=str(moved)))
    tensors = load_file(moved / "model.safetensors")
    tensors["model.norm.weight"][3] += 1e-3
    save_file(tensors, moved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="frozen language model differs"):
        load(folder, llm=str(moved))
    state = load_file(weights)
    next(iter(state.values())).view(-1)[0] += 1e-3
    save_file(state, weights)
    with pytest.raises(InputError, match=r"frozen vision differs(.|\n)*vision_weights="):
        load(folder, llm=str(tiny_llm))


def test_auto_classes_after_import_megpt_hf(tiny_checkpoint: Path) -> None:
    code = f"""
import sys, megpt
assert not {{"torch", "transformers", "timm", "ray"}} & set(sys.modules)
import megpt.hf
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from PIL import Image
processor = AutoProcessor.from_pretrained({str(tiny_checkpoint)!r})
model = AutoModelForImageTextToText.from_pretrained({str(tiny_checkpoint)!r})
film = Image.effect_noise((80, 70), 50)
ids = model.generate(**processor(images=[[film, film]], return_tensors="pt"), max_new_tokens=4)
config = AutoConfig.from_pretrained({str(tiny_checkpoint)!r})
print(*(type(x).__name__ for x in (config, model, processor)))
assert len(processor.batch_decode(ids)) == 1 and "ray" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-3:] == ["MeGPTConfig", "MeGPTForConditionalGeneration", "MeGPTProcessor"]


def test_edited_prompts_are_read(tiny_checkpoint: Path, tiny_llm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "edited"
    shutil.copytree(tiny_checkpoint, folder)
    before = load(folder, llm=str(tiny_llm))
    tree = yaml.safe_load((folder / "prompts.yaml").read_text())
    tree["prompts"][1]["text"] = "Look at the heart."
    (folder / "prompts.yaml").write_text(yaml.safe_dump(tree))
    model, processor = load(folder, llm=str(tiny_llm)), MeGPTProcessor.from_pretrained(folder)
    assert processor.tokenizer.decode(model.prompt_ids()[1][1]) == "</Img> Look at the heart. \nAssistant:"
    assert model.prompt_ids()[1][0] == before.prompt_ids()[1][0]
    del tree["prompts"][2]
    (folder / "prompts.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(InputError, match="2 prompts for 3 clusters"):
        load(folder)
    (folder / "prompts.yaml").write_text("prompts: [")
    with pytest.raises(InputError, match="cannot be read"):
        load(folder)


def test_export_folds(make_model: MakeModel, tmp_path: Path) -> None:
    model, processor = make_model("vit")
    nn.init.normal_(model.projector.enhancer.doconv.d_diff, std=0.1)
    model.eval()
    batch = processor(images=[films(2)], return_tensors="pt")
    assert isinstance(model.projector.enhancer.doconv, DOConv2d)
    before = model.encode(**batch).tokens
    model.export(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded.projector.enhancer.doconv) is nn.Conv2d
    assert torch.allclose(loaded.encode(**batch).tokens, before, atol=1e-5)


def test_card_and_generation_config(tiny_checkpoint: Path, tmp_path: Path) -> None:
    card = (tiny_checkpoint / "README.md").read_text()
    for word in ("research only", "PhysioNet", "Apache-2.0", "Not measured yet", "test_vit", "fingerprint"):
        assert word in card
    model = load(tiny_checkpoint)
    model.save_pretrained(tmp_path, scores={"BLEU_4": 0.1234})
    assert "| BLEU_4 | 0.1234 |" in (tmp_path / "README.md").read_text()
    settings = json.loads((tiny_checkpoint / "generation_config.json").read_text())
    assert settings["eos_token_id"] == 1 and settings["max_new_tokens"] == 100


def test_damage_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_checkpoint, folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        load(folder)
    (folder / "model.safetensors").unlink()
    torch.save({"projector.linear.weight": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be read"):
        load(folder)
    with pytest.raises(InputError, match="no checkpoint at"):
        load(tmp_path / "nowhere")


def test_weights_that_are_not_held_are_missed(make_model: MakeModel, tmp_path: Path) -> None:
    model, _ = make_model("vit", mode="deep")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for part in ("vision.", "prompt_encoder.", "projector."):
        save_file({k: v for k, v in tensors.items() if not k.startswith(part)}, tmp_path / "model.safetensors")
        with pytest.raises(InputError, match=r"the weights in .* do not fit its config\.json"):
            load(tmp_path)


def test_a_second_checkpoint_replaces_the_first(make_model: MakeModel, tmp_path: Path) -> None:
    first, _ = make_model("vit", mode="delta", llm_lora=True)
    first.save_pretrained(tmp_path, full=True, max_shard_size="200KB")
    second, _ = make_model("vit", dynamic_prompt=False)
    second.save_pretrained(tmp_path)
    assert not [*tmp_path.glob("adapter_*"), *tmp_path.glob("model-*"), *tmp_path.glob("*index*")]
    assert same(second, load(tmp_path)) and load(tmp_path).bank.centroids is None


def test_keywords_without_effect_are_named(tiny_checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(tiny_checkpoint, trust_remote_code=False, torch_dtype=torch.bfloat16, low_cpu_mem_usage=True)
    lines = [line for line in capfd.readouterr().err.splitlines() if "ignored" in line]
    assert len(lines) == 1 and lines[0].endswith(
        "from_pretrained: ignored low_cpu_mem_usage, torch_dtype, which MeGPT checkpoints do not use"
    )


def test_bank_without_clusters(tmp_path: Path) -> None:
    PromptBank.fixed("One instruction.").save(tmp_path)
    bank = PromptBank.load(tmp_path)
    assert bank.centroids is None and bank.texts == ("One instruction.",)
    assert bank.assign(torch.randn(4, 8)).tolist() == [0, 0, 0, 0]
