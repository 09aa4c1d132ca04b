"""The figures of `evaluate` in a checkpoint's model card.

- reports that the checkpoint wrote: table and metadata, under the name of the data
- another checkpoint's reports, unknown ones, a hub id, a limit, no card, no scores: the card stays, a line says why
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from megpt.config import load_config
from megpt.model import fingerprint
from ray_jobs.model_card import into_card

METRICS: dict[str, Any] = {"n": 5, "scores": {"BLEU_4": 0.25}, "cleaner": "none"}


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def test_figures_of_its_own_reports(folder: Path) -> None:
    mark = fingerprint(folder)
    config = load_config(None, [f"checkpoint={folder}", "evaluate.dataset=IU X-Ray"])
    assert into_card(config, [mark], METRICS) == f"{folder}/README.md has these figures, of IU X-Ray"
    (result,) = ModelCard.load(folder / "README.md").data.eval_results
    assert (result.dataset_name, result.metric_name, result.metric_value) == ("IU X-Ray", "BLEU_4", 0.25)
    said = into_card(config.overridden({"evaluate.dataset": None}), [mark], METRICS)
    assert said.endswith("of unnamed chest X-ray studies; evaluate.dataset=NAME names the data")
    assert fingerprint(folder) == mark


@pytest.mark.parametrize(
    ("models", "more", "reason"),
    [
        ([], [], "these predictions do not say which checkpoint wrote them"),
        (["abc"], [], "these reports were written by another checkpoint"),
        (["OWN", "abc"], [], "these reports were written by another checkpoint"),
        (["OWN"], ["limit=3"], "these are the first 3 studies only"),
    ],
)
def test_figures_of_something_else(folder: Path, models: list[str], more: list[str], reason: str) -> None:
    before = (folder / "README.md").read_text()
    models = [fingerprint(folder) if model == "OWN" else model for model in models]
    said = into_card(load_config(None, [f"checkpoint={folder}", *more]), models, METRICS)
    assert said == f"the model card of {folder} stays as it is: {reason}"
    assert (folder / "README.md").read_text() == before


def test_no_card_and_no_scores(folder: Path) -> None:
    config, own = load_config(None, [f"checkpoint={folder}"]), [fingerprint(folder)]
    assert "stays as it is: no scores for the model card" in into_card(config, own, {"scores": {"BLEU_4": None}})
    (folder / "README.md").unlink()
    assert into_card(config, own, METRICS).endswith("README.md cannot be read")
    assert not (folder / "README.md").exists()


def test_a_checkpoint_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megpt.model.fingerprint", lambda name: "own", raising=False)
    said = into_card(load_config(None, ["checkpoint=org/name"]), ["own"], METRICS)
    assert said.endswith("it belongs to the hub; give checkpoint= a folder of your own, and push that")
