"""Code that comes with a model is never run, and nobody is asked whether it may.

- every call that could run it says `trust_remote_code=False`
- a language model and an encoder with code of their own are refused in one screen
"""

from __future__ import annotations

import ast
import builtins
import json
from pathlib import Path

import pytest

import megpt
import megpt_pacs
import ray_jobs
from megpt.errors import InputError
from megpt.model.source import language_config
from megpt.model.trunks import _of_transformers

ROOTS = [Path(str(package.__file__)).parent for package in (megpt, megpt_pacs, ray_jobs)]
LOADING = ("from_pretrained", "from_config", "pipeline", "load_dataset")
OWN = ("MeGPTForConditionalGeneration", "MeGPTProcessor", "MeGPTConfig", "GenerationConfig", "Decoding")
"""Classes that load no code, or whose own call says so."""


def calls() -> list[tuple[str, ast.Call]]:
    found = []
    for path in (path for root in ROOTS for path in sorted(root.rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOADING:
                owner = ast.unparse(node.func.value)
                if owner not in OWN and not owner.startswith("super"):
                    found.append((f"{path.name}:{node.lineno}: {owner}.{node.func.attr}", node))
    return found


def test_every_call_says_so() -> None:
    assert len(calls()) >= 16
    for where, call in calls():
        said = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert said.get("trust_remote_code") == "False", where


@pytest.fixture
def with_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's folder whose config names a class in a file beside it."""

    def asked(*_: object) -> str:
        raise AssertionError("somebody is asked")

    monkeypatch.setattr(builtins, "input", asked)
    folder = tmp_path / "model"
    folder.mkdir()
    names = {name: f"code.{name}" for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoImageProcessor")}
    (folder / "config.json").write_text(json.dumps({"model_type": "its_own", "auto_map": names}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"auto_map": names}))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nraise SystemExit\n")
    yield folder
    assert not (tmp_path / "ran").exists()


def test_a_language_model_with_code(with_code: Path) -> None:
    with pytest.raises(InputError, match="model"):
        language_config(str(with_code))


def test_an_encoder_with_code(with_code: Path) -> None:
    with pytest.raises(InputError, match=r"model\.vision = .* cannot be loaded"):
        _of_transformers(str(with_code), pretrained=True)
