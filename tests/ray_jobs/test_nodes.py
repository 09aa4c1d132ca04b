"""Nodes that are not what they say.

- A look at a node names: GPUs that torch cannot use, too old for bf16, or held by another program; a path that is not
  there, is an empty mount point, or does not answer; an output that is another folder, or full; a wrong clock; other
  versions.
- A job leaves such a node out, says why, and does everything on the others; with `cluster.on_bad_node=stop` it ends.
- `megpt doctor` shows all nodes in a table, and ends with exit code 1; a key in the upload is named too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.dataset as ds
import pytest
import torch
from make_films import gradient, png, write
from ray_nodes import RayNodes

from megpt.config import Config
from megpt.errors import MegptError
from ray_jobs import health
from ray_jobs.doctor import upload_faults
from ray_jobs.health import Needs, examine, gpu_faults, installed, within
from ray_jobs.nodes import needs_of
from ray_jobs.runtime import require_gpu

A10 = ("A10G", [8, 6], 22 * 2**30, 24 * 2**30)
ROOT = Path(__file__).resolve().parents[2]


def found(needs: Needs | None = None, promised: float = 0, **changes) -> list[str]:
    _, faults = examine(needs or Needs(), promised, installed() | changes, time.time())
    return [fault.found for fault in faults]


def test_a_good_node(tmp_path):
    (tmp_path / "probe").touch()
    needs = Needs(reads={"source": str(tmp_path)}, output=str(tmp_path), probe=str(tmp_path / "probe"))
    assert found(needs) == []


@pytest.mark.parametrize(
    ("gpus", "said", "promised", "bf16", "expected"),
    [
        ([A10], [], 1, True, []),
        ([], ["The NVIDIA driver on your system is too old (found version 12080)."], 1, False,
         ["torch can use 0 GPUs (The NVIDIA driver on your system is too old (found version 12080).)"]),
        ([A10], [], 4, False, ["torch can use 1 GPUs"]),
        ([("T4", [7, 5], 15 * 2**30, 16 * 2**30)], [], 1, True, ["T4 has compute capability 7.5"]),
        ([("T4", [7, 5], 15 * 2**30, 16 * 2**30)], [], 1, False, []),
        ([("A10G", [8, 6], 4 * 2**30, 24 * 2**30)], [], 1, False, ["another program holds 20 of 24 GiB of A10G"]),
    ],
)  # fmt: skip
def test_gpus(gpus, said, promised, bf16, expected):
    seen = {"gpus": gpus, "said": said, "cuda": "13.2"}
    assert [fault.found for fault in gpu_faults(seen, promised, bf16, {})] == expected


def test_a_promised_gpu_that_this_machine_does_not_have():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert found(Needs(gpus=True), promised=1)[0].startswith("torch can use 0 GPUs")
    assert found(Needs(gpus=False), promised=1) == []


def test_who_wants_gpus(monkeypatch):
    config = Config().overridden({"cluster.gpus_per_worker": 1})
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    assert needs_of(config, ("generate",)).gpus and not needs_of(Config(), ("generate",)).gpus
    if not torch.cuda.is_available():
        with pytest.raises(MegptError, match="promised a GPU, and torch cannot use one there"):
            require_gpu(config.cluster)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert not needs_of(config, ("generate",)).gpus
    require_gpu(config.cluster)


def test_paths(tmp_path):
    (tmp_path / "empty").mkdir()
    needs = Needs(reads={"source": str(tmp_path / "empty"), "checkpoint": str(tmp_path / "none")})
    assert found(needs) == ["source is not there, or an empty folder", "checkpoint is not there, or an empty folder"]


def test_an_output_that_is_another_folder_or_full(tmp_path, monkeypatch):
    needs = Needs(output=str(tmp_path), probe=str(tmp_path / "none"))
    assert found(needs) == [f"output: {tmp_path} is another folder there"]
    monkeypatch.setattr(health, "MIN_FREE", 2**60)
    assert [text.partition(":")[0] for text in found(Needs(output=str(tmp_path)))] == ["temporary files", "output"]


def test_clock_and_versions():
    _, faults = examine(Needs(), 0, installed(), time.time() + 3600)
    assert [fault.found for fault in faults] == ["its clock is -3600 s off"]
    assert found(torch="1.0") == [f"torch {installed()['torch']}"]


def test_a_mount_that_does_not_answer():
    with pytest.raises(TimeoutError):
        within(0.1, lambda: time.sleep(5))
    assert within(1, lambda: Path("/nowhere").stat()) is False


def test_a_key_in_the_upload_is_named(tmp_path, capsys):
    (tmp_path / ".rayignore").write_text("/runs\n")
    (tmp_path / "runs").mkdir()
    for name in ("runs/a.dcm", "scan.DCM", ".env", "job.py"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "notes.py").write_text("key = '-----BEGIN RSA PRIVATE KEY-----'")
    assert upload_faults(tmp_path) == [".env", "notes.py", "scan.DCM"]
    assert "would upload 5 files, 0.0 MB" in capsys.readouterr().err
    assert upload_faults(ROOT) == []


def make_archive(folder: Path) -> Path:
    for number in range(4):
        write(folder / f"S{number}" / "0.png", png(gradient(20 + number)))
    return folder


def megpt(nodes: RayNodes, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ray_jobs", *words],
        env=nodes.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.skipif(
    os.getuid() != 0 or not shutil.which("unshare"), reason="a node without a mount needs root and unshare (util-linux)"
)
def test_a_node_without_the_archive_is_left_out(tmp_path):
    archive = make_archive(tmp_path / "archive")
    with RayNodes(cpus=2) as nodes:
        start = f"mount -t tmpfs none {archive} && exec {sys.executable} -m ray.scripts.scripts start"
        blind = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", f"{start} --address={nodes.address} --block --num-cpus=2"],
            env=nodes.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            doctor = ["doctor", f"source={archive}", f"output={tmp_path / 'out'}"]
            deadline = time.monotonic() + 60
            while "1 faults" not in (told := megpt(nodes, *doctor)).stdout and time.monotonic() < deadline:
                time.sleep(1)
            assert told.returncode == 1 and "source is not there, or an empty folder" in told.stdout, told.stdout
            prepare = ["prepare", f"source={archive}", f"output={tmp_path / 'out'}", "prepare.shard_size=1"]
            stopped = megpt(nodes, *prepare, "cluster.on_bad_node=stop")
            assert stopped.returncode == 1 and "1 of 2 nodes cannot do this job" in stopped.stdout, stopped.stdout
            done = megpt(nodes, *prepare)
            assert done.returncode == 0 and "source is not there, or an empty folder" in done.stdout, done.stdout
            assert ds.dataset(tmp_path / "out" / "data", partitioning="hive").count_rows() == 4
            summary = json.loads((tmp_path / "out" / "_SUCCESS").read_text())
            assert summary["failed"] == 0
        finally:
            os.killpg(blind.pid, 15)
            blind.wait(30)
