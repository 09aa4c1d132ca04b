"""What a job does, as one stream of events: JSON lines in OUT/events.jsonl, and on stdout with `--log-format json`.

    {"time": "2026-11-27T07:40:12.345+00:00", "job": "prepare", "event": "progress", "done": 130, "total": 1000, …}

| event | when | further keys |
| --- | --- | --- |
| `start` | the job has claimed its output | `output`, `version`, `host`, `process` |
| `log` | a line for people | `message` |
| `progress` | every ten seconds | `what`, `done`, `total`, `unit`, `failed`, `reasons`, `rate`, `seconds_left` |
| `end` | the output is finished, or the job has ended otherwise | `state`, `seconds`, `summary` or `error` |
| `exit` | last, on stdout only | `code`, `error` |

They hold what a log holds: no report text, and nothing that names a person. An output at an address has no such file,
since nothing can be appended to an object.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megpt.errors import MegptError

FILE = "events.jsonl"
TAIL_BYTES = 1 << 16

_lock = threading.Lock()
_open: list[_Record] = []
"""Of each job that runs in this process, the innermost last."""
_to_stdout = False


@dataclass
class _Record:
    """A job, the file of its events if it has one, and those that are held: not written yet."""

    job: str
    path: Path | None = None
    held: list[str] | None = None

    def write(self, line: str) -> None:
        if self.held is not None:
            self.held.append(line)
        elif self.path is not None:
            # A full disk ends the job by what the job writes. A file that stayed open would fail once more when closed.
            with contextlib.suppress(OSError), self.path.open("a", encoding="utf-8") as file:
                file.write(line)


@contextlib.contextmanager
def recorded(path: Path | None, job: str, *, held: bool = False) -> Iterator[None]:
    """Append the events of the block to a file; None for a job without one.

    Args:
        held: write none of them before `release`: a finished output stays as it is where there is nothing to do.
    """
    _open.append(_Record(job, path, [] if held else None))
    try:
        yield
    finally:
        _open.pop()


def release() -> None:
    """Write the events that were held so far, and each further one at once."""
    record = _open[-1]
    lines, record.held = record.held or [], None
    for line in lines:
        record.write(line)


@contextlib.contextmanager
def on_stdout(wanted: bool) -> Iterator[None]:
    """Write the events of the block to stdout too, in place of lines for people."""
    global _to_stdout
    before, _to_stdout = _to_stdout, wanted
    try:
        yield
    finally:
        _to_stdout = before


def for_people() -> bool:
    """Whether lines for people are wanted, and not events alone."""
    return not _to_stdout


def emit(event: str, **values: Any) -> None:
    """One event, where anybody wants it."""
    if not (_open or _to_stdout):
        return
    record = _open[-1] if _open else _Record("")
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    line = json.dumps({"time": time, "job": record.job, "event": event, **values}, default=str) + "\n"
    with _lock:
        record.write(line)
        if _to_stdout:
            sys.stdout.write(line)
            sys.stdout.flush()


def as_values(error: MegptError) -> dict[str, Any]:
    """An error's screen, for an event."""
    return {"kind": type(error).__name__} | {
        name: value for name in ("what", "where", "cause", "next") if (value := getattr(error, name))
    }


def last_progress(path: Path) -> dict[str, Any] | None:
    """The newest progress of the newest start, from the end of a file of events; None where there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            found = json.loads(line)
        except ValueError:  # cut off by a kill, or by the start of the tail
            continue
        if found.get("event") == "progress":
            return dict(found)
        if found.get("event") == "start":
            return None
    return None
