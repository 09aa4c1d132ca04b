"""The folder of checkpoints.

- the newest whole one is found; truncated, flipped, half-written and empty ones are skipped with a warning
- the last K stay, the best stays pinned whatever its age, and an equal score does not move the pin
- a leftover of a killed writer is removed by the next save and never read
- saving returns before the file is on disk; an error of the writing thread comes up at the next save or at the end
- full storage is an error with the space that is left, and the checkpoints before it stay
"""

from __future__ import annotations

import errno

import pytest
import torch

from megpt.errors import MegptError
from megpt.training import checkpoints
from megpt.training.checkpoints import MANIFEST, META, STATE, CheckpointStore


def filled(folder, steps, keep=10):
    store = CheckpointStore(folder, keep=keep)
    for step in steps:
        store.save({"master/w": torch.full((4,), float(step))}, {"step": step, "failed": {}})
    store.wait()
    return store


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_the_newest_is_found(tmp_path):
    store = filled(tmp_path, [2, 10, 4])
    found = store.newest()
    assert found.step == 10 and found.tensors()["master/w"].tolist() == [10.0] * 4
    assert store.at(found.path) == found
    assert CheckpointStore(tmp_path / "none", keep=1).newest() is None


@pytest.mark.parametrize("damage", ["truncate", "flip", "no state", "no manifest", "empty manifest", "empty folder"])
def test_a_damaged_one_is_skipped(tmp_path, damage):
    filled(tmp_path, [1, 2])
    last, warnings = tmp_path / "step-00000002", []
    state = last / STATE
    if damage == "truncate":
        state.write_bytes(state.read_bytes()[:-1])
    elif damage == "flip":
        content = bytearray(state.read_bytes())
        content[-1] ^= 1
        state.write_bytes(content)
    elif damage == "no state":
        state.unlink()
    elif damage == "no manifest":
        (last / MANIFEST).unlink()
    elif damage == "empty manifest":
        (last / MANIFEST).write_text("")
    else:
        for name in (STATE, META, MANIFEST):
            (last / name).unlink()
    assert CheckpointStore(tmp_path, keep=2, warn=warnings.append).newest().step == 1
    assert len(warnings) == 1 and warnings[0].startswith(f"warning: checkpoint {last} is damaged and is skipped: ")


def test_the_last_k_and_the_best_stay(tmp_path):
    store = filled(tmp_path, [1, 2, 3], keep=2)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]
    assert store.note_score(2, 0.5)
    for step in (4, 5, 6):
        store.save({"master/w": torch.zeros(1)}, {"step": step, "failed": {}})
        assert not store.note_score(step, 0.5)
    store.wait()
    assert names(tmp_path) == ["step-00000002", "step-00000005", "step-00000006"]
    assert store.best()[0].step == 2 and store.best()[1] == 0.5
    assert store.note_score(6, 0.6)
    store.save({"master/w": torch.zeros(1)}, {"step": 7, "failed": {}})
    store.close()
    assert names(tmp_path) == ["step-00000006", "step-00000007"]


def test_leftovers_of_a_killed_writer(tmp_path):
    left = tmp_path / ".step-00000009.elsewhere.77"
    left.mkdir(parents=True)
    (left / STATE).write_bytes(b"half")
    assert CheckpointStore(tmp_path, keep=1).newest() is None
    filled(tmp_path, [1])
    assert names(tmp_path) == ["step-00000001"]


def test_full_storage(tmp_path, monkeypatch):
    store = filled(tmp_path, [1])

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    store.save({"master/w": torch.zeros(1)}, {"step": 2, "failed": {}})
    with pytest.raises(MegptError, match=r"no space left to write .*step-00000002") as raised:
        store.close()
    assert "MiB free there" in str(raised.value)
    assert names(tmp_path) == ["step-00000001"]
    assert CheckpointStore(tmp_path, keep=1).newest().step == 1
