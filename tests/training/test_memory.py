"""The memory of a training worker does not grow with its steps.

- in bf16 on a CPU, where every matrix product of a new shape compiles a kernel that is kept: after a warm-up, steps
  with reports of ever other lengths add less than a tenth of a megabyte each
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_runs import WORDS, make_studies
from training_groups import run_group

from megpt.data.studies import write_studies
from megpt.training.loop import Hooks, make_parts, train_loop

WARM_UP, STEPS = 120, 240


def resident_mib():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def memory_by_step(config):
    """Resident memory after each log row, without the pages of mapped files."""
    found = {}
    hooks = Hooks(row=lambda row: found.update({row["step"]: resident_mib()}))
    train_loop(config, lambda: make_parts(config), output=Path(config.output), hooks=hooks)
    return found


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
