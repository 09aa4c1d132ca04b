"""Work that does not come on ends, and says what waits for what.

- a line after a minute without a finished study, and then at twice the time; none while studies come, and none for
  what counts whole files only, or steps
- SIGTERM ends a job that waits for what hangs
- at `cluster.hang_s` and `wait_s` the process ends, with its children, by a screen that names who waits for whom; the
  same command resumes
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from small_runs import film, report_rows

from megpt.config import load_config
from megpt.data.studies import write_studies
from megpt.progress import PieceCounts, Progress
from megpt.study import Study, View
from ray_jobs import watchdog as module
from ray_jobs.runtime import cores
from ray_jobs.watchdog import waiting, watchdog


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A watchdog for which seconds are short, and the codes with which it would have ended the process."""
    codes = list[int]()

    def end(code: int) -> None:
        codes.append(code)
        raise SystemExit  # of its thread

    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(module, "TELL_AFTER_S", 0.2)
    monkeypatch.setattr(module, "end_process", end)
    monkeypatch.setattr(module, "end_children", lambda: None)  # the session's cluster is one of them
    return codes


def settings(hang_s: float) -> Any:
    return load_config(None, [f"cluster.hang_s={hang_s}", "cluster.wait_s=0"]).cluster


def test_lines_and_the_end(quick: list[int], capfd: pytest.CaptureFixture[str]) -> None:
    with watchdog(settings(1.0), archive="/mnt/archive"), Progress("generate", 10, live=True) as progress:
        for done in range(6):
            progress.in_flight({"7": PieceCounts(done + 1, Counter())})
            time.sleep(0.1)
        assert "no study" not in capfd.readouterr().err and not quick
        time.sleep(0.6)
        lines = [line for line in capfd.readouterr().err.split("\n") if "no study" in line]
        assert len(lines) == 2 and lines[0].startswith("generate: no study has been finished for 0 s; under way: 7")
        time.sleep(0.6)
    text = capfd.readouterr().err
    assert quick == [1]
    assert (
        "error: generate: no study has been finished for 1 s\n  where: under way: 7\n  cause: a mount or store" in text
    )
    assert "  next:  see whether /mnt/archive answers, then run the same command again: it resumes" in text


def test_what_does_not_count_each_study_is_not_watched(quick: list[int], capfd: pytest.CaptureFixture[str]) -> None:
    with watchdog(settings(0.3), archive=None), Progress("fit-prompts", 10):
        time.sleep(0.5)
    with watchdog(settings(0.3), archive=None):
        time.sleep(0.5)
    assert not quick and "no study" not in capfd.readouterr().err


def test_who_waits() -> None:
    with Progress("prepare", 10) as progress:
        assert waiting(progress) == "nothing has told of any study yet"
        progress.in_flight({str(n): PieceCounts(1, Counter()) for n in range(5)})
        assert waiting(progress) == "under way: 0, 1, 2 and 2 more"


def _until(condition: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def _with_stopped_helpers(command: list[str]) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    itself = psutil.Process(process.pid)

    def all_started() -> list[psutil.Process]:
        found = [child for child in itself.children() if "helper_process" in str(child.cmdline())]
        return found if len(found) == min(cores(), 3) else []

    helpers = _until(all_started)
    for helper in helpers:
        helper.send_signal(signal.SIGSTOP)
    return process, helpers


@pytest.mark.slow
def test_helpers_that_hang(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    studies = (Study(f"study{n:03d}", views=(View("film", data=film(rng, 70)),)) for n in range(80))
    write_studies(tmp_path / "archive", "test", studies, 0)
    where = [f"source={tmp_path / 'archive'}", f"checkpoint={tiny_checkpoint}", f"output={tmp_path / 'out'}"]
    rules = ["generate.shard_size=40", "generate.slots=1", "generate.min_new_tokens=30", "generate.max_new_tokens=30"]
    command = [sys.executable, "-m", "ray_jobs", "generate", *where, *rules]
    hanging = [*command, "cluster.hang_s=30", "cluster.wait_s=0"]  # longer than importing torch takes
    process, helpers = _with_stopped_helpers(hanging)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "error: generate: no study has been finished for " in told
    assert "a process that reads films does not answer" in told and "the model waits for films" in told
    assert f"see whether {tmp_path / 'archive'} answers" in told
    _until(lambda: not any(helper.is_running() and helper.status() != psutil.STATUS_ZOMBIE for helper in helpers))
    process, _ = _with_stopped_helpers(command)
    process.send_signal(signal.SIGTERM)  # does not wait for them either
    _, told = process.communicate(timeout=60)
    assert process.returncode == 143 and "interrupted; run the same command again to resume" in told
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
    assert len(report_rows(tmp_path / "out")) == 80
