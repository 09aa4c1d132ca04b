"""`megpt generate` while the ground moves: nodes that come and go, a disk that fills.

- when the only node with a GPU is gone, the job waits `cluster.wait_s` and ends with one screen
- a pool of `cluster.num_workers=[1,4]` grows when a node is added; half a GPU an actor puts two of them on one
- `megpt status` tells where a running job is; `--limit` is the number of studies
- SIGKILL of a raylet and its actors in the middle of their shards: the others do these too, nothing waits for the lost
  node, and the table is that of an uninterrupted run, study by study
- a disk that fills in the middle: exit code 1, one screen; the same command after space was freed: the same table
- actors that fill the cluster leave room for their decoding tasks
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ray_nodes import RayNodes
from small_runs import exact, report_rows

from megpt.config import Config, load_config
from megpt.data.growth import Choice, Intake
from megpt.data.sources import open_source
from megpt.data.studies import write_studies
from megpt.generation.predictions import Predictions, finished_shards
from megpt.generation.writer import ReportWriter
from megpt.study import Study, View
from ray_jobs.__main__ import main
from ray_jobs.generate import worker
from ray_jobs.generate.worker import decode
from ray_jobs.status import Status

pytestmark = pytest.mark.slow

STUDIES, LIMIT, SHARD = 50, 46, 2
SHARDS = LIMIT // SHARD
LAUNCHED = "ShardWorker"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)

    def study(number: int) -> Study:
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (70, 80), dtype=np.uint8)).save(file, "PNG")
        data = b"not a film" if number == 7 else file.getvalue()
        return Study(f"study{number:03d}", f"patient{number}", (View("film", "PA", data),), report="clear")

    folder = tmp_path_factory.mktemp("archive")
    write_studies(folder, "test", map(study, range(STUDIES)), 0)
    return folder


def settings(archive: Path, checkpoint: Path, output: Path) -> list[str]:
    # One study after the other, three beams each: slow enough that nodes can come and go meanwhile.
    rules = {"shard_size": SHARD, "slots": 1, "min_new_tokens": 50, "max_new_tokens": 50}
    where = [f"source={archive}", f"checkpoint={checkpoint}", f"output={output}"]
    return [*where, *(f"generate.{key}={value}" for key, value in rules.items()), "--limit", str(LIMIT)]


@pytest.fixture(scope="module")
def expected(archive: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The table by the library alone, shard by shard, without Ray."""
    words = settings(archive, tiny_checkpoint, tmp_path_factory.mktemp("expected"))
    config = load_config(None, [*words[:-2], f"limit={LIMIT}"])
    source = open_source(archive, data=config.data)
    predictions = Predictions.create(
        Path(str(config.output)), source, split="test", shard_size=SHARD, intake=Intake(choice=Choice(limit=LIMIT))
    )
    writer = ReportWriter(tiny_checkpoint, config.generate, config.seed)
    found = []
    for number in predictions.left():
        chunk = predictions.studies(number)
        pixels = decode(chunk, archive=str(archive), side=64, square=True, max_views=None, max_pixels=10**8)
        films = [worker._films(study) for study in pixels]
        pairs = zip((listed.study for listed in chunk), films, strict=True)
        found += [exact(prediction.to_row(model="any")) for prediction in writer.write(pairs)]
    return sorted(found, key=lambda row: row["study_id"])


def rows(output: Path) -> list[dict[str, Any]]:
    return sorted(({**row, "model": "any"} for row in report_rows(output)), key=lambda row: row["study_id"])


def wait_for(condition: Callable[[], Any], job: subprocess.Popen[str], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert job.poll() is None, f"the job ended with {job.returncode}"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


@contextlib.contextmanager
def ended(job: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """The job, which does not outlive a test that fails."""
    try:
        yield job
    finally:
        job.kill()
        job.wait()


def test_nodes_come_and_go(
    archive: Path, tiny_checkpoint: Path, expected: list[dict[str, Any]], tmp_path: Path, capfd: Any
) -> None:
    output, log = tmp_path / "out", tmp_path / "log"
    command = [sys.executable, "-m", "ray_jobs", "generate", *settings(archive, tiny_checkpoint, output)]
    command += ["cluster.num_workers=[1,4]", "cluster.gpus_per_worker=0.5", "cluster.wait_s=2"]
    with RayNodes(cpus=1, DS_ACCELERATOR="cpu") as nodes, log.open("w") as file:

        def start() -> subprocess.Popen[str]:
            return subprocess.Popen(command, env=nodes.environment, stdout=file, stderr=file, text=True)

        def done() -> int:
            return len(finished_shards(output))

        only = nodes.add(cpus=2, gpus=1)
        with ended(start()) as job:
            wait_for(lambda: done() and len(nodes.processes(only, LAUNCHED)) == 2, job)
            nodes.kill(only)
            assert job.wait(timeout=120) == 1
        said = log.read_text()
        assert said.endswith(
            "error: no node is left that can hold a worker\n"
            "  where: after 2 s (cluster.wait_s)\n"
            "  cause: the nodes that had the GPUs or CPUs asked for are gone; what was finished is kept\n"
            "  next:  add a node and run the same command again: it resumes\n"
        ), said
        assert "Traceback" not in said, said
        # Its CPU has room for one actor: a second one might not be up when it is stopped, and Ray would wait for it.
        before, first = done(), nodes.add(cpus=1, gpus=1)
        with ended(start()) as job:
            # The first node's actor stops in the middle of its shards, and stays there until it is killed.
            wait_for(lambda: done() > before, job)
            (stopped,) = nodes.processes(first, LAUNCHED)
            os.kill(stopped, signal.SIGSTOP)
            assert done() < SHARDS - 4, "all was done before a node could be lost"
            assert Status.run(Config(), str(output)) == 0
            assert re.search(rf"running: \d+ of {LIMIT} studies done, [01] failed, \d+ left", capfd.readouterr().out)
            second = nodes.add(cpus=2, gpus=1)
            wait_for(lambda: nodes.processes(second, LAUNCHED), job)
            assert nodes.processes(first, LAUNCHED) == [stopped]
            nodes.kill(first)
            assert job.wait(timeout=240) == 0, log.read_text()
    assert rows(output) == expected
    said = log.read_text()
    assert f"generate: {LIMIT} studies, 1 of them without a report, in {output}" in said
    assert "Traceback" not in said, said


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 320 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=320k", "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here: not root, or mounting is forbidden")
    yield folder
    with contextlib.suppress(OSError):
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills(
    archive: Path,
    tiny_checkpoint: Path,
    expected: list[dict[str, Any]],
    small_disk: Path,
    ray_cluster: None,
    capfd: Any,
) -> None:
    import ray

    # Two actors that share all CPUs between them: decoding finds room all the same.
    share = ray.cluster_resources()["CPU"] // 2
    output, ballast = small_disk / "out", small_disk / "ballast"
    command = ["generate", *settings(archive, tiny_checkpoint, output)]
    command += ["cluster.num_workers=2", f"cluster.cpus_per_worker={share}"]
    ballast.write_bytes(b"x" * 230 * 1024)
    assert main(command) == 1
    error = capfd.readouterr().err
    assert re.search(
        rf"^error: no space left to write {re.escape(str(output))}/reports/part-0000\d\d.parquet\n"
        r"  where: 0 MiB free there\n"
        r"  cause: the disk or the quota is full; what was finished before is kept\n"
        r"  next:  free space and run the same command again: it resumes\n$",
        error,
        re.MULTILINE,
    ), error
    assert "Traceback" not in error
    kept = {path.name: path.stat().st_mtime_ns for path in (output / "reports").glob("part-*")}
    assert 0 < len(kept) < SHARDS
    ballast.unlink()
    assert main(command) == 0
    assert rows(output) == expected
    again = {path.name: path.stat().st_mtime_ns for path in (output / "reports").glob("part-*")}
    assert kept.items() <= again.items()
