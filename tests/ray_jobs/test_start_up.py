"""What a command pays before its work begins.

- a `model.llm` that is not there is refused without torch and Ray, in a second or so
- a language model and a checkpoint that passed without a word are not looked at again, in this process or another:
  torch is not imported; a change of any file, of a setting that counts, or of the place of a part is looked at
- what did not pass, or passed with a word, is looked at and told again
- the verdict on a class is known to the next process
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_runs import small_config
from transformers import AutoConfig

from megpt.config import Config, GenerateConfig
from megpt.errors import InputError
from megpt.generation import trial
from ray_jobs.generate.checkpoint import decoding
from ray_jobs.train.job import with_usable_backend

WITHOUT_TORCH = """
import json, sys
from megpt.config import Config
config = Config.model_validate(json.loads(sys.argv[1]))
if config.checkpoint:
    from ray_jobs.generate.checkpoint import decoding
    decoding(config, None)
else:
    from ray_jobs.train.job import Train
    Train(config).open()
print("torch" in sys.modules, "ray" in sys.modules)
"""


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(trial, "_KNOWN", {})


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The classes that were looked at, one entry a look; an earlier one is forgotten."""
    seen, real = list[str](), trial.usable

    def usable(generate: GenerateConfig, config: Any, **more: Any) -> GenerateConfig:
        seen.append(config.model_type)
        return real(generate, config, **more)

    monkeypatch.setattr(trial, "usable", usable)
    return seen


def apart(config: Config) -> str:
    """In a process of its own."""
    command = [sys.executable, "-c", WITHOUT_TORCH, json.dumps(config.model_dump(mode="json"))]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("llm", ["nowhere", "someone/nothing", "empty"])
def test_a_language_model_that_is_not_there(llm: str, small_studies: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code = "import sys; from ray_jobs.__main__ import main; print(main(sys.argv[1:]), *sorted(sys.modules))"
    command = [sys.executable, "-c", code, "train", f"studies={small_studies}", "output=out", f"model.llm={llm}"]
    command += ["model.dynamic_prompt=false", "train.loggers=[]", "train.global_batch_size=8"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    exit_code, *imported = done.stdout.split()
    assert exit_code == "2" and done.stderr.startswith("error: model.llm") and "Traceback" not in done.stderr
    assert "megpt.config" in imported and not {"torch", "ray"} & set(imported)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3
    assert not (tmp_path / "out").exists()


def test_a_language_model_is_looked_at_once(
    tiny_llm: Path, small_studies: Path, tmp_path: Path, trials: list[str]
) -> None:
    llm = Path(shutil.copytree(tiny_llm, tmp_path / "llm"))
    config = small_config(tmp_path / "out", studies=small_studies, llm=llm)
    for _ in range(2):
        assert with_usable_backend(config).generate.backend == "engine"
    assert trials == ["llama"]
    assert apart(config) == "False False\n"
    with_usable_backend(config.overridden({"generate.num_beams": 1}))
    assert len(trials) == 2
    (llm / "tokenizer_config.json").write_text((llm / "tokenizer_config.json").read_text() + "\n")
    with_usable_backend(config)
    assert len(trials) == 3
    tree = json.loads((llm / "tokenizer.json").read_text())
    tree["added_tokens"].append({**tree["added_tokens"][-1], "id": 5000, "content": "<new>"})
    (llm / "tokenizer.json").write_text(json.dumps(tree))
    for _ in range(2):
        with pytest.raises(InputError, match="has 5001 tokens, and its embedding"):
            with_usable_backend(config)


def test_a_checkpoint_is_looked_at_once(tiny_checkpoint: Path, tmp_path: Path, trials: list[str]) -> None:
    llm = Path(json.loads((tiny_checkpoint / "config.json").read_text())["frozen"]["language_model"]["source"])
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "near" / "checkpoint"))
    shutil.copytree((tiny_checkpoint / llm).resolve(), (checkpoint / llm).resolve())
    config = Config().overridden({"checkpoint": str(checkpoint)})
    for _ in range(2):
        assert decoding(config, None)[0].backend == "engine"
    assert trials == ["llama"]
    assert apart(config) == "False False\n"
    (checkpoint / "README.md").write_text("Scores.")  # a card is no part of the model
    decoding(config, None)
    assert len(trials) == 1
    decoding(config.overridden({"generate.max_new_tokens": 60}), None)
    assert len(trials) == 2
    (checkpoint / llm).resolve().rename(tmp_path / "moved")
    for _ in range(2):
        with pytest.raises(InputError, match="the checkpoint's language model is not at"):
            decoding(config, None)
    assert decoding(config, str(tmp_path / "moved"))[0].backend == "engine"
    assert len(trials) == 3


def test_a_word_is_said_at_each_start(tiny_llm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llm = Path(shutil.copytree(tiny_llm, tmp_path / "llm"))
    vocabulary = json.loads((llm / "config.json").read_text())["vocab_size"]
    small = {"vocab_size": vocabulary, "hidden_size": 64, "n_layer": 2, "n_head": 4}
    AutoConfig.for_model("bloom", **small, eos_token_id=1, pad_token_id=2).save_pretrained(llm)
    config = small_config(tmp_path / "out", studies="studies", llm=llm)
    for _ in range(2):
        assert with_usable_backend(config).generate.backend == "hf"
        assert "generate.backend=hf is used: the engine cannot write with a Bloom" in capsys.readouterr().err


def test_a_verdict_is_known_to_the_next_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = AutoConfig.for_model("llama", vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    odd = AutoConfig.for_model("gemma2", vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    odd.num_key_value_heads, odd.head_dim = 1, 16
    found = [trial.verdict(shape, 3) for shape in (config, odd)]
    assert found[0] == trial.Verdict() and found[1].engine
    monkeypatch.setattr(trial, "_KNOWN", {})
    real = trial._tried
    monkeypatch.setattr(trial, "_tried", lambda *_: pytest.fail("it was tried again"))
    config._name_or_path = "elsewhere"
    assert [trial.verdict(shape, 3) for shape in (config, odd)] == found
    monkeypatch.setattr(trial, "_tried", lambda *arguments: (trial.Verdict("too little memory"), False))
    for shape, beams in ((config, 1), (config, 1)):
        trial._KNOWN.clear()
        assert trial.verdict(shape, beams).training == "too little memory"
    monkeypatch.setattr(trial, "_tried", real)
    trial._KNOWN.clear()
    assert trial.verdict(config, 1) == trial.Verdict()  # what is not certain was not kept
    for path in (Path(os.environ["MEGPT_CACHE"]) / "remembered").iterdir():
        path.write_text("{}")
    trial._KNOWN.clear()
    assert trial.verdict(odd, 3) == found[1]
