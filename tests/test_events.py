"""The stream of events: JSON lines in the output, and on stdout with `--log-format json`.

- a job's start, lines, progress and end, with its summary or its error; each start appends
- with `--log-format json` stdout holds nothing else, and stderr nothing; the last line has the exit code
- no text of a report; a line that a kill cut off is passed over
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_jobs import LocalPrepare
from PIL import Image

from megpt import events
from megpt.config import load_config
from megpt.errors import TooManyFailed
from megpt.progress import Progress, log
from ray_jobs import entries
from ray_jobs.__main__ import main

TEXT = "Mrs Example has a normal heart."


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    rows = ["study_id,image_path,report"]
    for n in range(4):
        Image.fromarray(np.full((8, 8), n, np.uint8)).save(tmp_path / f"{n}.png")
        rows.append(f"s{n},{n}.png,{TEXT}")
    (tmp_path / "3.png").write_bytes(b"")
    (tmp_path / "manifest.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "manifest.csv"


def test_the_file_in_the_output(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = [f"source={archive}", f"output={out}", "prepare.max_failed_fraction=0.5"]
    assert LocalPrepare.run(load_config(None, job)) == 0
    found = read(out / events.FILE)
    assert {event["job"] for event in found} == {"prepare"}
    assert [event["event"] for event in found if event["event"] != "log"] == ["start", "end"]
    assert found[0]["output"] == str(out) and found[0]["time"].endswith("+00:00")
    assert any("manifest: 4 studies" in event.get("message", "") for event in found)
    assert (found[-1]["state"], found[-1]["summary"]["failed"]) == ("finished", 1)
    assert TEXT.split()[1] not in (out / events.FILE).read_text()
    # with nothing to do the output stays as it is; any other start appends
    before = (out / events.FILE).read_bytes()
    assert LocalPrepare.run(load_config(None, job)) == 0
    assert (out / events.FILE).read_bytes() == before
    (out / "_SUCCESS").unlink()
    assert LocalPrepare.run(load_config(None, job)) == 0
    assert [event["event"] for event in read(out / events.FILE)].count("start") == 2
    with pytest.raises(TooManyFailed):
        LocalPrepare.run(load_config(None, [*job[:2], "prepare.max_failed_fraction=0"]))


def test_a_full_disk_ends_no_job() -> None:
    with events.recorded(Path("/dev/full"), "generate"):
        for _ in range(3):
            events.emit("start")


def test_progress_is_an_event(tmp_path: Path) -> None:
    path = tmp_path / events.FILE
    with events.recorded(path, "generate"):
        assert events.last_progress(path) is None
        events.emit("start")
        with Progress("generate", 10, failed={"empty file": 1}, start=1) as bar:
            bar.advance(4, {"missing file": 2})
        log("generate: a line")
        with path.open("a") as file:
            file.write('{"event": "progr')  # cut off by a kill
    found = events.last_progress(path)
    assert found is not None
    assert (found["what"], found["done"], found["total"], found["unit"]) == ("generate", 5, 10, "studies")
    assert (found["failed"], found["reasons"]) == (3, {"missing file": 2, "empty file": 1})
    events.emit("log", message="nobody listens")


def test_stdout(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "find", lambda name: LocalPrepare)
    monkeypatch.setattr("ray_jobs.__main__.find", lambda name: LocalPrepare)
    out = tmp_path / "out"
    job = ["prepare", f"source={archive}", f"output={out}", "--log-format", "json"]
    assert main(job) == 3
    captured = capsys.readouterr()
    found = [json.loads(line) for line in captured.out.splitlines()]
    assert captured.err == ""
    assert [event["event"] for event in found if event["event"] != "log"] == ["start", "end", "exit"]
    assert found[-1]["code"] == 3 and found[-1]["error"]["what"].startswith("1 of 4 studies are unreadable")
    assert main([*job[:2], f"output={tmp_path}/manifest.csv", "--log-format=json"]) == 2
    (event,) = [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"exit"' in line]
    assert (event["code"], event["error"]["kind"]) == (2, "InputError")
    # and afterwards as before
    monkeypatch.undo()
    assert main(["status", str(out), "--log-format", "text"]) == 0
    assert capsys.readouterr().out.startswith("prepare: ")
