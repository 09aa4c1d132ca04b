"""`megpt status OUT`: from files alone.

- half done: done, failed, left and rate; a job that holds the claim is running and has a time left, else it is stopped
- before the shard list, and for other jobs' outputs: running, stopped or finished
- for programs, as JSON; with the unfinished shards of a running job; again and again until the job has ended
- a folder that no job has written is refused
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from pathlib import Path

import pytest

from megpt import events
from megpt.config import Config
from megpt.data.shards import ShardListWriter
from megpt.data.studies import Listed
from megpt.errors import InputError
from megpt.generation.predictions import LIST, Predictions
from megpt.generation.run_status import duration, record_launch
from megpt.output import claim
from megpt.progress import PieceCounts, Progress
from megpt.study import Study
from ray_jobs import status
from ray_jobs.__main__ import main
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


def test_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    with claim(out, job="generate", identity={}, config=Config()) as output:
        assert main(["status", str(out), "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {
            **{"job": "generate", "output": str(out), "state": "running", "reasons": {}},
            **dict.fromkeys(("studies", "done", "failed", "left", "rate", "seconds_left")),
        }
        half_done(output.path)
        main(["status", str(out), "--json"])
        found = json.loads(capsys.readouterr().out)
        assert (found["studies"], found["done"], found["failed"], found["left"]) == (5, 3, 1, 2)
        assert found["reasons"] == {"broken": 1} and found["rate"] > 0 and found["seconds_left"] > 0
        # a running job tells of its unfinished shards too; what an earlier start said does not count
        with events.recorded(out / events.FILE, "generate"):
            events.emit("start")
            bar = Progress("generate", 5, start=3, failed={"broken": 1})
            bar.in_flight({"1": PieceCounts(1, Counter({"missing file": 1}))})
            bar._tell(line=False)
            main(["status", str(out), "--json"])
            found = json.loads(capsys.readouterr().out)
            assert (found["done"], found["failed"], found["left"]) == (4, 2, 1)
            assert found["reasons"] == {"broken": 1, "missing file": 1}
            main(["status", str(out)])
            assert "running: 4 of 5 studies done, 2 failed, 1 left\nfailed: 1 × broken, 1 × missing file\n" in (
                capsys.readouterr().out
            )
            events.emit("start")
        main(["status", str(out), "--json"])
        assert json.loads(capsys.readouterr().out)["done"] == 3
    main(["status", str(out), "--json"])
    assert json.loads(capsys.readouterr().out)["state"] == "stopped"


def test_watched_until_it_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "WATCH_EVERY_S", 0.05)
    out, looked = tmp_path / "out", iter(range(100))
    with contextlib.ExitStack() as claimed:
        output = claimed.enter_context(claim(out, job="generate", identity={}, config=Config()))
        half_done(output.path)

        def look(path: Path) -> status.OutputState:
            if next(looked) == 3:
                claimed.close()
            return report(path)

        report = status.look
        monkeypatch.setattr(status, "look", look)
        assert main(["status", str(out), "--watch", "--json"]) == 0
    states = [json.loads(line)["state"] for line in capsys.readouterr().out.splitlines()]
    assert states == ["running", "running", "running", "stopped"]
    assert main(["status", str(out), "--watch"]) == 0
    assert "stopped: 3 of 5 studies done" in capsys.readouterr().out


def test_a_foreign_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not an output of megpt"):
        Status.run(Config(), str(tmp_path))


def test_duration() -> None:
    assert [duration(s) for s in (4, 65, 3725)] == ["4 s", "1 min 05 s", "1 h 02 min"]
