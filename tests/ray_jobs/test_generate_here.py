"""`megpt generate` with one worker and no cluster around: in the command's own process, without Ray.

- SIGTERM in the middle: exit code 143, no process is left; the same command then writes the library's own table, study
  by study, ends with exit code 3 as on Ray, and has not imported Ray; run again, it has not imported torch either
- a film that ends the process which decodes it costs its own study; an archive that is gone ends the job
- a GPU that is not there, and more CPUs than there are, are refused as on Ray; threads of torch stay as they were
- Ray is used where `cluster.ray=always`, several workers, a running cluster or `RAY_ADDRESS` ask for it
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from deadly_films import DEADLY, crashing
from small_runs import exact, film, report_rows

from megpt.config import ClusterConfig, Config, load_config
from megpt.data.sources import open_source
from megpt.data.studies import write_studies
from megpt.errors import from_json
from megpt.generation.predictions import Predictions, finished_shards
from megpt.generation.writer import ReportWriter
from megpt.progress import Progress
from megpt.study import Study, View
from ray_jobs.__main__ import main
from ray_jobs.counting import Count
from ray_jobs.generate import here
from ray_jobs.generate.worker import _films, decode
from ray_jobs.runtime import alone

BROKEN, SHARD, SHARDS = 5, 4, 4


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("archive"), np.random.default_rng(0)
    films = [b"not a film" if n == BROKEN else film(rng, 70) for n in range(SHARD * SHARDS - 1)]
    studies = (Study(f"study{n:03d}", f"p{n}", (View("film", "PA", data),)) for n, data in enumerate(films))
    write_studies(folder, "test", studies, 0)
    return folder


def settings(archive: Path, checkpoint: Path, output: Path, *more: str) -> list[str]:
    rules = {"shard_size": SHARD, "slots": 1, "min_new_tokens": 40, "max_new_tokens": 40}
    where = [f"source={archive}", f"checkpoint={checkpoint}", f"output={output}"]
    return [*where, *(f"generate.{key}={value}" for key, value in rules.items()), *more]


def rows(output: Path) -> dict[str, dict[str, Any]]:
    return {row["study_id"]: {**row, "model": ""} for row in report_rows(output)}


def expected(config: Config) -> Iterator[dict[str, Any]]:
    """The rows by the library alone, shard by shard."""
    source = open_source(str(config.source), data=config.data)
    predictions = Predictions.create(Path(str(config.output)), source, split="all", shard_size=SHARD)
    writer = ReportWriter(str(config.checkpoint), config.generate, config.seed)
    for number in predictions.left():
        chunk = predictions.studies(number)
        pixels = decode(chunk, archive=str(config.source), side=64, square=True, max_views=None, max_pixels=10**8)
        pairs = zip((listed.study for listed in chunk), map(_films, pixels), strict=True)
        yield from (exact(prediction.to_row(model="")) for prediction in writer.write(pairs))


@pytest.mark.slow
def test_stopped_and_run_again(archive: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "ray_jobs", "generate"]
    command += settings(archive, tiny_checkpoint, tmp_path / "out")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(command, env=environment, stderr=said)
    deadline = time.monotonic() + 120
    while not finished_shards(tmp_path / "out"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143 and children
    assert "interrupted; run the same command again to resume\n" in (tmp_path / "said").read_text()
    assert not any(child.is_running() for child in children)
    assert 0 < len(finished_shards(tmp_path / "out")) < SHARDS

    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "torch" in imported and "ray" not in imported
    config = load_config(None, settings(archive, tiny_checkpoint, tmp_path / "expected"))
    assert rows(tmp_path / "out") == {row["study_id"]: row for row in expected(config)}
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 3 and "is finished, nothing to do" in again.stderr
    imported = {
        line.rpartition("|")[2].strip() for line in again.stderr.splitlines() if line.startswith("import time:")
    }
    assert "megpt.config" in imported and not imported & {"torch", "transformers", "ray"}


@pytest.mark.slow
def test_films_that_end_a_process_and_archives_that_are_gone(
    archive: Path, tiny_checkpoint: Path, tmp_path: Path, without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["generate", *settings(archive, tiny_checkpoint, tmp_path / "out", "generate.max_new_tokens=4")]
    command += ["generate.min_new_tokens=1", "limit=6", "generate.max_failed_fraction=1"]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(here, "decode", crashing)
            assert main(command) == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    errors = {name: row["error"] for name, row in rows(tmp_path / "out").items() if row["error"]}
    assert errors.keys() == {DEADLY, f"study{BROKEN:03d}"}
    assert errors[DEADLY] == "decoding it ends the process"

    films = tmp_path / "films"
    films.mkdir()
    (films / "1.png").write_bytes(film(np.random.default_rng(0)))
    config = load_config(None, settings(films, tiny_checkpoint, tmp_path / "gone"))
    predictions = Predictions.create(tmp_path / "gone", open_source(films, data=config.data), split="all", shard_size=1)
    films.rename(tmp_path / "elsewhere")
    count = Count(Progress("generate", 1), config.generate)
    (row,) = here.written_here(config, predictions, [0], count, archive=str(films), fingerprint="mark", llm=None)
    assert str(from_json(row["error"])).startswith(f"the archive {films} is not visible on node ")
    assert not finished_shards(tmp_path / "gone")


@pytest.mark.parametrize("asked", ["cluster.gpus_per_worker=1", "cluster.cpus_per_worker=1000"])
def test_what_is_not_there_is_refused(
    asked: str, archive: Path, tiny_checkpoint: Path, tmp_path: Path, without_ray: None, capfd: Any
) -> None:
    if "gpus" in asked and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    command = ["generate", *settings(archive, tiny_checkpoint, tmp_path / "out"), asked]
    assert main(command) == 2
    key, _, count = asked.partition("=")
    said = capfd.readouterr().err
    assert f"error: {key} = {count} × 1 workers, but the cluster has " in said and "  where: this machine\n" in said
    assert not (tmp_path / "out").exists()


def test_where_ray_is_used(without_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert alone(ClusterConfig()) and alone(ClusterConfig(cpus_per_worker=2, gpus_per_worker=1))
    assert not alone(ClusterConfig(ray="always"))
    assert not alone(ClusterConfig(num_workers=2)) and not alone(ClusterConfig(num_workers=(1, 2)))
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    assert not alone(ClusterConfig())
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr("ray_jobs.runtime.started", lambda: True)
    assert not alone(ClusterConfig())
