"""Fingerprints of checkpoint folders.

- Every file that a load reads counts, every field of config.json, and every value of the processor's and tokenizer's
  files; the exceptions are listed with a reason, and each of them is tested here.
- The prompts, the centroids and each weight count, also a frozen weight in a full checkpoint.
- Neither the number of shards matters, nor whether frozen parts are held or named.
- It needs no torch; damage is refused by name.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import MakeModel

from megpt.errors import InputError
from megpt.model import fingerprint
from megpt.model.checkpoint.fingerprint import IGNORED_FIELDS, IGNORED_FILES

FILES = ("config.json", "processor_config.json", "tokenizer_config.json", "generation_config.json")
SLOW_CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON tree that is no list and no object, or an empty one."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [leaf for key, inner in entries for leaf in leaves(inner, (*path, key))]
    yield from found or [path]


def edited(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of a JSON tree with one value replaced."""
    copy = json.loads(json.dumps(tree))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copy


def other(value: Any) -> Any:
    """A value of the same type, near the given one."""
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int | float) else f"{value}x" if isinstance(value, str) else "other"


def ignored(path: tuple[Any, ...]) -> bool:
    """Whether `IGNORED_FIELDS` names the path; written out, so that a wider pattern fails."""
    if path[0] == "frozen":
        return path[2] == "source"
    return path in {
        ("transformers_version",),
        ("complete",),
        ("checkpoint_format",),
        ("llm",),
        ("vision_weights",),
        ("text_config", "_name_or_path"),
    }


@pytest.fixture(scope="module")
def folder(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A partial checkpoint with both adapters, both frozen parts and prompts."""
    path = tmp_path_factory.mktemp("checkpoint")
    first, _ = make_model("vit")
    weights = path.parent / "vit.safetensors"
    save_file(first.vision.trunk.state_dict(), weights)
    model, processor = make_model("vit", mode="delta", llm_lora=True, vision_weights=str(weights))
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.mark.parametrize("name", FILES)
def test_every_value_counts(folder: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    before, tree = fingerprint(copy), json.loads((folder / name).read_text())
    assert fingerprint(folder) == before
    paths = list(leaves(tree))
    assert len(paths) > 4
    for path in paths:
        value = tree
        for key in path:
            value = value[key]
        (copy / name).write_text(json.dumps(edited(tree, path, other(value))))
        assert (fingerprint(copy) == before) == ignored(path), path
    for key in tree:
        (copy / name).write_text(json.dumps({k: v for k, v in tree.items() if k != key}))
        if name != "config.json" or key != "frozen":  # without it nothing can be loaded
            assert (fingerprint(copy) == before) == ignored((key, "", "")[: 3 if key == "frozen" else 1]), key


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=25, deadline=None, suppress_health_check=SLOW_CHECKS)
@given(key=st.text(min_size=1, max_size=12), value=VALUES, name=st.sampled_from(FILES))
def test_unknown_fields_count(folder: Path, key: str, value: Any, name: str) -> None:
    """A field that this version does not know may be one that the next reads."""
    tree = json.loads((folder / name).read_text())
    before, text = fingerprint(folder), (folder / name).read_text()
    try:
        (folder / name).write_text(json.dumps({**tree, key: value}))
        changed = key not in tree or tree[key] != value
        if not ignored((key, "", "source")[: 3 if key == "frozen" else 1]) and key != "frozen" and changed:
            assert fingerprint(folder) != before
    finally:
        (folder / name).write_text(text)


def test_every_file_counts(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    before = fingerprint(copy)
    read = {p for p in copy.rglob("*") if p.is_file() and p.name not in IGNORED_FILES} | {
        copy / "config.json",
        copy / "generation_config.json",
        copy / "prompts.yaml",
    }
    names = {p.relative_to(copy).as_posix() for p in read}
    assert {"tokenizer.json", "processor_config.json", "adapter_vision/adapter_model.safetensors"} <= names
    for path in sorted(read):
        content = path.read_bytes()
        if path.name == "adapter_config.json":  # peft's record of how the adapter was made; no load reads it
            continue
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            first = next(iter(tensors))
            save_file(tensors | {first: tensors[first] + 1e-3}, path)
        elif path.name == "prompts.yaml":
            tree = yaml.safe_load(content)
            tree["prompts"][1]["text"] += "!"
            path.write_text(yaml.safe_dump(tree))
        else:
            path.write_text(json.dumps({**json.loads(content), "new": 1}))
        assert fingerprint(copy) != before, path.name
        path.write_bytes(content)
        assert fingerprint(copy) == before
    for name in ("chat_template.jinja", "merges.txt", "added_tokens.json", "unheard_of"):
        (copy / name).write_text("a")
        assert fingerprint(copy) != before, name
        (copy / name).unlink()


def test_what_no_load_reads_does_not_count(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    before = fingerprint(copy)
    assert all(reason for reason in (*IGNORED_FIELDS.values(), *IGNORED_FILES.values()))
    for name in ("README.md", "megpt.yaml", "run.json", "_SUCCESS", "failed.parquet", "log.jsonl", ".lock"):
        (copy / name).write_text("changed")
    (copy / "steps" / "step-1").mkdir(parents=True)
    (copy / "steps" / "step-1" / "state.safetensors").write_bytes(b"x")
    text = (copy / "prompts.yaml").read_text()
    (copy / "prompts.yaml").write_text("# A comment of a reader.\n" + text)
    assert fingerprint(copy) == before


def test_shards_and_held_parts_do_not_matter(make_model: MakeModel, tmp_path: Path) -> None:
    weights = tmp_path / "vit.safetensors"
    save_file(make_model("vit")[0].vision.trunk.state_dict(), weights)
    for mode in ("shallow", "delta", "deep"):
        model, processor = make_model("vit", mode=mode, vision_weights=str(weights))
        if mode == "deep":
            torch.nn.init.normal_(model.vision.trunk.norm.bias)
        found = set()
        for name, options in {"part": {}, "full": {"full": True}}.items():
            for shards in ({}, {"max_shard_size": "200KB"}):
                path = tmp_path / f"{mode}-{name}-{len(shards)}"
                model.save_pretrained(path, **options, **shards)
                processor.save_pretrained(path)
                found.add(fingerprint(path))
        assert len(found) == 1, mode


def test_a_frozen_weight_of_a_full_checkpoint_counts(make_model: MakeModel, tmp_path: Path) -> None:
    model, _ = make_model("vit")
    model.save_pretrained(tmp_path, full=True)
    before, tensors = fingerprint(tmp_path), load_file(tmp_path / "model.safetensors")
    for part in ("language_model", "vision", "projector"):
        name = next(name for name in tensors if name.startswith(part))
        save_file(tensors | {name: tensors[name] + 1e-4}, tmp_path / "model.safetensors")
        assert fingerprint(tmp_path) != before, name


def test_feature_modules_count(make_model: MakeModel, tmp_path: Path) -> None:
    """Where a module works, and which there are, also with one set of weights."""
    found = set()
    for number, settings_of_module in enumerate(
        ({}, {"fem": False}, {"doconv": False}, {"fem_domain": "token"}, {"views": "concat"}, {"fem_norm": "batch"})
    ):
        model, _ = make_model("vit", **settings_of_module)
        model.save_pretrained(tmp_path / str(number))
        if number:
            shutil.copy(tmp_path / "0" / "model.safetensors", tmp_path / str(number))
        found.add(fingerprint(tmp_path / str(number)))
    assert len(found) == 6


def test_a_folder_is_named_without_torch(tiny_checkpoint: Path) -> None:
    """A job's command that only starts actors would spend most of its time on the import."""
    program = f"""
import sys
from megpt.model import fingerprint
print(fingerprint({str(tiny_checkpoint)!r}))
assert not {{"torch", "transformers"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == (fingerprint(tiny_checkpoint), "")


def test_damage_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_checkpoint, folder)
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for data in (whole[:-1], whole[:5], b"", b"\xff" * len(whole)):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"^the weights in .* cannot be read\n  cause: \w+: a file is missing or "):
            fingerprint(folder)
    path.unlink()
    with pytest.raises(InputError, match="cause: FileNotFoundError: a file is missing"):
        fingerprint(folder)
    path.write_bytes(whole)
    config = (folder / "config.json").read_text()
    for text in ("[]", "null", '{"frozen": "x"}', '{"frozen": {"vision": 1}, "mode": "deep"}', "{}", "{"):
        (folder / "config.json").write_text(text)
        with pytest.raises(InputError, match=r"config\.json cannot be read\n  cause: \w+: a file is missing or "):
            fingerprint(folder)
    (folder / "config.json").write_text(config)
    assert fingerprint(folder) == fingerprint(tiny_checkpoint)
    for text in ("[]", '{"weight_map": []}', "{}"):
        (folder / "model.safetensors.index.json").write_text(text)
        with pytest.raises(InputError, match=r"^the weights in .* cannot be read"):
            fingerprint(folder)
    with pytest.raises(InputError, match="it has no config"):
        fingerprint(tmp_path / "nowhere")
