"""`megpt export`.

- `full`, `merge` and `dtype` make one folder in sharded safetensors that needs no other file, and writes the same.
- Without them the trained part alone is written, with what the run left behind left out; scores stay in the card.
- Settings may be named with and without `export.`; a moved language model is named by `model.llm`.
- A dry run writes nothing; no checkpoint is exit code 2.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from megpt.model import MeGPTForConditionalGeneration, MeGPTProcessor
from megpt.model.checkpoint.card import add_scores
from megpt.model.checkpoint.fingerprint import fingerprint
from ray_jobs.__main__ import main


def test_a_self_contained_folder(tiny_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    command = ["export", f"checkpoint={tiny_checkpoint}", f"output={output}", "full=true", "merge=true", "dtype=bf16"]
    assert main([*command, "--dry-run"]) == 0
    assert "would write all weights" in capfd.readouterr().err and not output.exists()
    assert main([*command, "export.max_shard_size=200KB"]) == 0
    shards = sorted(output.glob("model-*.safetensors"))
    assert len(shards) > 1 and (output / "model.safetensors.index.json").exists()
    for shard in shards:
        with safe_open(shard, "pt") as file:
            assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    config = json.loads((output / "config.json").read_text())
    assert config["complete"] and config["folded"] and "/" not in config["llm"]
    assert str(tiny_checkpoint.parent) not in (output / "config.json").read_text() + (output / "README.md").read_text()
    moved = shutil.move(output, tmp_path / "elsewhere")
    model, processor = MeGPTForConditionalGeneration.from_pretrained(moved), MeGPTProcessor.from_pretrained(moved)
    origin = MeGPTForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.bfloat16)
    inputs = processor(images=[Image.effect_noise((80, 70), 50)])
    assert torch.allclose(model(**inputs).logits, origin(**inputs).logits, atol=0.05)
    summary = json.loads((Path(moved) / "_SUCCESS").read_text())
    assert summary["shards"] == len(shards) and summary["fingerprint"] == fingerprint(moved) != summary["origin"]
    assert "so the card has no scores" in capfd.readouterr().err


def test_a_clean_copy(tiny_checkpoint: Path, tiny_llm: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_checkpoint, tmp_path / "run"))
    (run / "steps").mkdir()
    (run / "log.jsonl").write_text("{}\n")
    add_scores(run, {"scores": {"BLEU_4": 0.2}, "n": 5}, dataset="Drawn")
    output = tmp_path / "out"
    assert main(["export", f"checkpoint={run}", f"output={output}"]) == 2  # its language model is elsewhere
    assert not output.exists()
    assert main(["export", f"checkpoint={run}", f"output={output}", f"model.llm={tiny_llm}"]) == 0
    assert not (output / "steps").exists() and not (output / "log.jsonl").exists()
    assert fingerprint(output) == fingerprint(run)
    assert "### Drawn" in (output / "README.md").read_text()
    MeGPTForConditionalGeneration.from_pretrained(output)


def test_no_checkpoint(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["export", f"checkpoint={tmp_path}", f"output={tmp_path / 'out'}"]) == 2
    assert f"no checkpoint at {tmp_path}" in capfd.readouterr().err
    assert main(["export", f"checkpoint={tmp_path}", "dtype=int8", "output=x"]) == 2
    assert "export.dtype = 'int8'" in capfd.readouterr().err
