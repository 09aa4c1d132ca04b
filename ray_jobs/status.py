"""What an output folder holds, from its files alone.

    megpt status runs/reports
    megpt status runs/reports --json          # one object
    megpt status runs/reports --watch         # anew every two seconds, until the job has ended

While a job runs, its events (megpt/events.py) say how far its unfinished shards have come. Exit code 0 whatever the
state; 2 when the folder is not an output of megpt.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.live import Live

from megpt import events
from megpt.config import Config
from megpt.data.prepare import WORK, marks
from megpt.data.shards import ShardList
from megpt.errors import InputError, printable
from megpt.generation.predictions import Predictions
from megpt.generation.run_status import RunStatus
from megpt.output import RECORD, SUCCESS, is_locked
from megpt.places import is_address, place, screen

WATCH_EVERY_S = 2.0


@dataclass(frozen=True)
class OutputState:
    """What is known of an output; `run` where its job counts studies."""

    job: str
    output: str
    state: str
    """finished, running or stopped."""
    run: RunStatus | None = None

    def values(self) -> dict[str, Any]:
        """For programs. Rates are in studies a second; what is not known is null."""
        run = self.run
        numbers = ("studies", "done", "failed", "left", "rate", "seconds_left")
        known = (run.total, run.done, run.failed, run.left, run.rate, run.seconds_left) if run else (None,) * 6
        reasons = dict(run.reasons) if run else {}
        about = {"job": self.job, "output": self.output, "state": self.state}
        return about | dict(zip(numbers, known, strict=True)) | {"reasons": reasons}

    def lines(self) -> list[str]:
        """For people."""
        title = printable(f"{self.job}: {self.output}")
        if self.run is not None:
            return [title, *self.run.lines()]
        if self.state == "stopped":
            return [title, "stopped", "run the same command again: it resumes"]
        return [title, "running: planning" if self.state == "running" and self.job == "generate" else self.state]


class Status:
    """Prints job, studies done, failed and left, rate and time left."""

    name = "status"
    reads: tuple[str, ...] = ()
    """No setting: the folder says everything."""

    @staticmethod
    def run(config: Config, folder: str, *, dry_run: bool = False, as_json: bool = False, watch: bool = False) -> int:
        """Reads only, so `dry_run` changes nothing.

        Args:
            as_json: one object; with `watch`, one a line whenever it is asked.
            watch: go on until the job has ended.

        Raises:
            InputError: no such folder, or one that no job has written.
        """
        path = place(folder)
        if not watch:
            report = look(path)
            print(json.dumps(report.values()) if as_json else "\n".join(report.lines()))
            return 0
        with contextlib.suppress(KeyboardInterrupt):
            _watch(path, as_json=as_json)
        return 0


def _watch(path: Path, *, as_json: bool) -> None:
    report, console = look(path), Console(highlight=False)
    with Live(console=console, auto_refresh=False) if console.is_terminal and not as_json else _Lines(as_json) as shown:
        while True:
            shown.update("\n".join(report.lines()) if not as_json else json.dumps(report.values()), refresh=True)
            if report.state != "running":
                return
            time.sleep(WATCH_EVERY_S)
            report = look(path)


class _Lines(contextlib.AbstractContextManager["_Lines"]):
    """For a pipe or a log, what `Live` is for a terminal: text whenever it has changed."""

    def __init__(self, always: bool):
        self._always, self._last = always, ""

    def update(self, text: str, *, refresh: bool) -> None:
        if self._always or text != self._last:
            print(text, flush=True)
        self._last = text

    def __exit__(self, *error: object) -> None:
        return None


def look(path: Path) -> OutputState:
    """What an output holds now.

    Raises:
        InputError: no such folder, or one that no job has written.
    """
    job = _job_of(path)
    if (path / SUCCESS).exists():
        state = "finished"
    else:
        state = "running" if is_locked(path) else "stopped"
    told = None if is_address(path) or state != "running" else events.last_progress(path / events.FILE)
    if told and told["unit"] == "studies" and told["what"] == job:
        total, done, failed = told["total"] or told["done"], told["done"], told["failed"]
        run = RunStatus(total, done, failed, told["rate"] or None, state, told["reasons"])
    else:  # asked last, since an archive has thousands of shards
        run = _counted(path, job, state)
    return OutputState(job, str(path), state, run)


def _job_of(path: Path) -> str:
    try:
        record = yaml.safe_load((path / RECORD).read_text(encoding="utf-8"))
        return str(record["job"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        if (refused := screen(error)) is not None:
            raise refused from None
        raise InputError(
            f"{path} is not an output of megpt",
            cause=f"it has no readable {RECORD}" if path.is_dir() else "there is no such folder",
            next="give the folder that was output=PATH",
        ) from None


def _counted(path: Path, job: str, state: str) -> RunStatus | None:
    """The studies of finished shards; None before there is a list of them, and for jobs without one."""
    if job == "generate":
        predictions = Predictions.open(path)
        return None if predictions is None else replace(predictions.status(), reasons=predictions.reasons())
    if job != "prepare" or (shards := ShardList.load(path / WORK / "plan")) is None:
        return None
    counts, reasons = Counter[str](), Counter[str]()
    for mark in marks(path, shards):
        counts.update({name: mark[name] for name in ("studies", "failed")})
        reasons.update(mark["reasons"])
    return RunStatus(shards.studies, counts["studies"], counts["failed"], None, state, reasons)
