"""What a step is made of.

- five steps leave the weights that plain torch leaves: AdamW with the same rates, betas, decay and clipping, on the
  same batches, with a loss of cross-entropy per report token and the penalty
- dropout depends on the piece, not on who takes it: two workers that share the pieces have one worker's losses, and two
  pieces of a step are not dropped alike
- a film that only one worker met is named in the checkpoint, and at the end of the run
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from small_runs import make_studies
from training_groups import losses, run_group, train

from megpt.data.studies import write_studies
from megpt.study import Study, View
from megpt.training.checkpoints import CheckpointStore

pytestmark = pytest.mark.slow
RATES = {"train__lr": 4e-3, "train__min_lr": 1e-3, "train__warmup_steps": 2, "train__grad_clip": 0.02}
ADAM = {"train__betas": (0.6, 0.95), "train__weight_decay": 0.5, "train__l2": 1e-3}


def newest(config):
    return CheckpointStore(Path(config.output) / "steps", keep=2).newest()


def beside_plain_torch(config):
    """Train by the loop and by torch alone; the greatest difference of each trained tensor, and how far it moved."""
    from megpt.films.decode import load_films
    from megpt.training.batches import pad
    from megpt.training.loop import make_parts
    from megpt.training.order import GlobalOrder

    train(config)
    parts, settings = make_parts(config), config.train
    trained = {name: p for name, p in parts.model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    optimizer = torch.optim.AdamW(
        trained.values(), betas=settings.betas, weight_decay=settings.weight_decay, eps=1e-8, foreach=False
    )
    parts.model.train()
    norms = []
    for step in range(5):
        cosine = (1 + math.cos(math.pi * (step - 2) / 2)) / 2
        rate = settings.lr * (step + 1) / 2 if step < 2 else settings.min_lr + (settings.lr - settings.min_lr) * cosine
        optimizer.param_groups[0]["lr"] = rate
        batch = GlobalOrder(len(parts.samples), settings.global_batch_size, config.seed).batch(step).tolist()
        films = [load_films(parts.samples.study(i), size=32, max_views=None, max_pixels=10**9) for i in batch]
        labels = [parts.samples.labels(i) for i in batch]
        inputs = parts.processor(images=films, return_tensors="pt")
        out = parts.model(**inputs, labels=pad(labels), num_items_in_batch=sum(map(len, labels)))
        (out.cross_entropy + out.l2).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained.values(), settings.grad_clip)))
        optimizer.step()
        optimizer.zero_grad()
    tensors = newest(config).tensors()
    return min(norms), {
        name: (float((tensors[f"master/{name}"].view_as(p) - p).abs().max()), float((p - before[name]).abs().max()))
        for name, p in trained.items()
    }


@pytest.mark.parametrize("stage", [0, 2])
def test_five_steps_of_plain_adamw(settings, tmp_path, stage):
    config = settings(
        tmp_path / "run", train__max_steps=5, train__zero_stage=stage, model__mode="deep", **RATES, **ADAM
    )
    ((norm, moves),) = run_group(1, beside_plain_torch, config)
    assert norm > config.train.grad_clip  # it is clipped in every step
    assert {name: move for name, move in moves.items() if move[0] > 2e-5 or move[1] < 1e-3} == {}


def test_dropout_depends_on_the_piece(settings, tmp_path):
    shares = {"train__global_batch_size": 4, "train__micro_batch_size": 1, "train__max_steps": 3}
    dropout = {"model__mode": "deep", "model__vision_args": {"proj_drop_rate": 0.5}}
    curves = {}
    for workers, changes in ((1, dropout), (2, dropout), (1, {"model__mode": "deep"})):
        config = settings(tmp_path / f"{workers}-{len(curves)}", **shares, **changes)
        run_group(workers, train, config)
        curves[len(curves)] = losses(Path(config.output))
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-6)
    assert np.abs(np.subtract(curves[2], curves[0])).max() > 1e-4  # dropout is seen at all


def test_films_that_one_worker_could_not_read(settings, tmp_path):
    broken = [
        Study(f"broken{i}", views=(View(f"x{i}", data=b"no film"),), report="The lungs are clear.", split="train")
        for i in range(4)
    ]
    write_studies(tmp_path / "studies", "train", [*make_studies(4), *broken], 0)
    config = settings(tmp_path / "run", studies=tmp_path / "studies", train__max_steps=1)
    one, other = run_group(2, train, config)
    everyone = sorted(study.study_id for study in broken)
    assert sorted(newest(config).meta["failed"]) == everyone
    assert sorted(pq.read_table(tmp_path / "run" / "failed.parquet")["study_id"].to_pylist()) == everyone
    assert one == other and one["failed"] == 4
