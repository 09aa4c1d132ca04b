"""Checkpoints that travel.

- config.json names the language model by a path relative to the folder; the two can be moved together, but not apart.
- `llm=` says where it is now; another one is refused by its hash; a hub id with a revision is loaded at that revision.
- Pushed is what a user needs: no steps, logs, tables, job configs, and no path of this machine; what is pushed loads.
- A checkpoint of a newer megpt, one with another tokenizer, one half downloaded, one without its language model, and a
  hub id without a network are refused in one screen each.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hub import COMMIT, loopback_hub
from tiny_models import MakeModel, films

from megpt.errors import InputError
from megpt.model import MeGPTForConditionalGeneration, MeGPTProcessor
from megpt.model.checkpoint.fetch import is_hub_id, local_folder
from megpt.model.checkpoint.fingerprint import fingerprint
from megpt.model.checkpoint.push import files_to_push


def load(folder: Path | str, **kwargs: Any) -> Any:
    return MeGPTForConditionalGeneration.from_pretrained(folder, **kwargs)


@pytest.fixture
def pair(make_model: MakeModel, tiny_llm: Path, tmp_path: Path) -> Path:
    """tmp/run/checkpoint beside tmp/run/llm."""
    llm = shutil.copytree(tiny_llm, tmp_path / "run" / "llm")
    model, processor = make_model("vit", llm=str(llm))
    model.save_pretrained(tmp_path / "run" / "checkpoint")
    processor.save_pretrained(tmp_path / "run" / "checkpoint")
    return tmp_path / "run" / "checkpoint"


def test_a_checkpoint_moves_with_what_lies_beside_it(pair: Path, tmp_path: Path) -> None:
    tree = json.loads((pair / "config.json").read_text())
    assert tree["llm"] == tree["frozen"]["language_model"]["source"] == "../llm"
    assert str(tmp_path) not in (pair / "config.json").read_text() + (pair / "README.md").read_text()
    before = fingerprint(pair)
    (tmp_path / "run").rename(tmp_path / "moved")
    folder = tmp_path / "moved" / "checkpoint"
    assert load(folder).config.llm == str(tmp_path / "moved" / "llm")
    assert fingerprint(folder) == before
    (tmp_path / "link").symlink_to(folder)
    load(tmp_path / "link")
    load(folder).save_pretrained(tmp_path / "moved" / "deeper" / "again")
    saved = json.loads((tmp_path / "moved" / "deeper" / "again" / "config.json").read_text())
    assert saved["frozen"]["language_model"]["source"] == "../../llm"


def test_a_checkpoint_without_its_language_model(pair: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(pair, tmp_path / "alone")
    with pytest.raises(InputError) as refused:
        load(alone)
    assert refused.value.what == f"the checkpoint's language model is not at {tmp_path / 'llm'}"
    assert refused.value.cause == "it was moved, or the checkpoint was copied without it"
    assert "model.llm=FOLDER" in str(refused.value.next)
    assert load(alone, llm=str(pair.parent / "llm")).config.llm == str(pair.parent / "llm")


def test_newer_checkpoints_and_other_tokenizers(pair: Path, tmp_path: Path) -> None:
    path = pair / "config.json"
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text) | {"checkpoint_format": 2}))
    with pytest.raises(InputError, match=r"was written by a newer megpt\n  where: config\.json: checkpoint_format = 2"):
        load(pair)
    path.write_text(text)
    tokenizer = json.loads((pair / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    one, two = [word for word, number in words.items() if number in (20, 21)]
    words[one], words[two] = words[two], words[one]
    (pair / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="the tokenizer is not the one that this checkpoint was trained with"):
        load(pair)
    (pair / "tokenizer.json").write_text(json.dumps(tokenizer)[:200])
    with pytest.raises(InputError, match=f"the tokenizer in {pair} cannot be loaded"):
        load(pair)
    with pytest.raises(InputError, match=f"the processor of {pair} cannot be loaded"):
        MeGPTProcessor.from_pretrained(pair)


def test_a_hub_id_without_a_network() -> None:
    with pytest.raises(InputError) as refused:
        load("someone/megpt-iu@main")
    assert refused.value.what == "no checkpoint at 'someone/megpt-iu@main'"
    assert "run `hf download someone/megpt-iu --revision main` on a machine with a network" in str(refused.value.next)
    assert not is_hub_id("nowhere") and not is_hub_id("./org/name") and not is_hub_id("a/b/c")
    with pytest.raises(InputError, match="it has no config"):
        local_folder("a/b/c")


def litter(folder: Path) -> None:
    """What a training run leaves in its output."""
    for name in ("steps/step-00000002/state.safetensors", "tensorboard/events.out", "log.jsonl", "failed.parquet"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"secret")
    for name in ("megpt.yaml", "run.json", "_SUCCESS", ".lock", "reports.csv", "secret.safetensors"):
        (folder / name).write_text("secret")


SCRIPT = """
import sys
from megpt.model import MeGPTForConditionalGeneration
from megpt.model.checkpoint.push import push_checkpoint
print(push_checkpoint(sys.argv[1], "me/partial", private=True, token="t"))
model = MeGPTForConditionalGeneration.from_pretrained("me/partial", llm=sys.argv[2])
model.save_pretrained(sys.argv[3], full=True, push_to_hub=True, repo_id="me/whole", token="t")
model = MeGPTForConditionalGeneration.from_pretrained("me/whole@main")
print(model.name_or_path)
"""


@pytest.mark.slow
def test_push_takes_what_a_user_needs(pair: Path, tmp_path: Path) -> None:
    litter(pair)
    with loopback_hub() as (address, files):
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "cache")}
        environment["HF_HUB_DISABLE_XET"] = "1"
        arguments = [str(pair), str(pair.parent / "llm"), str(tmp_path / "whole")]
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *arguments], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
    pushed = files["me/partial"]
    assert set(pushed) == {
        *("README.md", "config.json", "generation_config.json", "model.safetensors", "prompts.yaml"),
        *("centroids.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    }
    assert pushed["model.safetensors"] == (pair / "model.safetensors").read_bytes()
    for repo in files.values():
        for content in repo.values():
            assert b"secret" not in content and str(tmp_path).encode() not in content
    assert json.loads(pushed["config.json"])["frozen"]["language_model"]["source"] == "llm"
    assert "language_model lies outside" in done.stderr
    commit, whole = done.stdout.split()
    assert commit.endswith(f"/me/partial/commit/{COMMIT}") and whole.endswith(COMMIT)
    assert "language_model.model.norm.weight" in str(files["me/whole"]["model.safetensors"][:100_000])


def test_a_language_model_inside_the_checkpoint_is_pushed_too(pair: Path, make_model: MakeModel) -> None:
    shutil.move(pair.parent / "llm", pair / "llm")
    (pair / "llm" / "training_args.bin").write_text("x")
    load(pair, llm=str(pair / "llm")).save_pretrained(pair)
    assert json.loads((pair / "config.json").read_text())["llm"] == "./llm"
    names = files_to_push(pair)
    assert {"llm/config.json", "llm/model.safetensors"} <= set(names) and "llm/training_args.bin" not in names
    load(pair)


def test_a_language_model_of_the_hub(
    tiny_llm: Path, make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A hub's cache as `hf download` makes it.
    cache = tmp_path / "hub" / "models--org--tiny"
    shutil.copytree(tiny_llm, cache / "snapshots" / COMMIT)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    model, processor = make_model("vit", llm=f"org/tiny@{COMMIT}")
    model.save_pretrained(tmp_path / "out")
    named = json.loads((tmp_path / "out" / "config.json").read_text())["frozen"]["language_model"]
    assert (named["source"], named["revision"]) == ("org/tiny", COMMIT)
    batch = processor(images=[films(1)])
    assert torch.equal(load(tmp_path / "out").generate(**batch), model.eval().generate(**batch))
    (cache / "snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(InputError, match=f"run `hf download org/tiny --revision {COMMIT}` where there is a network"):
        load(tmp_path / "out")
