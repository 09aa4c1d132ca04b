"""`megpt status OUT`: from files alone.

- half done: done, failed, left and rate; a job that holds the claim is running and has a time left, else it is stopped
- before the shard list, and for other jobs' outputs: running, stopped or finished
- a folder that no job has written is refused
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from megpt.config import Config
from megpt.data.shards import ShardListWriter
from megpt.data.studies import Listed
from megpt.errors import InputError
from megpt.generation.predictions import LIST, Predictions
from megpt.generation.run_status import duration, record_launch
from megpt.output import claim
from megpt.study import Study
from ray_jobs.status import Status


def half_done(folder: Path) -> None:
    """Two shards of 3 and 2 studies; the first is written, with one failure."""
    with ShardListWriter(folder / LIST, 3) as writer:
        for number in range(5):
            writer.add(Listed(Study(f"s{number}")))
        predictions = Predictions(folder, writer.finish())
    record_launch(predictions.folder, started=time.time() - 2)
    predictions.write_shard(0, ({"study_id": f"s{n}", "error": "broken" if n == 1 else None} for n in range(3)))


def test_half_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Config(output=str(tmp_path / "out"))
    with claim(config.output, job="generate", identity={}, config=config) as output:
        assert Status.run(config, str(output.path)) == 0
        assert "running: planning" in capsys.readouterr().out
        half_done(output.path)
        predictions = Predictions.open(output.path)
        assert predictions is not None
        now = predictions.status()
        assert now.state == "running"
        assert (now.total, now.done, now.failed, now.left) == (5, 3, 1, 2)
        assert now.rate is not None and 0.2 < now.rate <= 1.5
        assert now.seconds_left == pytest.approx(2 / now.rate)
        Status.run(config, str(output.path))
        assert "time left" in capsys.readouterr().out
    Status.run(config, str(tmp_path / "out"))
    printed = capsys.readouterr().out
    assert "stopped: 3 of 5 studies done, 1 failed, 2 left" in printed and "resumes" in printed


def test_other_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Config(output=str(tmp_path / "out"))
    with claim(config.output, job="train", identity={}, config=config) as output:
        Status.run(config, str(output.path))
        output.finish()
    Status.run(config, str(tmp_path / "out"))
    assert capsys.readouterr().out.splitlines()[1::2] == ["running", "finished"]


def test_a_foreign_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not an output of megpt"):
        Status.run(Config(), str(tmp_path))


def test_duration() -> None:
    assert [duration(s) for s in (4, 65, 3725)] == ["4 s", "1 min 05 s", "1 h 02 min"]
