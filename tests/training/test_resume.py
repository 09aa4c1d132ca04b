"""A run that dies at any moment and is started again ends where the uninterrupted one does.

- SIGKILL of all workers at a random step, in mid-save too: final weights equal bit for bit at the same world size
- the same at another world size, and under ZeRO-3: within 1e-4
- killed in a validation, a run does that validation first when it is started again, also at its last step
- a checkpoint that was cut short is skipped with a warning, and the previous one is used
- workers that do not have the same studies, and a run whose studies have changed since its checkpoint, end with a
  screen: the numbers of the samples would mean others
- a loss that is not a number ends the run with its step, its cause and no checkpoint of it
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_runs import make_studies
from training_groups import losses, run_group, start_group, train

from megpt.data.studies import write_studies
from megpt.errors import MegptError
from megpt.study import View
from megpt.training.checkpoints import STATE, CheckpointStore
from megpt.training.loop import Hooks, make_parts, train_loop
from megpt.training.samples import drop_samples

pytestmark = pytest.mark.slow
STEPS = {"train__max_steps": 12, "train__save_every": 2}


def weights(output):
    return load_file(Path(output) / "model.safetensors")


def kill_after(config, workers, rows):
    """Start a group, wait for `rows` rows of its log, kill every process."""
    processes, _ = start_group(workers, train, config)
    log, deadline = Path(config.output) / "log.jsonl", time.monotonic() + 200
    while time.monotonic() < deadline:
        if log.exists() and log.read_text().count("\n") >= rows:
            break
        time.sleep(0.002)
    else:
        raise AssertionError("no progress")
    for process in processes:
        process.kill()
        process.join()


def test_killed_runs_end_alike(settings, tmp_path):
    whole = settings(tmp_path / "whole", **STEPS)
    run_group(2, train, whole)
    killed = settings(tmp_path / "killed", **STEPS)
    for rows in (3, 6, 9):  # 6 is right behind a save, which goes on in the background
        kill_after(killed, 2, rows)
    store = Path(killed.output) / "steps"
    assert CheckpointStore(store, keep=2).newest().step >= 2
    run_group(2, train, killed)
    one, other = weights(whole.output), weights(killed.output)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert len(list(store.glob("step-*"))) == 2 and not list(store.glob(".step-*"))

    # The checkpoints of two workers go on under one worker, and under ZeRO-3, from the step before the last save.
    for name, workers, changes in (("one", 1, {}), ("zero3", 2, {"train__zero_stage": 3})):
        moved = settings(tmp_path / name, **STEPS, **changes)
        kill_after(settings(tmp_path / name, **STEPS), 2, 5)
        run_group(workers, train, moved)
        np.testing.assert_allclose(losses(tmp_path / name), losses(tmp_path / "whole"), rtol=1e-4)
        for key, tensor in weights(moved.output).items():
            np.testing.assert_allclose(tensor, one[key], atol=2e-4, err_msg=key)


def validated(config, calls):
    """A run whose process is killed in its second validation."""

    def validate(model, processor):
        with calls.open("a") as file:
            file.write("x")
        if calls.stat().st_size == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"ROUGE_L": calls.stat().st_size / 10}

    train(config, Hooks(validate=validate, best=lambda scores: scores["ROUGE_L"]))


def test_killed_in_a_validation(settings, tmp_path):
    config = settings(tmp_path / "run", train__max_steps=4, train__val_every=2)
    with pytest.raises(AssertionError, match="exit code"):
        run_group(1, validated, config, tmp_path / "calls")
    run_group(1, validated, config, tmp_path / "calls")
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [(row["step"], row["val_ROUGE_L"]) for row in rows if "val_ROUGE_L" in row] == [(2, 0.1), (4, 0.3)]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    best = CheckpointStore(tmp_path / "run" / "steps", keep=2).best()
    assert (best[0].step, best[1]) == (4, 0.3)


def test_a_checkpoint_cut_short(settings, tmp_path):
    config = settings(tmp_path / "run", **STEPS)
    run_group(1, train, config)
    expected = weights(config.output)
    steps = Path(config.output) / "steps"
    state = steps / "step-00000012" / STATE
    os.truncate(state, state.stat().st_size // 2)
    warnings = []
    assert CheckpointStore(steps, keep=2, warn=warnings.append).newest().step == 10
    reason = f"{STATE} does not match its manifest"
    assert warnings == [f"warning: checkpoint {state.parent} is damaged and is skipped: {reason}"]
    run_group(1, train, config)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(config.output).items())


def test_a_loss_that_is_not_a_number(settings, tmp_path):
    config = settings(tmp_path / "run", train__lr=1e30, train__grad_clip=0, train__save_every=1)
    with pytest.raises(AssertionError, match=r"the loss is nan at step [1-4]") as raised:
        run_group(2, train, config)
    assert "next:  lower train.lr" in str(raised.value)
    assert MegptError.__name__ in str(raised.value)


def train_on_less(config):
    """As `train`, but the second worker's node sees a part of the studies only."""
    less = config.updated(limit=20) if os.environ["RANK"] == "1" else config
    return train_loop(config, lambda: make_parts(less), output=Path(config.output))


def test_workers_with_other_studies(settings, tmp_path):
    with pytest.raises(AssertionError) as raised:
        run_group(2, train_on_less, settings(tmp_path / "run"))
    host = socket.gethostname()
    assert (
        "InputError: the workers do not have the same studies to train on\n"
        f"  where: 22 on {host}, 20 on {host}\n"
        "  cause: a node does not see all films of the archive: it is not mounted there, or is another copy\n"
        "  next:  mount the same archive on every node and run the same command again"
    ) in str(raised.value)
    assert CheckpointStore(tmp_path / "run" / "steps", keep=2).newest() is None


def test_a_film_that_has_gone_since(settings, tmp_path):
    studies = []
    for number, study in enumerate(make_studies(12)):
        (path := tmp_path / f"{number}.jpg").write_bytes(study.views[0].data)
        studies.append(replace(study, views=(View("film", uri=str(path)),)))
    write_studies(tmp_path / "studies", "train", studies, 0)
    config = settings(tmp_path / "run", studies=tmp_path / "studies", train__max_steps=2)
    run_group(1, train, config)
    (tmp_path / "3.jpg").unlink()
    drop_samples(config)
    with pytest.raises(AssertionError) as raised:
        run_group(1, train, config.overridden({"train.max_steps": 4}))
    assert (
        "InputError: the studies to train on are not those of the 2 steps already done\n"
        "  where: 12 then, 11 now\n"
        "  cause: films have been removed from the archive since, or added to it\n"
        "  next:  restore the archive and run the same command again, or set another output=PATH"
    ) in str(raised.value)
