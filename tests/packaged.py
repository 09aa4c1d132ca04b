"""A Python package with weights, installed into a folder of the test's own."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

from megpt.model.pretrained import ENCODER, PackagedWeights


def encoder_tensors() -> dict[str, torch.Tensor]:
    """An EfficientNet-Lite0 of random weights, under the names of another library."""
    torch.manual_seed(4)
    own = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    return {f"_layer{number}.{name.rpartition('.')[2]}": tensor for number, (name, tensor) in enumerate(own.items())}


def install(weights: PackagedWeights, content: bytes, place: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedWeights:
    """Install a package of this name whose file has this content; returns the weights with its hash."""
    record = place / f"{weights.package.replace('-', '_')}-{weights.version}.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {weights.package}\nVersion: {weights.version}\n")
    file = place / weights.file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    monkeypatch.setattr(sys, "path", [str(place), *sys.path])
    return replace(weights, sha256=hashlib.sha256(content).hexdigest())


def install_encoder(place: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedWeights:
    """The encoder's package with random weights."""
    (place / "made").mkdir(parents=True)
    torch.save(encoder_tensors(), place / "made" / "encoder.pth")
    return install(ENCODER, (place / "made" / "encoder.pth").read_bytes(), place / "site", monkeypatch)
