"""Training reports of an evaluation.

- those of `training` come first, then the training split of `studies`, then that of an annotation given as references
- a file with splits gives its training split, one without gives all; what was taken is said; none at all is an error
- nothing is read where nothing needs them
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megpt.config import Config, load_config
from megpt.data.studies import write_studies
from megpt.errors import InputError
from megpt.evaluation.reading.training import find_training
from megpt.study import Study


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lists = {split: [{"id": f"{split}{i}", "report": f"{split} {i}"} for i in range(2)] for split in ("train", "test")}
    (tmp_path / "annotation.json").write_text(json.dumps(lists))
    (tmp_path / "texts.csv").write_text("split,report\ntest,a\n,b\n,\n")
    (tmp_path / "split.csv").write_text("split,report\ntest,a\ntrain,b\ntrain, . \n")
    (tmp_path / "empty.csv").write_text("split,report\ntrain,\n")
    write_studies(tmp_path / "studies", "train", [Study("t", report="of studies", findings="its findings")], 0)
    write_studies(tmp_path / "tested", "test", [Study("s", report="tested")], 0)
    return tmp_path


def config(folder: Path, *keys: str, **more: str) -> Config:
    return load_config(None, [*keys, *(f"{name}={folder / path}" for name, path in more.items())])


@pytest.mark.parametrize(
    "inputs, texts",
    [
        ({"training": "annotation.json", "studies": "studies"}, ["train 0", "train 1"]),
        ({"studies": "studies", "references": "annotation.json"}, ["of studies"]),
        ({"references": "annotation.json"}, ["train 0", "train 1"]),
        ({"training": "studies"}, ["of studies"]),
        ({"training": "texts.csv", "references": "annotation.json"}, ["a", "b"]),
        ({"training": "texts.csv"}, ["a", "b"]),
        ({"training": "split.csv"}, ["b"]),
        ({"references": "texts.csv"}, None),
        ({"studies": "tested"}, None),
        ({}, None),
    ],
)
def test_which_reports(folder: Path, inputs: dict[str, str], texts: list[str] | None) -> None:
    assert find_training(config(folder, **inputs))[0] == texts


def test_what_is_said(folder: Path) -> None:
    (said,) = find_training(config(folder, training="split.csv"))[1]
    assert said == "training: split.csv, CSV, commas, utf-8; id: none, text: report; 1 reports, split train"
    assert find_training(config(folder, "data.section=findings", training="studies"))[0] == ["its findings"]
    with pytest.raises(InputError, match="holds no training report"):
        find_training(config(folder, training="empty.csv"))
    with pytest.raises(InputError, match="no file at"):
        find_training(config(folder, training="nowhere.csv"))


def test_nothing_is_read_where_nothing_needs_it(folder: Path) -> None:
    off = "evaluate.baselines=false"
    assert find_training(config(folder, off, training="nowhere.csv")) == (None, [])
    assert find_training(config(folder, off, "data.cleaner=none+unk3", training="texts.csv"))[0] == ["a", "b"]
