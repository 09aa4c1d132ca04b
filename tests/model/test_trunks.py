"""Encoders of other places: folders of timm and open_clip, models of transformers, and one channel.

- their features are those of the origin, to 1e-5, with its own pixel statistics and size
- a checkpoint on each loads again, also from another place together with the encoder's folder
- LoRA goes on query and value of a model of transformers
- an unknown name lists the nearest; a folder that is no encoder says so
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_models import MakeModel, films
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from megpt.errors import InputError
from megpt.model import MeGPTForConditionalGeneration, MeGPTProcessor

MEAN, STD = [0.4, 0.4, 0.4], [0.2, 0.2, 0.2]


def timm_folder(folder: Path) -> tuple[str, Any]:
    model = timm.create_model("test_vit", img_size=64)
    model.pretrained_cfg = {**model.pretrained_cfg, "mean": MEAN, "std": STD, "input_size": (3, 64, 64)}
    timm.models.save_for_hf(model, str(folder), safe_serialization=True)
    return f"local-dir:{folder}", lambda x: model.forward_features(x)[:, model.num_prefix_tokens :]


def dinov2(folder: Path) -> tuple[str, Any]:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    model = Dinov2Model(Dinov2Config(**shape)).eval()
    model.save_pretrained(folder)
    size = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    BitImageProcessor(**size, image_mean=MEAN, image_std=STD).save_pretrained(folder)
    return str(folder), lambda x: model(pixel_values=x).last_hidden_state[:, 1:]


def open_clip(folder: Path) -> tuple[str, Any]:
    model = timm.create_model("test_vit", num_classes=0)
    folder.mkdir()
    vision = {"timm_model_name": "test_vit", "timm_model_pretrained": False, "image_size": 160}
    tree = {"model_cfg": {"vision_cfg": vision}, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (folder / "open_clip_config.json").write_text(json.dumps(tree))
    state = {f"visual.trunk.{name}": tensor for name, tensor in model.state_dict().items()}
    save_file({**state, "logit_scale": torch.ones(1)}, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}", lambda x: model.forward_features(x)[:, model.num_prefix_tokens :]


@pytest.mark.parametrize(("make", "side"), [(timm_folder, 64), (dinov2, 56), (open_clip, 160)])
def test_features_are_the_origins(make: Any, side: int, tmp_path: Path, make_model: MakeModel) -> None:
    torch.manual_seed(0)
    name, plain = make(tmp_path / "encoder")
    own = {"vision": name, "vision_weights": "pretrained", "image_size": None}
    model, processor = make_model(**own)
    assert processor.image_size == side
    assert (processor.image_processor.image_mean, processor.image_processor.image_std) == (MEAN, STD)
    pixels = processor(images=[films(1)])
    with torch.no_grad():
        found = model.vision(pixels["pixel_values"][0]).flatten(2).transpose(1, 2)
        assert (found - plain(pixels["pixel_values"][0])).abs().max() < 1e-5
    model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    (there := tmp_path / "there").mkdir()
    for part in ("encoder", "checkpoint"):
        shutil.move(tmp_path / part, there / part)
    again = MeGPTForConditionalGeneration.from_pretrained(there / "checkpoint", llm=model.config.llm)
    inputs = MeGPTProcessor.from_pretrained(there / "checkpoint")(images=[films(1)])
    assert torch.equal(again(**inputs).logits, model.eval()(**pixels).logits)


def test_lora_on_a_model_of_transformers(tmp_path: Path, make_model: MakeModel) -> None:
    name, _ = dinov2(tmp_path / "encoder")
    model, _ = make_model(vision=name, vision_weights="pretrained", image_size=None, mode="delta")
    trained = {n for n, p in model.named_parameters() if p.requires_grad and n.startswith("vision.")}
    assert len(trained) == 8 and all(".q_proj." in n or ".v_proj." in n for n in trained)


def test_one_channel(make_model: MakeModel) -> None:
    overlay = {"mean": [0.5], "std": [1 / 2048]}  # torchxrayvision's range of [-1024, 1024]
    arguments = {"in_chans": 1, "pretrained_cfg_overlay": overlay}
    model, processor = make_model("resnet", vision_args=arguments, mode="deep", dynamic_prompt=False)
    inputs = processor(images=[films(1)])
    assert inputs["pixel_values"].shape == (1, 1, 3, 64, 64) and inputs["pixel_values"].abs().max() > 100
    with torch.no_grad():
        expected = model.vision.trunk.forward_features(inputs["pixel_values"][0][:, :1])
        assert (model.vision(inputs["pixel_values"][0]) - expected).abs().max() < 1e-5


def test_unknown_encoders(tmp_path: Path, make_model: MakeModel) -> None:
    with pytest.raises(InputError, match="is not a timm model, nor the folder") as raised:
        make_model(vision="tset_vit")
    assert "test_vit" in str(raised.value.next)
    with pytest.raises(InputError, match="cannot be loaded") as raised:
        make_model(vision=str(tmp_path))
    assert "not a vision model of transformers" in str(raised.value.cause)
    with pytest.raises(InputError, match="cannot be built"):
        make_model(vision=f"local-dir:{tmp_path}")
