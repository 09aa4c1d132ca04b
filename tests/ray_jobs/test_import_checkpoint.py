"""`megpt import-checkpoint FILE.pth`.

- a reference file becomes a folder that from_pretrained and the processor load; run again, it finds nothing to do
- a dry run says what would be used and writes nothing
- a file that would run code is refused with exit code 2, nothing written, nothing run
- another file on the same output is refused
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from reference_layout import GEOMETRY, IMAGE_SIZE, Reference, save_reference
from safetensors.torch import save_file
from transformers import AutoProcessor

from megpt.model import MeGPTForConditionalGeneration
from megpt.model.reference.swin import swin_to_timm
from ray_jobs.__main__ import main


@pytest.fixture
def arguments(tiny_llm: Path, tmp_path: Path) -> list[str]:
    torch.manual_seed(3)
    made = Reference(tiny_llm, megpt=True).eval()
    save_reference(made, tmp_path / "x.pth", mode="shallow")
    mapped = swin_to_timm(made.visual_encoder.state_dict())[0]
    save_file({k: v.contiguous() for k, v in mapped.items()}, tmp_path / "encoder.safetensors")
    return [
        "import-checkpoint",
        str(tmp_path / "x.pth"),
        f"model.vision_args={GEOMETRY}",
        f"model.vision_weights={tmp_path / 'encoder.safetensors'}",
        f"model.image_size={IMAGE_SIZE}",
        f"model.llm={tiny_llm}",
        f"output={tmp_path / 'out'}",
    ]


def test_import(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([*arguments, "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()
    assert "projector.linear" in capsys.readouterr().out
    assert main(arguments) == 0
    model = MeGPTForConditionalGeneration.from_pretrained(tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    film = torch.zeros(IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8).numpy()
    ids = model.generate(**processor(images=[[film, film]], return_tensors="pt"), max_new_tokens=4, num_beams=1)
    assert ids.shape[0] == 1
    before = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    assert main(arguments) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == before
    tree = torch.load(tmp_path / "x.pth", weights_only=False)
    tree["model"]["layer_norm.bias"] += 1
    torch.save(tree, tmp_path / "x.pth")
    assert main(arguments) == 2


class Malice:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_malicious_file(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.save({"model": {"llama_proj.weight": torch.ones(2)}, "config": Malice(tmp_path / "ran")}, tmp_path / "x.pth")
    assert main(arguments) == 2
    assert "refused" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_absent_file(arguments: list[str], tmp_path: Path):
    arguments[1] = str(tmp_path / "absent.pth")
    assert main(arguments) == 2
