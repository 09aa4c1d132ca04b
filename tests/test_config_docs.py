"""The texts that are made from the declarations of the settings.

- Every setting has a sentence, and it reaches the help of each job that reads the setting.
- docs/config.md and the JSON schema are what `python -m ray_jobs.docs` would write now.
- The table names each setting once, with the jobs that read it and whether it changes their result.
- The schema accepts every shipped config, their common parts and the resolved config, and refuses what load_config
  refuses: unknown keys, values out of range or of another type. Every shipped file tells editors where it is.
- The version stands in one place.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import megpt
from megpt.config import SHIPPED, Config, help_text, json_schema
from megpt.config.run import SETTINGS
from ray_jobs.docs import PAGE, SCHEMA, config_page, job_reads, schema_text

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(SHIPPED.rglob("*.yaml"))
COMMAND = "python -m ray_jobs.docs"


@pytest.mark.parametrize("leaf", SETTINGS, ids=lambda leaf: leaf.key)
def test_every_setting_has_a_sentence(leaf: Any) -> None:
    sentence = leaf.sentence
    assert len(sentence) > 12 and (sentence[0] in "`λ" or sentence[0].isupper())
    assert sentence.endswith(".") and "\n" not in sentence
    # A key as its own explanation explains nothing.
    assert sentence.rstrip(".").lower() != leaf.key.rpartition(".")[2].replace("_", " ")


def test_sentences_differ() -> None:
    # The same sentence may stand at a setting of another section; in one section it would be a copy.
    seen = [(leaf.key.rpartition(".")[0], leaf.sentence) for leaf in SETTINGS]
    assert len(set(seen)) == len(seen)


def test_the_page_is_true() -> None:
    assert PAGE.read_text(encoding="utf-8") == config_page(job_reads()), f"run {COMMAND}"


def test_the_schema_is_true() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == schema_text(), f"run {COMMAND}"


def test_the_page_says_who_reads_and_whether_it_matters() -> None:
    page = config_page({"train": ("train", "source"), "generate": ("source", "train.lr"), "status": ()})
    rows = {line.split(" | ")[0].strip("| `"): line for line in page.splitlines() if line.startswith("| `")}
    assert len(rows) == len(SETTINGS) and set(rows) == {leaf.key for leaf in SETTINGS}
    assert rows["train.lr"] == ("| `train.lr` | number | `0.0001` | > 0 | all | yes | Peak learning rate of AdamW. |")
    assert rows["train.log_every"] == (
        "| `train.log_every` | integer | `10` | > 0 | train | no | Steps between log lines. |"
    )
    assert "| text or null | `null` |  | all | by contents |" in rows["source"]
    assert "| list of 2 × number | `[0.9, 0.999]` | ≥ 0 and < 1 | train | yes |" in rows["train.betas"]
    assert "| one of | `shallow` | shallow, delta, deep |" in rows["model.mode"]
    assert "| 50 to 100 |" in rows["prepare.jpeg_quality"]
    assert "| true or false | `true` |  |" in rows["model.fem"]


def test_help_lists_what_a_job_reads() -> None:
    assert help_text(("data.section", "limit")) == (
        "  limit: integer > 0 or null; default null\n"
        "      Use the first N studies only (`--limit N`).\n"
        "  data.section: one of report, findings, impression; default report\n"
        "      The part of a report that is learnt and scored."
    )
    for job, reads in job_reads().items():
        text = help_text(reads)
        for leaf in SETTINGS:
            read = any(leaf.key == name or leaf.key.startswith(f"{name}.") for name in reads)
            assert (f"  {leaf.key}: " in text) == read, (job, leaf.key)
            assert not read or leaf.sentence in text


def problems(tree: Any) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(json_schema()).iter_errors(tree)]


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_schema_accepts_what_is_shipped(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert problems(yaml.safe_load(text)) == []
    first = re.fullmatch(r"# yaml-language-server: \$schema=(.+)", text.splitlines()[0])
    assert first and (path.parent / first[1]).resolve() == SCHEMA.resolve()


def test_the_schema_accepts_and_refuses_as_the_config_does() -> None:
    assert problems(Config().model_dump(mode="json")) == []
    assert problems({"train": None, "extends": ["a", "b"], "cluster": {"num_workers": [1, 4]}}) == []
    for tree in (
        {"train": {"lrr": 1}},
        {"sed": 1},
        {"train": {"lr": -1}},
        {"train": 5},
        {"limit": 0},
        {"model": {"mode": "shalow"}},
        {"cluster": {"num_workers": [1]}},
        {"train": {"betas": [0.9, 1.0]}},
        {"extends": 1},
    ):
        assert problems(tree), tree


def test_the_schema_holds_each_sentence() -> None:
    text = json.dumps(json_schema(), ensure_ascii=False)
    for leaf in SETTINGS:
        assert json.dumps(leaf.field.description, ensure_ascii=False) in text


def test_the_version_stands_in_one_place() -> None:
    tree = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in tree["project"] and "version" in tree["project"]["dynamic"]
    assert tree["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "megpt.__version__"}
    for path in [*(ROOT / "deploy").glob("*.yaml"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]:
        for tag in re.findall(r"\bmegpt:(\d+\.\d+\.\d+)", path.read_text(encoding="utf-8")):
            assert tag == megpt.__version__, path
