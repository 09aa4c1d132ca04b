"""Every ZeRO stage, precision, offload and mode either trains and resumes, or is refused before anything starts.

- what is not refused takes a step, is resumed by a fresh engine, and takes another, on two workers
- refused by name: ZeRO 0 in bf16, offloading where DeepSpeed would ignore it
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from training_groups import losses, run_group, train

from megpt.errors import InputError
from megpt.training.deepspeed import deepspeed_settings

OPTIMIZER = {"type": "AdamW", "params": {"torch_adam": True}}
OFFLOADS = {
    "none": {},
    "optimizer": {"offload_optimizer": {"device": "cpu"}},
    "weights": {"offload_param": {"device": "cpu"}},
}
REFUSED = {
    *[("0", "bf16", offload) for offload in OFFLOADS],
    *[("0", "fp32", offload) for offload in ("optimizer", "weights")],
    *[(stage, precision, "weights") for stage in "12" for precision in ("fp32", "bf16")],
}


def changes(folder, stage, precision, offload):
    file = folder / f"{stage}-{offload}.json"
    zero = {"stage": int(stage), **OFFLOADS[offload]}
    file.write_text(
        json.dumps({"optimizer": OPTIMIZER, "zero_optimization": zero, "zero_force_ds_cpu_optimizer": False})
    )
    return {"train__deepspeed": str(file), "train__precision": precision}


def train_twice(configs):
    """The losses of a step of each, and of another by a fresh engine that resumes from it."""
    for config in configs:
        for steps in (1, 2):
            train(config.overridden({"train.max_steps": steps}))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["shallow", "delta", "deep"])
def test_trained_and_resumed(settings, tmp_path, mode):
    runs, refused = [], set()
    for combination in itertools.product("0123", ("fp32", "bf16"), OFFLOADS):
        config = settings(tmp_path / "-".join(combination), model__mode=mode, **changes(tmp_path, *combination))
        try:
            deepspeed_settings(config.train, world_size=2)
        except InputError:
            refused.add(combination)
        else:
            runs.append(config)
    assert refused == REFUSED and len(runs) == 24 - len(REFUSED)
    run_group(2, train_twice, runs, timeout=500)
    for config in runs:
        steps = losses(Path(config.output))
        tolerance = 1e-4 if config.train.precision == "fp32" else 2e-2
        assert len(steps) == 2 and np.allclose(steps, losses(Path(runs[0].output)), rtol=tolerance), config.output
