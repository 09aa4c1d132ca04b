"""The cache of frozen-encoder features, and validation, on two workers.

- losses and weights are those of the run without the cache, epoch after epoch
- once all studies are stored, no film is decoded and the encoder does not run
- in a folder of its own it serves a later run with the same encoder and studies, and no other
- it is refused in modes that train the encoder; a worker without a share of a step stores nothing
- validation: every study once, scored once, the same scores on all workers; the best checkpoint is pinned and exported
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_runs import film
from training_groups import losses, run_group, train, train_each

from megpt.data.studies import write_studies
from megpt.errors import InputError
from megpt.study import Study, View
from megpt.training.batches import MicroBatch
from megpt.training.deepspeed import check_cache
from megpt.training.loop import make_parts
from megpt.training.memo import FeatureCache, _films_and_encoder


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


@pytest.mark.slow
def test_features_that_outlive_their_run(settings, tmp_path):
    kept = {"train__cache_features": True, "train__cache_folder": str(tmp_path / "kept"), "train__max_steps": 4}
    first = settings(tmp_path / "first", **kept)
    again, blank = (settings(tmp_path / name, **kept, model__fem=False) for name in ("again", "blank"))
    plain = settings(tmp_path / "plain", train__max_steps=4, model__fem=False)
    other = settings(tmp_path / "other", **kept, seed=7)  # an encoder drawn anew
    run_group(1, train_each, [first, again, plain, other])
    one, two = sorted((tmp_path / "kept").glob("*.bin"), key=lambda path: path.stat().st_mtime_ns)
    np.testing.assert_allclose(losses(tmp_path / "again"), losses(tmp_path / "plain"), rtol=1e-5)
    assert two.stat().st_size == one.stat().st_size
    one.write_bytes(bytes(one.stat().st_size))
    run_group(1, train_each, [blank])
    assert losses(tmp_path / "blank")[0] != pytest.approx(losses(tmp_path / "plain")[0], rel=1e-5)  # nothing encoded


def test_what_kept_features_depend_on(settings, tmp_path, monkeypatch):
    """The films by their own stamps, the encoder and the machine's start; not the modules behind the encoder."""
    file = tmp_path / "1.png"
    file.write_bytes(film(np.random.default_rng(0)))
    study = Study("s", "p", (View("1", uri=str(file)),), report="clear", split="train")
    write_studies(tmp_path / "linked", "train", [study], 0)

    def key(**changes):
        config = settings(tmp_path / "run", studies=tmp_path / "linked", train__cache_features=True, **changes)
        made = make_parts(config)
        return _films_and_encoder(config, made.model, made.samples).hexdigest()

    own = key()
    assert key(model__fem=False, train__l2=0.0, train__lr=1e-5) == own
    different = [key(seed=7), key(train__precision="bf16"), key(data__max_views=1)]
    file.write_bytes(film(np.random.default_rng(1)) + b"0")
    different.append(key())
    monkeypatch.setattr("psutil.boot_time", lambda: 1.0)
    different.append(key())
    assert len({own, *different}) == 6


class Encoder:
    layout = {"channels": 2, "grid": [1, 1]}  # noqa: RUF012

    def __init__(self):
        self.runs = 0

    def forward(self, films):
        self.runs += 1
        return films.mean((1, 2, 3))[:, None, None, None].expand(-1, 2, 1, 1)


def test_stored_maps_need_no_encoder(tmp_path):
    def run(cache, encoder, indices, mask, films, **changes):
        mask = torch.tensor(mask)
        batch = MicroBatch(np.array(indices), films, mask, torch.empty(0), **changes)
        inputs = {"pixel_values": films, "view_mask": mask}
        return cache.forward(lambda pixel_values, view_mask: encoder.forward(pixel_values), batch, inputs)

    encoder = Encoder()
    cache = FeatureCache(tmp_path / "f.bin", encoder, np.array([1, 2, 1]), dtype=torch.float32)
    piece, mask = [2, 1], [[True, False], [True, True]]
    films = torch.arange(3.0)[:, None, None, None].expand(3, 3, 4, 4)
    assert cache.stored_views(np.array(piece)) is None
    computed = run(cache, encoder, piece, mask, films)
    assert cache.stored_views(np.array(piece)) == [1, 2] and cache.stored_views(np.array([0, 1])) is None
    again = FeatureCache(tmp_path / "f.bin", other := Encoder(), np.array([1, 2, 1]), dtype=torch.float32)
    assert torch.equal(run(again, other, piece, mask, films, stored=True), computed)
    assert (encoder.runs, other.runs) == (1, 0)
    run(cache, encoder, [0], mask[:1], films[:1], failed={0: "unreadable"})
    assert cache.stored_views(np.array([0])) is None


def test_an_idle_worker_stores_nothing(tmp_path):
    encoder = Encoder()
    cache = FeatureCache(tmp_path / "f.bin", encoder, np.array([1]), dtype=torch.float32)
    batch = MicroBatch(np.empty(0, np.int64), torch.zeros(1, 3, 4, 4), torch.tensor([[True]]), torch.empty(0))
    cache.forward(lambda **inputs: encoder.forward(batch.pixel_values), batch, {"view_mask": batch.view_mask})
    assert encoder.runs == 1 and cache.stored_views(np.array([0])) is None


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
