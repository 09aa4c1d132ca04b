"""Hugging Face's Swin weights in timm's model.

- the features are equal to 1e-5, with shifted windows, several patch mergings and random weights everywhere
- transformers 4's names and transformers 5's give the same tensors
- an incomplete query/key/value triple is reported, not half used
"""

from __future__ import annotations

import pytest
import timm
import torch
from reference_layout import legacy_swin_names
from transformers import SwinConfig, SwinModel

from megpt.model.reference.swin import swin_to_timm

GEOMETRY = {"embed_dim": 16, "depths": [2, 2, 2], "num_heads": [2, 4, 8], "window_size": 4}


@pytest.fixture(scope="module")
def swin() -> SwinModel:
    torch.manual_seed(0)
    config = SwinConfig(image_size=64, patch_size=4, **GEOMETRY)
    model = SwinModel(config).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


def in_timm(swin: SwinModel) -> torch.nn.Module:
    tensors = legacy_swin_names(swin.state_dict())
    model = timm.create_model("swin_base_patch4_window7_224", img_size=64, num_classes=0, **GEOMETRY)
    mapped, used, ignored = swin_to_timm(tensors)
    model.load_state_dict(mapped)
    assert used.keys() == tensors.keys() and not ignored
    return model.eval()


def test_same_features(swin: SwinModel):
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = swin(pixels).last_hidden_state
        ours = in_timm(swin).forward_features(pixels).flatten(1, 2)
    assert theirs.abs().max() > 0.5
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_names_of_both_transformers_versions(swin: SwinModel):
    new, old = swin_to_timm(swin.state_dict())[0], swin_to_timm(legacy_swin_names(swin.state_dict()))[0]
    assert new.keys() == old.keys()
    assert all(torch.equal(new[name], old[name]) for name in new)


def test_incomplete_triple(swin: SwinModel):
    tensors = legacy_swin_names(swin.state_dict())
    key = "encoder.layers.0.blocks.1.attention.self.key.weight"
    del tensors[key]
    mapped, used, ignored = swin_to_timm(tensors)
    assert "layers.0.blocks.1.attn.qkv.weight" not in mapped
    assert sorted(ignored) == [key.replace("key", "query"), key.replace("key", "value")]
    assert not used.keys() & set(ignored)
