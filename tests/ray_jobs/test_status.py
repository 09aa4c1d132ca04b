"""`megpt status OUT`: from files alone.

- half done: done, failed, left and rate; a job that holds the claim is running and has a time left, else it is stopped
- before the plan, and for other jobs' outputs: running, stopped or finished
- a folder that no job has written is refused
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from megpt.config import Config
from megpt.data.studies import write_rows
from megpt.errors import InputError
from megpt.generation import table
from megpt.generation.plan import PLAN_SCHEMA, part_path
from megpt.generation.status import duration, read_status
from megpt.output import claim
from ray_jobs.status import Status


def half_done(folder: Path) -> None:
    """Two shards of 3 and 2 studies, the first of them written with one failure."""
    for shard, count in enumerate((3, 2)):
        rows = ({"study_id": f"s{shard}{n}"} for n in range(count))
        write_rows(part_path(folder, shard), rows, PLAN_SCHEMA)
    (folder / "plan" / "plan.json").write_text('{"studies": 5, "shard_size": 3}')
    table.record_launch(folder, started=time.time() - 2)
    rows = ({"study_id": f"s0{n}", "error": "broken" if n == 1 else None} for n in range(3))
    table.write_shard(folder, 0, rows)


def test_half_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Config(output=str(tmp_path / "out"))
    with claim(config.output, job="generate", identity={}, config=config) as output:
        assert Status.run(config, str(output.path)) == 0
        assert "running: planning" in capsys.readouterr().out
        half_done(output.path)
        now = read_status(output.path)
        assert now is not None and now.state == "running"
        assert (now.total, now.done, now.failed, now.left) == (5, 3, 1, 2)
        assert now.rate is not None and 0.2 < now.rate <= 1.5
        assert now.seconds_left == pytest.approx(2 / now.rate)
        Status.run(config, str(output.path))
        assert "time left" in capsys.readouterr().out
    Status.run(config, str(tmp_path / "out"))
    said = capsys.readouterr().out
    assert "stopped: 3 of 5 studies done, 1 failed, 2 left" in said and "resumes" in said


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
