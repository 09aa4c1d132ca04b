"""The memory of a training worker does not grow with its steps.

- in bf16 on a CPU every matrix product of a new shape compiles a kernel, and two caches keep a thousand of them: with
  the bound that a worker sets, products of 200 shapes leave less than half of what they leave without it
- after a warm-up, training steps with reports of ever other lengths add less than a tenth of a megabyte each
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_runs import WORDS, make_studies
from training_groups import run_group

from megpt.data.studies import write_studies
from megpt.training.loop import Hooks, make_parts, train_loop

WARM_UP, STEPS = 200, 600


def resident_mib():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def memory_by_step(config):
    """Resident memory after each log row, without the pages of mapped files."""
    found = {}
    hooks = Hooks(row=lambda row: found.update({row["step"]: resident_mib()}))
    train_loop(config, lambda: make_parts(config), output=Path(config.output), hooks=hooks)
    return found


PRODUCTS = """
import sys, torch
from pathlib import Path
from megpt.training.engine import share_machine

def resident():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024

if sys.argv[1] == "bounded":
    share_machine()
torch.set_num_threads(1)
weights = [torch.randn(n, 128, dtype=torch.bfloat16, requires_grad=True) for n in (128, 384)]
for length in range(10, 210):
    rows = torch.randn(length, 128, dtype=torch.bfloat16, requires_grad=True)
    sum((rows @ weight.T).float().sum() for weight in weights).backward()
    if length == 20:
        before = resident()
print(resident() - before)
"""


@pytest.mark.slow
def test_kernels_of_many_shapes_are_not_all_kept():
    def growth(which):
        command = [sys.executable, "-c", PRODUCTS, which]
        # a test in this process may have bounded the caches before
        own = {name: value for name, value in os.environ.items() if "CACHE_CAPACITY" not in name}
        return float(subprocess.run(command, capture_output=True, text=True, check=True, env=own).stdout)

    unbounded, bounded = growth("unbounded"), growth("bounded")
    if unbounded < 100:
        pytest.skip("this processor needs no kernel of its own for each shape")
    assert bounded < unbounded / 2


@pytest.mark.slow
def test_memory_is_flat_in_bf16(settings, tmp_path):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 1 + int(rng.integers(12)))) for _ in range(200)]
    studies = [replace(study, report=text) for study, text in zip(make_studies(200), texts, strict=True)]
    write_studies(tmp_path / "studies", "train", studies, 0)
    config = settings(
        tmp_path / "run",
        studies=tmp_path / "studies",
        model__mode="deep",
        train__precision="bf16",
        train__global_batch_size=2,
        train__max_steps=STEPS,
        train__log_every=WARM_UP,
        train__save_every=10**6,
    )
    (found,) = run_group(1, memory_by_step, config)
    assert (found[STEPS] - found[WARM_UP]) / (STEPS - WARM_UP) < 0.1, found
