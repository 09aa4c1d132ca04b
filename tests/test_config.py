"""Every setting, once: YAML and dotted overrides, checked before anything runs.

- Defaults load; an override beats the file; values are read as YAML, and 3e-4 is a number.
- An unknown key names the nearest known ones: by spelling, by initials (learning_rate → lr), by a left-out word
  (batch_size → global_batch_size), by section; where nothing is near, the section's own keys.
- A value out of range or of the wrong type names its field, its value and its file; so do pairs that contradict.
- A missing file, a folder, no YAML, a list, binary data: one error each, with the file's name.
- An empty section is an empty section; a section set to a value lists its keys.
- A setting that takes text takes it literally (a date, a number, a path with `#`); a date that no calendar has, or a
  key that appears twice in a file, is refused.
- A range error ends with what the setting takes and what it means; a rule between two settings names both values.
- A mapping for a section is merged into it, in a file, on the command line and in `overridden`.
- Any override that is printed in the resolved config comes back the same; the resolved config loads to itself.
- `difference` is empty exactly when two trees are equal, and names each leaf that differs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from megpt.config import KNOWN_KEYS, Config, load_config
from megpt.errors import InputError, did_you_mean
from megpt.settings import difference


def refused(*overrides: str, path: Path | None = None) -> str:
    with pytest.raises(InputError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_overrides_beat_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("seed: 7\ntrain:\n  lr: 0.5\n  epochs: 3\n")
    config = load_config(file, ["train.lr=3e-4", "cluster.num_workers=[1, 4]", "output=runs/x", "train.deepspeed=a=b"])
    assert (config.seed, config.train.lr, config.train.epochs) == (7, 3e-4, 3)
    assert (config.cluster.min_workers, config.cluster.max_workers) == (1, 4)
    assert (config.output, config.train.deepspeed) == ("runs/x", "a=b")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("train.lrr", "train.lr"),
        ("train.learning_rate", "train.lr"),
        ("trian.lr", "train.lr"),
        ("train.batch_size", "train.global_batch_size"),
        ("cluster.gpus", "cluster.gpus_per_worker"),
        ("num_workers", "cluster.num_workers"),
        ("generate.beams", "generate.num_beams"),
        ("outptu", "output"),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, meant: str) -> None:
    text = refused(f"{key}=1")
    assert text.startswith(f"unknown key {key!r}\n  where: the command line\n  next:  did you mean {meant}")


def test_the_text_of_an_unknown_key(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("train:\n  learning_rate: 0.1\n")
    assert refused(path=file) == (
        f"unknown key 'train.learning_rate'\n  where: {file}\n  next:  did you mean train.lr?"
    )


def test_where_nothing_is_near_the_section_is_listed() -> None:
    text = refused("cluster.xyzzy=1")
    assert text.endswith(
        "known names: cluster.cpus_per_worker, cluster.gpus_per_worker, cluster.hang_s, cluster.num_workers, "
        "cluster.on_bad_node, cluster.ray, cluster.wait_s"
    )


@pytest.mark.parametrize("name", ["", ".", "a.", ".b", "a..b", "_", "x" * 300])
def test_hints_for_any_name(name: str) -> None:
    assert did_you_mean(name, KNOWN_KEYS).startswith(("did you mean", "known names:"))


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("limit=0", "limit = 0: Input should be greater than 0"),
        ("train.lr=-1", "train.lr = -1: Input should be greater than 0"),
        ("train.lr=fast", "train.lr = 'fast': Input should be a valid number"),
        ("train.lr=", "train.lr = None: Input should be a valid number"),
        ("train.zero_stage=4", "train.zero_stage = 4: Input should be 0, 1, 2 or 3"),
        ("model.mode=shalow", "model.mode = 'shalow': Input should be 'shallow', 'delta' or 'deep'"),
        ("cluster.gpus_per_worker=-1", "cluster.gpus_per_worker = -1: Input should be greater than or equal to 0"),
        ("generate.max_failed_fraction=1.5", "generate.max_failed_fraction = 1.5: Input should be less than or equal"),
    ],
)
def test_a_value_out_of_range_names_its_field(override: str, text: str) -> None:
    assert refused(override).startswith(text)


def test_a_range_error_says_what_the_setting_takes_and_means(tmp_path: Path) -> None:
    assert refused("train.lr=-1") == (
        "train.lr = -1: Input should be greater than 0\n"
        "  where: the command line\n"
        "  next:  train.lr takes number > 0. Peak learning rate of AdamW."
    )
    assert refused("fit_prompts.num_clusters=0").endswith(
        "next:  fit_prompts.num_clusters takes integer > 0 or the word silhouette. "
        "Number of image clusters K, or `silhouette` to choose it from `candidates`."
    )
    file = tmp_path / "a.yaml"
    file.write_text("model: {mode: shalow}\n")
    assert refused("train.lr=1", path=file) == (
        "model.mode = 'shalow': Input should be 'shallow', 'delta' or 'deep'\n"
        f"  where: {file}\n"
        "  next:  model.mode takes one of shallow, delta, deep. "
        "What is trained of the encoder: nothing, LoRA on query and value, or all of it."
    )


def test_the_error_names_the_place_of_the_value_and_not_of_others(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("seed: 1\n")
    assert "where: the command line" in refused("train.lr=-1", path=file)
    assert "where: the command line" in refused("train.lrr=1", path=file)
    file.write_text("train: {lr: -1}\n")
    assert f"where: {file}" in refused("seed=1", "train.epochs=2", path=file)


def test_values_that_contradict() -> None:
    assert refused("cluster.num_workers=[4, 2]").startswith("cluster: num_workers: [min, max] needs min ≤ max\n")
    assert refused("generate.min_new_tokens=500") == (
        "generate: min_new_tokens must not exceed max_new_tokens (500 > 100)\n  where: the command line"
    )
    assert refused("generate.do_sample=true").startswith("generate: do_sample needs num_beams: 1 (it is 3)\n")


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_numbers_are_finite(value: str) -> None:
    assert "should be a finite number" in refused(f"generate.length_penalty={value}")


@pytest.mark.parametrize("text", ["2026-11-26", "1e5", "7", "a #b", "#b", "[a", "a: b", "off", "café"])
def test_text_is_taken_literally(text: str) -> None:
    assert load_config(None, [f"output={text}"]).output == text
    assert load_config(None, [f"output='{text}'"]).output == text


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_any_text_is_taken_literally(text: str) -> None:
    text = text.strip()
    if text[:1] not in ("'", '"'):
        value = None if text in ("", "~", "null", "Null", "NULL") else text
        assert load_config(None, [f"data.reports={text}"]).data.reports == value


@pytest.mark.parametrize("text", ["", "~", "null", " "])
def test_nothing_unsets_a_path(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("source: x\n")
    assert load_config(file, [f"source={text}"]).source is None


def test_the_value_of_an_override_is_yaml_elsewhere() -> None:
    config = load_config(None, ["train.betas=[9e-1, 1e-3]", "model.vision_args={drop: 1e-3}", "model.fem=no"])
    assert (config.train.betas, config.model.vision_args, config.model.fem) == ((0.9, 1e-3), {"drop": 1e-3}, False)
    assert load_config(None, ["model.vision_args.depths=[2, 2]"]).model.vision_args == {"depths": [2, 2]}
    assert refused("train.lr=2026-13-40").startswith("train.lr = '2026-13-40': Input should be a valid number")


def test_a_key_that_appears_twice_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("train:\n  lr: 1\nseed: 2\ntrain:\n  epochs: 3\n")
    assert refused(path=file) == (
        f"{file} cannot be read as YAML\n  cause: the key 'train' appears twice, the second time in line 4"
    )
    file.write_text("base: &b {lr: 1}\ntrain: {<<: *b, lr: 2}\n")
    assert refused(path=file).startswith("unknown key 'base.lr'")  # an anchor may be overridden; it is not a repeat


def test_a_mapping_is_merged_into_its_section(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("model: {mode: deep, fem_norm: batch}\n")
    config = load_config(file, ["model={fem: false}"])
    assert (config.model.mode, config.model.fem_norm, config.model.fem) == ("deep", "batch", False)
    changed = config.overridden({"model": {"doconv": False}})
    assert (changed.model.mode, changed.model.fem, changed.model.doconv) == ("deep", False, False)
    assert config.model.doconv
    changes = {"model": {"vision_args": {"a": 1}}, "model.vision_args.b": 2}
    assert config.overridden(changes).model.vision_args == {"a": 1, "b": 2}
    assert changes["model"] == {"vision_args": {"a": 1}}


def test_a_copy_knows_which_settings_were_given() -> None:
    config = load_config(None, ["model.fem=false"])
    assert config.overridden({"seed": 1}).updated(output="x").model.model_fields_set == {"fem"}


def test_a_section_is_not_a_value() -> None:
    text = refused("cluster=5")
    assert text.startswith("cluster = 5: cluster is a section, not a value")
    assert "cluster.num_workers" in text


@pytest.mark.parametrize("override", ["train.lr", "=5", "", "--x"])
def test_what_is_no_override(override: str) -> None:
    assert refused(override) == f"cannot read {override!r}\n  cause: an override is section.key=value"


@pytest.mark.parametrize(
    "content", [b"a: [1", b"\x00\xff\xfe", b"a: b: c", b"%", b"\t- x", b"a: 2026-13-40", b"[" * 5000]
)
def test_what_is_no_yaml(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(content)
    text = refused(path=file)
    assert text.startswith(f"{file} cannot be read as YAML") and len(text.splitlines()) <= 4


def test_other_files_that_are_no_config(tmp_path: Path) -> None:
    assert refused(path=tmp_path).startswith(f"{tmp_path} cannot be read as YAML")
    file = tmp_path / "list.yaml"
    file.write_text("- a\n")
    assert refused(path=file).startswith(f"{file} holds list, not a mapping")
    assert refused(path=tmp_path / "no.yaml").startswith(f"no config at {tmp_path / 'no.yaml'}")


def test_empty_file_and_empty_section(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("")
    assert load_config(file) == Config()
    file.write_text("train:\ncluster:\n")
    assert load_config(file, ["train.lr=1"]).train.lr == 1
    assert load_config(file).cluster == Config().cluster


def test_a_missing_input_names_its_key() -> None:
    with pytest.raises(InputError) as caught:
        Config().require("seed", "checkpoint")
    assert str(caught.value).startswith("`checkpoint` is not set")
    assert "add checkpoint=PATH to the command" in str(caught.value)


def test_the_resolved_config_loads_to_itself(tmp_path: Path) -> None:
    config = load_config(None, ["ablate.variants={no-fem: {model.fem: false}}", "fit_prompts.candidates=[2, 3]"])
    file = tmp_path / "a.yaml"
    file.write_text(config.to_yaml())
    assert load_config(file) == config
    assert config.overridden({"model.fem": False}).model.fem is False
    with pytest.raises(InputError, match="unknown key"):
        config.overridden({"model.femm": False})


@settings(max_examples=30, deadline=None)
@given(lr=st.floats(min_value=1e-12, max_value=1e6), steps=st.integers(1, 10**9), workers=st.integers(1, 10**5))
def test_numbers_survive_an_override(lr: float, steps: int, workers: int) -> None:
    config = load_config(None, [f"train.lr={lr}", f"train.max_steps={steps}", f"cluster.num_workers=[1, {workers}]"])
    assert (config.train.lr, config.train.max_steps, config.cluster.max_workers) == (lr, steps, workers)
    assert Config.model_validate(yaml.safe_load(config.to_yaml())) == config


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_override_is_taken_or_refused_as_input(text: str) -> None:
    for override in (text, f"output={text}", f"{text}=1", f"train.{text}", f"train.lr={text}"):
        try:
            load_config(None, [override])
        except InputError as error:
            assert error.exit_code == 2 and str(error)


trees = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text("ab", max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
    max_leaves=8,
)
mappings = st.dictionaries(st.sampled_from("xyz"), trees, max_size=3)


def without_empty_keys(tree: Any) -> Any:
    """A key that is null is the same as one that is not there."""
    if isinstance(tree, dict):
        return {key: without_empty_keys(value) for key, value in tree.items() if value is not None}
    return tree


@settings(deadline=None)
@given(mappings, mappings)
def test_difference_is_empty_exactly_for_equal_trees(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert difference(one, one) == []
    assert (difference(one, two) == []) == (without_empty_keys(one) == without_empty_keys(two))
    assert len(difference(one, two)) == len(difference(two, one))


def test_difference_names_the_leaf() -> None:
    assert difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 3, "c": 2}, "d": "x"}) == ["a.b: 1 → 3", "d: None → 'x'"]
