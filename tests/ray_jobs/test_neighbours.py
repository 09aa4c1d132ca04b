"""The nearest-neighbour baseline of evaluate.

- with a checkpoint and a studies/ table each study gets the report of the training study that looks most like it, by
  the checkpoint's own encoder and by an untrained one; unreadable films are counted; nothing is a neighbour of itself
- without them a note says what is missing
- the encoder is the checkpoint's, LoRA and training included
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_evaluate import predictions, row
from test_fit_prompts import SENTENCES, film

from megpt.config import Config, load_config
from megpt.data.studies import write_studies
from megpt.errors import InputError
from megpt.model import MeGPTForConditionalGeneration
from megpt.model.checkpoint.encoder import load_encoder
from megpt.study import Study, View
from ray_jobs.evaluate import Evaluate
from ray_jobs.neighbours import find_neighbours


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three kinds of film, each with a report of its own; the film of s1 is broken."""
    folder = tmp_path_factory.mktemp("neighbours") / "studies"

    def study(name: str, n: int, split: str) -> Study:
        view = View(f"i{name}", data=b"no film" if name == "s1" else film(n % 3, n + 100 * (split == "test")))
        return Study(name, f"patient-{name}", (view,), report=SENTENCES[n % 3], split=split)

    write_studies(folder, "train", [study(f"t{n}", n, "train") for n in range(12)], 0)
    write_studies(folder, "test", [study(f"s{n}", n, "test") for n in range(9)], 0)
    return folder


def config(tmp_path: Path, *more: str) -> Config:
    paths = [f"predictions={tmp_path / 'predictions'}", f"output={tmp_path / 'out'}"]
    return load_config(None, [*paths, "evaluate.meteor=false", "evaluate.bootstrap=50", "evaluate.films=0", *more])


@pytest.mark.slow
def test_neighbours(studies: Path, tiny_checkpoint: Path, tmp_path: Path, ray_cluster: None) -> None:
    rows = [row(n, report="no", reference=SENTENCES[n % 3]) for n in range(9)]
    predictions(tmp_path / "predictions", rows)
    wanted = config(tmp_path, f"studies={studies}", f"checkpoint={tiny_checkpoint}", "limit=6")
    assert Evaluate.run(wanted) == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    for name in ("nearest", "nearest_untrained"):
        # Every kind of film finds its kind, but for the one that cannot be read.
        assert metrics["baselines"][name]["ROUGE_L"] == pytest.approx(5 / 6)
        assert metrics["notes"][name] == "1 of 6 studies have no readable film and count as empty reports here"
        assert metrics["paired"][name]["ROUGE_L"][1] < 0
    assert any("does not beat the nearest-neighbour baseline on BLEU_1" in w for w in metrics["warnings"])
    with pytest.raises(InputError, match="exists from another config"):
        Evaluate.run(config(tmp_path, f"studies={studies}", "limit=6"))

    # A study of the training split is not its own neighbour.
    found, notes = find_neighbours(wanted, {f"t{n}" for n in range(3)} | {"s2"})
    assert notes == {} and found["nearest"] == {
        "t0": SENTENCES[0],
        "t1": SENTENCES[1],
        "t2": SENTENCES[2],
        "s2": SENTENCES[2],
    }


def test_without_films_a_note_says_why(studies: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    needs = "needs the films and the encoder: set studies=PATH and checkpoint=PATH"
    both = config(tmp_path, f"studies={studies}", f"checkpoint={tiny_checkpoint}")
    assert find_neighbours(config(tmp_path, f"studies={studies}"), {"s0"}) == ({}, {"nearest": needs})
    assert find_neighbours(both, {"x"})[1] == {
        "nearest": "no scored study is in `studies`, so that its films are not known"
    }
    assert find_neighbours(both.overridden({"evaluate.baselines": False}), {"s0"}) == ({}, {})
    write_studies(tmp_path / "test_only", "test", [Study("s0")], 0)
    alone = config(tmp_path, f"studies={tmp_path / 'test_only'}", f"checkpoint={tiny_checkpoint}")
    assert find_neighbours(alone, {"s0"})[1] == {"nearest": "the training split is not in `studies`"}


@pytest.mark.parametrize("mode", ["shallow", "delta", "deep"])
def test_the_encoder_is_the_checkpoints(mode: str, tiny_llm: Path, tmp_path: Path) -> None:
    from megpt.config import ModelConfig
    from megpt.model.build import build_encoder, build_model
    from megpt.model.prompts import PromptBank

    settings = ModelConfig(vision="test_vit", vision_weights="none", image_size=64, llm=str(tiny_llm), mode=mode)
    encoder, identity = build_encoder(settings, seed=0)
    bank = PromptBank(texts=("a", "b"), centroids=torch.randn(2, encoder.channels), encoder=identity)
    model, processor = build_model(settings, bank=bank, seed=0)
    with torch.no_grad():
        for tensor in model.vision.parameters():
            tensor.add_(0.01 * torch.randn_like(tensor) if tensor.requires_grad else 0)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    films = torch.randn(2, 3, 64, 64)
    whole = MeGPTForConditionalGeneration.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(load_encoder(str(tmp_path))(films), whole.vision(films))
        assert torch.equal(load_encoder(str(tmp_path))(films), encoder(films)) == (mode == "shallow")


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint at"):
        load_encoder(str(tmp_path))
