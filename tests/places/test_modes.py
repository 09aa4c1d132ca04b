"""Who may read what is written.

- outputs follow the user's umask, Parquet, JSON and weights alike, also where a library writes by way of a private file
- folders of this machine that hold texts between two processes are the user's alone, or refused
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from megpt.config import Config
from megpt.data.studies import write_studies
from megpt.errors import MegptError
from megpt.model.prompts import PromptBank
from megpt.output import claim, write_aside, write_json
from megpt.places.whole import private_folder
from megpt.study import Study
from megpt.training.checkpoints import CheckpointStore


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o027, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_outputs_follow_the_umask(tmp_path: Path, umask: int) -> None:
    with claim(tmp_path / "out", job="prepare", identity={}, config=Config()) as output:
        write_studies(output.path, "train", [Study("s1", report="clear")], 0)
        write_json(output.path / "run.json", {})
        with write_aside(output.path / "model.safetensors") as temporary:
            save_file({"w": torch.zeros(2)}, temporary)
        with write_aside(output.path / "t.parquet") as temporary:
            pq.write_table(pa.table({"a": [1]}), temporary)
        PromptBank(("one", "two"), centroids=torch.zeros(2, 2)).save(output.path / "prompts")
        store = CheckpointStore(output.path / "steps", keep=1)
        store.save({"master/w": torch.zeros(2)}, {"step": 1, "failed": {}})
        store.close()
        output.finish()
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert {path.name: oct(mode(path)) for path in files} == dict.fromkeys(
        (path.name for path in files), oct(0o666 & ~umask)
    )


def test_what_lies_between_two_processes_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    root = tmp_path / f"megpt-{os.getuid()}"
    assert private_folder("samples") == root / "samples" and mode(root) == 0o700
    root.chmod(0o755)  # an earlier version made it so
    private_folder("samples")
    assert mode(root) == 0o700
    root.rmdir()
    (tmp_path / "elsewhere").mkdir()
    root.symlink_to(tmp_path / "elsewhere")  # as somebody else might
    with pytest.raises(MegptError, match="belongs to somebody else"):
        private_folder("samples")
