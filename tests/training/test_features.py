"""The cache of frozen-encoder features, and validation, on two workers.

- losses and weights are those of the run without the cache, epoch after epoch
- once all studies are stored, no film is decoded and the encoder does not run
- it is refused in modes that train the encoder
- validation: every study once, scored once, the same scores on all workers; the best checkpoint is pinned and exported
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_groups import losses, run_group, train, train_each

from megpt.errors import InputError
from megpt.training.features import FeatureCache, check_cache


def validated(config):
    """Train with validation, as a worker of the job does."""
    from megpt.training.loop import Hooks
    from ray_jobs.train.validate import best_score, validator

    seen = []

    def validate(model, processor):
        scores = validator(config)(model, processor)
        seen.append(scores)
        return scores

    train(config, Hooks(validate=validate, best=lambda scores: best_score(scores, config.train.best_metric)))
    return seen


@pytest.mark.slow
def test_equal_results(settings, tmp_path):
    configs = [
        settings(tmp_path / name, train__max_steps=9, train__cache_features=cached)
        for name, cached in (("plain", False), ("cached", True))
    ]
    run_group(2, train_each, configs)
    plain, cached = (losses(Path(config.output)) for config in configs)
    np.testing.assert_allclose(cached, plain, rtol=1e-5)
    one, other = (load_file(Path(config.output) / "model.safetensors") for config in configs)
    for name, tensor in one.items():
        np.testing.assert_allclose(tensor, other[name], atol=1e-5, err_msg=name)


class Encoder:
    layout = {"channels": 2, "grid": [1, 1]}  # noqa: RUF012

    def __init__(self):
        self.runs = 0

    def forward(self, films):
        self.runs += 1
        return films.mean((1, 2, 3))[:, None, None, None].expand(-1, 2, 1, 1)


def test_stored_maps_need_no_encoder(tmp_path):
    encoder = Encoder()
    cache = FeatureCache(tmp_path / "f.bin", encoder, np.array([1, 2, 1]), dtype=torch.float32)
    piece, mask = np.array([2, 1]), torch.tensor([[True, False], [True, True]])
    films = torch.arange(3.0)[:, None, None, None].expand(3, 3, 4, 4)
    assert cache.views(piece) is None
    with cache.around(piece, mask, failed=set(), stored=False):
        computed = encoder.forward(films)
    assert cache.views(piece) == [1, 2] and cache.views(np.array([0, 1])) is None
    again = FeatureCache(tmp_path / "f.bin", other := Encoder(), np.array([1, 2, 1]), dtype=torch.float32)
    with again.around(piece, mask, failed=set(), stored=True):
        assert torch.equal(other.forward(films), computed)
    assert (encoder.runs, other.runs) == (1, 0)
    with cache.around(np.array([0]), mask[:1], failed={0}, stored=False):
        encoder.forward(films[:1])
    assert cache.views(np.array([0])) is None


def test_refused_when_the_encoder_learns(settings, tmp_path):
    with pytest.raises(InputError, match=r"needs model\.mode = shallow, not delta"):
        check_cache(settings(tmp_path, train__cache_features=True, model__mode="delta"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_validation(settings, tmp_path, stage):
    config = settings(
        tmp_path / "run",
        train__zero_stage=stage,
        train__val_every=3,
        train__keep=1,
        generate__min_new_tokens=1,
        generate__max_new_tokens=8,
        generate__num_beams=1,
    )
    one, other = run_group(2, validated, config)
    assert one == other and len(one) == 2 and {"BLEU_4", "CIDEr"} <= one[0].keys()
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    scores = {row["step"]: row["val_best_metric"] for row in rows if "val_best_metric" in row}
    assert scores.keys() == {3, 6}
    best = json.loads((tmp_path / "run" / "steps" / "best.json").read_text())
    assert best["step"] == max(scores, key=lambda step: (scores[step], -step))
    exported = load_file(tmp_path / "run" / "model.safetensors")
    pinned = load_file(tmp_path / "run" / "steps" / best["name"] / "state.safetensors")
    name = "projector.linear.weight"
    assert torch.equal(exported[name], pinned[f"master/{name}"])
