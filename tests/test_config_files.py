"""Configs that are made of several files: found by path or name, one merged over the other.

- A shipped config is found by its name from any folder, with or without `.yaml`; a file of that name goes first; an
  unknown name lists the shipped ones; the same holds for DeepSpeed files.
- Several files are merged in order, the command line last: each setting has the value of the last layer that sets it,
  whatever the others hold (property test against a plain reimplementation).
- `extends` takes a path relative to the file, a shipped name, or a list; a copy of a shipped config finds its base.
- A file that several configs extend is read once, so it never goes over those that came before.
- Circles, a missing base and an `extends` that is no name are refused.
- All of this works in an installed wheel: the files are package data.
"""

from __future__ import annotations

import shutil
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from megpt.config import SHIPPED, Config, TrainConfig, load_config, shipped_names
from megpt.errors import InputError
from megpt.training.deepspeed import deepspeed_file, deepspeed_settings
from ray_jobs.__main__ import main
from ray_jobs.train.job import absolute

ROOT = Path(__file__).resolve().parent.parent
PAPER = (
    "iu_xray_ablation, iu_xray_deep, iu_xray_delta, iu_xray_shallow, iu_xray_short, iu_xray_smollm2, "
    "mimic_cxr_deep, mimic_cxr_delta, mimic_cxr_shallow"
)
NAMES = f"ablation, {PAPER}, phantom"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def refused(config: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_config(config)
    return str(caught.value)


@pytest.mark.parametrize("name", ["phantom", "phantom.yaml", "mimic_cxr_deep"])
def test_a_shipped_config_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "phantom").mkdir()  # a folder of that name is no config
    assert load_config(name) == load_config(SHIPPED / f"{Path(name).stem}.yaml") != Config()


def test_a_file_goes_before_a_shipped_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "phantom", "seed: 7\n")
    assert load_config("phantom") == Config(seed=7)


def test_an_unknown_name_lists_the_shipped_ones(tmp_path: Path) -> None:
    assert ", ".join(shipped_names()) == NAMES
    for name in ("phantm", tmp_path / "phantom.yaml", "common/phantom", "../configs/phantom"):
        assert refused(name) == (
            f"no config at {name}\n"
            "  cause: it is neither a file nor the name of a shipped config\n"
            f"  next:  give the path of a YAML file, or one of {NAMES}"
        )


def test_deepspeed_files_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert deepspeed_file(TrainConfig(zero_stage=3)).name == "zero3.json"
    for name in ("zero1", "zero1.json", str(ROOT / "deepspeed_configs" / "zero1.json")):
        assert deepspeed_settings(TrainConfig(deepspeed=name), world_size=1)["zero_optimization"]["stage"] == 1
    offload = deepspeed_settings(TrainConfig(deepspeed="offload"), world_size=1)
    assert offload["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    write(tmp_path / "offload", '{"zero_optimization": {"stage": 0}}')
    assert deepspeed_file(TrainConfig(deepspeed="offload")) == Path("offload")
    with pytest.raises(InputError) as caught:
        deepspeed_settings(TrainConfig(deepspeed="zero5"), world_size=1)
    assert str(caught.value) == (
        "no DeepSpeed config at zero5\n"
        "  where: train.deepspeed\n"
        "  cause: it is neither a file nor the name of a shipped one\n"
        "  next:  give the path of a JSON file, or one of offload, zero0, zero1, zero2, zero3"
    )


def test_workers_get_the_name_of_a_shipped_file_and_the_path_of_an_own_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "own.json", "{}")
    for name, meant in (("offload", "offload"), ("own.json", str(tmp_path / "own.json")), (None, None)):
        config = Config(output="x", train=TrainConfig(deepspeed=name))
        assert absolute(config).train.deepspeed == meant


def test_package_data_holds_every_file() -> None:
    tree = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = tree["tool"]["setuptools"]["package-data"]["megpt"]
    for folder in ("configs", "deepspeed"):
        for path in (ROOT / "megpt" / folder).rglob("*.*"):
            name = path.relative_to(ROOT / "megpt")
            assert any(fnmatch(str(name), p) and len(name.parts) == len(Path(p).parts) for p in patterns), name


def test_several_files_are_merged_in_order(tmp_path: Path) -> None:
    one = write(tmp_path / "1.yaml", "seed: 1\ntrain: {lr: 0.1, epochs: 3}\nmodel: {vision_args: {a: 1}}\n")
    two = write(tmp_path / "2.yaml", "train: {lr: 0.2}\nmodel: {vision_args: {b: 2}}\ncluster:\n")
    config = load_config([one, two], ["train.epochs=5"])
    assert (config.seed, config.train.lr, config.train.epochs) == (1, 0.2, 5)
    assert config.model.vision_args == {"b": 2}  # a value, not a section: replaced as a whole
    assert load_config([two, one]).train.lr == 0.1
    assert load_config([]) == Config()


def test_the_command_takes_several_configs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = write(tmp_path / "mine.yaml", "train: {lr: 0.2}\n")
    line = ["--config", "phantom", "train.epochs=5", "--config", str(mine), "--print-config"]
    assert main(["train", *line]) == 0
    tree = yaml.safe_load(capsys.readouterr().out)
    assert (tree["train"]["lr"], tree["train"]["epochs"], tree["phantom"]["num_studies"]) == (0.2, 5, 5000)
    assert tree == load_config(["phantom", mine], ["train.epochs=5"]).model_dump(mode="json")


VALUES = {
    "seed": st.integers(0, 9),
    "output": st.sampled_from(["a", "b", None]),
    "train.lr": st.sampled_from([0.1, 0.2]),
    "train.max_steps": st.sampled_from([1, 2, None]),
    "model.fem": st.booleans(),
    "model.vision_args": st.dictionaries(st.sampled_from("xy"), st.integers(0, 2), max_size=2),
}
layers = st.fixed_dictionaries({}, optional=VALUES)


def nested(layer: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in layer.items():
        section, _, name = key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[name] = value
    return tree


@settings(max_examples=60, deadline=None)
@given(files=st.lists(layers, max_size=3), line=layers, extend=st.booleans())
def test_each_setting_has_the_value_of_the_last_layer_that_sets_it(
    tmp_path_factory: pytest.TempPathFactory, files: list[dict[str, Any]], line: dict[str, Any], extend: bool
) -> None:
    folder = tmp_path_factory.mktemp("layers")
    for number, layer in enumerate(files):
        base = {"extends": f"{number - 1}.yaml"} if extend and number else {}
        write(folder / f"{number}.yaml", yaml.safe_dump(base | nested(layer)))
    paths = [folder / f"{number}.yaml" for number in range(len(files))]
    overrides = [f"{key}={yaml.safe_dump(value, default_flow_style=True).strip()}" for key, value in line.items()]
    overrides = [text.removesuffix("...").strip() for text in overrides]
    config = load_config(paths[-1:] if extend else paths, overrides)
    expected: dict[str, Any] = {}
    for layer in (*files, line):
        expected |= layer
    assert config == Config.model_validate(nested(expected))
    assert config.named == tuple(line)


def test_extends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "below").mkdir()
    write(tmp_path / "base.yaml", "seed: 1\ntrain: {lr: 0.1, epochs: 3}\n")
    mine = write(tmp_path / "below" / "mine.yaml", "extends: ../base.yaml\ntrain: {lr: 0.2}\n")
    monkeypatch.chdir(tmp_path.parent)
    config = load_config(mine)
    assert (config.seed, config.train.lr, config.train.epochs) == (1, 0.2, 3)
    both = write(tmp_path / "both.yaml", "extends: [phantom, base.yaml]\nseed: 5\n")
    config = load_config(both)
    assert (config.seed, config.train.lr, config.train.epochs) == (5, 0.1, 3)
    assert config.phantom == load_config("phantom").phantom


def test_a_copy_of_a_shipped_config_finds_its_base(tmp_path: Path) -> None:
    copy = Path(shutil.copy(SHIPPED / "iu_xray_delta.yaml", tmp_path / "mine.yaml"))
    assert load_config(copy) == load_config("iu_xray_delta")


def test_a_file_that_several_extend_is_read_once(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "seed: 1\n")
    one = write(tmp_path / "1.yaml", "extends: base.yaml\nseed: 2\n")
    two = write(tmp_path / "2.yaml", "extends: base.yaml\nlimit: 3\n")
    assert load_config([one, two]) == Config(seed=2, limit=3)


def test_configs_that_extend_each_other(tmp_path: Path) -> None:
    one = write(tmp_path / "1.yaml", "extends: 2.yaml\n")
    write(tmp_path / "2.yaml", "extends: ./1.yaml\n")
    assert refused(one) == (
        f"{tmp_path / '1.yaml'} extends itself\n"
        "  where: 1.yaml → 2.yaml → 1.yaml\n"
        "  next:  delete `extends` from one of these files"
    )
    alone = write(tmp_path / "3.yaml", "extends: 3.yaml\n")
    assert "where: 3.yaml → 3.yaml" in refused(alone)


def test_a_base_that_does_not_exist(tmp_path: Path) -> None:
    file = write(tmp_path / "1.yaml", "extends: bas.yaml\n")
    assert refused(file) == (
        f"{file} extends 'bas.yaml', which does not exist\n"
        f"  where: neither {tmp_path / 'bas.yaml'} nor a shipped config\n"
        f"  next:  give a path relative to 1.yaml, or one of {NAMES}"
    )


@pytest.mark.parametrize("value", ["3", "[1]", "{a: b}"])
def test_what_extends_cannot_be(tmp_path: Path, value: str) -> None:
    file = write(tmp_path / "1.yaml", f"extends: {value}\n")
    assert refused(file).startswith(f"extends = {yaml.safe_load(value)!r}: it names a config, or a list of them\n")


def test_an_error_names_the_file_that_holds_the_value(tmp_path: Path) -> None:
    base = write(tmp_path / "base.yaml", "train: {lr: -1}\n")
    mine = write(tmp_path / "mine.yaml", "extends: base.yaml\nseed: 1\n")
    assert f"where: {base}" in refused(mine)
    assert f"where: {base}" in refused([base, write(tmp_path / "b.yaml", "seed: 2\n")])
    write(mine, "extends: base.yaml\ntrain: {lr: -2}\n")
    assert refused(mine).startswith("train.lr = -2") and f"where: {mine}" in refused(mine)
