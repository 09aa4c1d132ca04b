"""A checkpoint that is not whole, or not what it was: `generate --dry-run` ends with one screen and exit code 2.

- without its language model, with half of it, with another one; without or with another tokenizer; of a newer megpt
- half downloaded: weights, config, decoding, prompts, clusters, processor
- a hub id without a network: what to download, and how
- the same in Python is one InputError, where megpt reads the file
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from megpt.errors import InputError
from megpt.model import MeGPTForConditionalGeneration
from ray_jobs.__main__ import main


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def newer(folder: Path) -> None:
    tree = json.loads((folder / "checkpoint/config.json").read_text())
    (folder / "checkpoint/config.json").write_text(json.dumps({**tree, "checkpoint_format": 99}))


def another_language_model(folder: Path) -> None:
    path = folder / "llm/model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] += 1
    save_file(tensors, path, metadata={"format": "pt"})


def another_tokenizer(folder: Path) -> None:
    path = folder / "checkpoint/tokenizer.json"
    tree = json.loads(path.read_text())
    words = tree["model"]["vocab"]
    first, second = list(words)[-2:]
    words[first], words[second] = words[second], words[first]
    path.write_text(json.dumps(tree))


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no language model": (lambda f: shutil.rmtree(f / "llm"), "the checkpoint's language model is not at "),
    "half a language model": (lambda f: halve(f / "llm/model.safetensors"), "the language model in "),
    "another language model": (
        another_language_model,
        "the frozen language model differs from the one this checkpoint ",
    ),
    "newer": (newer, "the checkpoint {checkpoint} was written by a newer megpt"),
    "another tokenizer": (another_tokenizer, "the tokenizer is not the one that this checkpoint was trained with"),
    "half a tokenizer": (lambda f: halve(f / "checkpoint/tokenizer.json"), "the tokenizer in {checkpoint} cannot be "),
    "half the weights": (lambda f: halve(f / "checkpoint/model.safetensors"), "the weights in {checkpoint} cannot be "),
    "no weights": (lambda f: (f / "checkpoint/model.safetensors").unlink(), "the weights in {checkpoint} cannot be "),
    "half a config": (lambda f: halve(f / "checkpoint/config.json"), "{checkpoint}/config.json cannot be read"),
    "half a decoding": (
        lambda f: halve(f / "checkpoint/generation_config.json"),
        "{checkpoint}/generation_config.json cannot be read",
    ),
    "no prompts": (lambda f: (f / "checkpoint/prompts.yaml").unlink(), "no prompts.yaml in {checkpoint}"),
    "no clusters": (lambda f: (f / "checkpoint/centroids.safetensors").unlink(), "no centroids.safetensors in "),
    "no processor": (
        lambda f: [path.unlink() for path in (f / "checkpoint").glob("*processor*")],
        "the processor of {checkpoint} cannot be loaded",
    ),
    "no tokenizer": (
        lambda f: [path.unlink() for path in (f / "checkpoint").glob("tokenizer*")],
        "the processor of {checkpoint} cannot be loaded",
    ),
}
"""What is done to a folder with checkpoint/ and llm/, and how the error begins."""
OF_TRANSFORMERS = ("half a config", "no processor", "no tokenizer")
"""Files that loading the model in Python does not read, or transformers before megpt."""


@pytest.fixture
def folder(tiny_checkpoint: Path, tiny_llm: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    shutil.copytree(tiny_llm, tmp_path / "llm")
    path = tmp_path / "checkpoint/config.json"
    tree = json.loads(path.read_text())
    tree["llm"] = tree["frozen"]["language_model"]["source"] = "../llm"
    path.write_text(json.dumps(tree))
    (tmp_path / "films").mkdir()
    Image.new("L", (64, 64), 90).save(tmp_path / "films/a.png")
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_one_screen(case: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spoil, text = CASES[case]
    checkpoint = folder / "checkpoint"
    line = ["generate", f"source={folder / 'films'}", f"checkpoint={checkpoint}", f"output={folder / 'out'}"]
    assert main([*line, "--dry-run"]) == 0
    spoil(folder)
    capfd.readouterr()
    assert main([*line, "--dry-run"]) == 2
    screen = capfd.readouterr().err
    screen = screen[screen.index("error: ") :]
    assert screen.startswith("error: " + text.format(checkpoint=checkpoint)) and "\n  next:  " in screen
    assert len(screen.splitlines()) <= 5 and "Traceback" not in screen and not (folder / "out").exists()
    if case not in OF_TRANSFORMERS:
        with pytest.raises(InputError) as refused:
            MeGPTForConditionalGeneration.from_pretrained(checkpoint)
        assert str(refused.value).startswith(text.format(checkpoint=checkpoint))


def test_a_hub_id_without_a_network(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (64, 64), 90).save(tmp_path / "a.png")
    assert main(["generate", f"source={tmp_path}", "checkpoint=org/name@v1", "output=out", "--dry-run"]) == 2
    said = capfd.readouterr().err
    assert said.startswith("error: no checkpoint at 'org/name@v1'\n  cause: no such folder, and ")
    assert "run `hf download org/name --revision v1` on a machine with a network" in said
