"""The same curve, whatever holds the weights and however many workers there are.

- 1, 2 and 4 workers, with and without gradient accumulation: losses of every step within 1e-4
- ZeRO stages 0, 1, 2 and 3 and CPU offload on two workers: losses of 50 steps within 1e-4
- the exported weights agree too
- three workers, which no share divides, still give the same curve
- what one and two workers differ by after 40 steps is rounding that Adam enlarges: with a large epsilon, which makes
  it a plain gradient descent with momentum, both have the same losses and weights to five digits
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from training_groups import losses, run_group, train, train_each

pytestmark = pytest.mark.slow


def curve(config, world_size):
    run_group(world_size, train, config)
    return np.asarray(losses(Path(config.output)))


def test_workers_and_accumulation_do_not_matter(settings, tmp_path):
    runs = {
        "1": (1, {}),
        "4": (4, {}),
        "3, uneven": (3, {}),
        "2, accumulating": (2, {"train__micro_batch_size": 2}),
    }
    curves = {
        name: curve(settings(tmp_path / name, train__max_steps=9, **changes), workers)
        for name, (workers, changes) in runs.items()
    }
    assert len(curves["1"]) == 9 and curves["1"][-1] < curves["1"][0] - 0.02
    for name, losses_of in curves.items():
        np.testing.assert_allclose(losses_of, curves["1"], rtol=1e-4, err_msg=name)
    one, four = (load_file(tmp_path / name / "model.safetensors") for name in ("1", "4"))
    assert one.keys() == four.keys()
    for name, tensor in one.items():
        np.testing.assert_allclose(tensor, four[name], atol=2e-4, err_msg=name)


def test_zero_stages_agree(settings, tmp_path):
    changes = [{"train__zero_stage": stage} for stage in range(4)] + [
        {"train__deepspeed": "deepspeed_configs/offload.json"}
    ]
    configs = [settings(tmp_path / str(i), train__max_steps=50, **change) for i, change in enumerate(changes)]
    run_group(2, train_each, configs)
    curves = [losses(Path(config.output)) for config in configs]
    assert len(curves[0]) == 50
    for found in curves[1:]:
        np.testing.assert_allclose(found, curves[0], rtol=1e-4)


@pytest.mark.parametrize("epsilon, rate, within", [(1e-8, 5e-4, 1e-5), (1.0, 0.1, 1e-6)])
def test_workers_differ_by_rounding_alone(settings, tmp_path, epsilon, rate, within):
    """`within`: how far apart any weight may be, about twenty times what was measured."""
    file = tmp_path / "deepspeed.json"
    optimizer = {"type": "AdamW", "params": {"torch_adam": True, "eps": epsilon}}
    file.write_text(json.dumps({"optimizer": optimizer, "zero_optimization": {"stage": 2}}))
    changes = {"model__mode": "deep", "train__max_steps": 40, "train__lr": rate, "train__deepspeed": str(file)}
    curves, weights = [], []
    for workers in (1, 2):
        config = settings(tmp_path / str(workers), **changes)
        curves.append(curve(config, workers))
        weights.append(load_file(Path(config.output) / "model.safetensors"))
    np.testing.assert_allclose(curves[1], curves[0], rtol=2e-6)
    assert curves[0][0] - curves[0][-1] > 0.01  # it learns
    for name, tensor in weights[0].items():
        np.testing.assert_allclose(tensor, weights[1][name], rtol=0, atol=within, err_msg=name)
