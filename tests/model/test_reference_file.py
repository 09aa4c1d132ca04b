"""Reading reference checkpoints without trusting them.

- tensors, epoch, step and the plain hyper-parameters come out of argparse and Lightning settings alike
- a pickle that names Python's own functions (os, eval, subprocess, getattr) is refused, and nothing of it runs
- a call of any other function in the file does nothing; the tensors are still read
- a missing, cut, empty, foreign or tensorless file is one clear error
"""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
import types
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from megpt.errors import InputError
from megpt.model.reference.file import read_reference


class Call:
    """Pickles as a call of a function, which a plain unpickler would make."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.fixture
def attribute_dict(monkeypatch: pytest.MonkeyPatch) -> type:
    """Lightning's settings class, as far as a pickle can tell."""
    name = "lightning.fabric.utilities.data"
    cls = type("AttributeDict", (dict,), {"__module__": name})
    module = types.ModuleType(name)
    module.AttributeDict = cls
    for part in ("lightning", "lightning.fabric", "lightning.fabric.utilities"):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setitem(sys.modules, name, module)
    return cls


def save(path: Path, config: object = None, **other: object) -> Path:
    tree = {"model": OrderedDict(a=torch.arange(3.0)), "config": config, "epoch": 4, "step": 99}
    torch.save({**tree, **other}, path)
    return path


def test_argparse_settings(tmp_path: Path):
    settings = argparse.Namespace(vis_r=8, vis_use_lora=True, llama_model="x", weights=[0.5], nothing=None)
    read = read_reference(save(tmp_path / "a.pth", settings))
    assert torch.equal(read.tensors["a"], torch.arange(3.0))
    assert read.settings == {"vis_r": 8, "vis_use_lora": True, "llama_model": "x"}
    assert (read.epoch, read.step, read.inert) == (4, 99, ("argparse.Namespace",))


def test_lightning_settings(tmp_path: Path, attribute_dict: type):
    path = save(tmp_path / "a.pth", attribute_dict(vis_alpha=32, save=Path("x")))
    read = read_reference(path)
    assert read.settings == {"vis_alpha": 32}
    assert "lightning.fabric.utilities.data.AttributeDict" in read.inert


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (os.system, ("touch {}",)),
        (eval, ("open('{}', 'w')",)),
        (exec, ("open('{}', 'w')",)),
        (subprocess.check_call, (["touch", "{}"],)),
        (getattr, ("{}", "upper")),
        (__import__, ("os",)),
    ],
)
def test_python_functions_are_refused_unrun(tmp_path: Path, function, arguments):
    mark = tmp_path / "ran"
    filled = [[w.format(mark) for w in a] if isinstance(a, list) else a.format(mark) for a in arguments]
    for place in ("config", "model", "epoch"):
        path = save(tmp_path / "evil.pth", **{place: Call(function, *filled)})
        with pytest.raises(InputError, match="refused"):
            read_reference(path)
        assert not mark.exists()
    # The same pickle does its work in an ordinary reader: the test would notice if ours ran it.
    if function is os.system:
        torch.load(path, weights_only=False)
        assert mark.exists()


def test_other_functions_do_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    called = []
    module = types.ModuleType("innocent_looking")
    module.helper = lambda *arguments: called.append(arguments)
    module.helper.__module__, module.helper.__qualname__ = "innocent_looking", "helper"
    monkeypatch.setitem(sys.modules, "innocent_looking", module)
    read = read_reference(save(tmp_path / "a.pth", Call(module.helper, "x")))
    assert not called
    assert read.inert == ("innocent_looking.helper",)
    assert list(read.tensors) == ["a"]


def test_files_that_are_no_checkpoint(tmp_path: Path):
    whole = save(tmp_path / "whole.pth")
    cases = {
        "absent.pth": None,
        "cut.pth": whole.read_bytes()[: whole.stat().st_size // 2],
        "empty.pth": b"",
        "text.pth": b"hello",
        "plain.pth": pickle.dumps({"model": Call(os.system, f"touch {tmp_path}/ran")}),
    }
    for name, data in cases.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=name):
            read_reference(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("tree", [{"weights": {}}, {"model": {}}, {"model": {"a": 1}}, [torch.ones(2)]])
def test_layouts_without_tensors(tmp_path: Path, tree: object):
    torch.save(tree, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"no `model`|no tensors|not a checkpoint"):
        read_reference(tmp_path / "a.pth")
