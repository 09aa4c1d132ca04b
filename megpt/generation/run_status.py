"""How far a generation run has come, and when it was started."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megpt.errors import printable
from megpt.output import write_text
from megpt.places import is_address
from megpt.progress import NAMED

LAUNCHES = "launches.jsonl"


@dataclass(frozen=True)
class RunStatus:
    """Numbers of studies. `rate` is that of the last start, in studies per second; None before its first shard."""

    total: int
    done: int
    failed: int
    rate: float | None
    state: str
    """finished, running, or stopped."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Failed studies by reason, where that is known."""

    @property
    def left(self) -> int:
        return self.total - self.done

    @property
    def seconds_left(self) -> float | None:
        return self.left / self.rate if self.rate else None

    def lines(self) -> list[str]:
        """The status in words."""
        lines = [f"{self.state}: {self.done} of {self.total} studies done, {self.failed} failed, {self.left} left"]
        if self.reasons:
            told = sorted(self.reasons.items(), key=lambda pair: -pair[1])
            lines.append("failed: " + ", ".join(f"{count} × {printable(reason)}" for reason, count in told[:NAMED]))
        if self.rate:
            lines.append(f"rate: {self.rate:.1f} studies/s")
        if self.left and self.rate and self.state == "running":
            lines.append(f"time left: {duration(self.seconds_left or 0)}")
        if self.state == "stopped":
            lines.append("run the same command again: it resumes")
        return lines


def record_launch(folder: Path, **values: Any) -> None:
    """Add a line about this start of the job."""
    path, line = folder / LAUNCHES, json.dumps(values) + "\n"
    if is_address(path):  # nothing can be appended to an object
        write_text(path, (path.read_text() if path.is_file() else "") + line)
        return
    with path.open("a") as file:
        file.write(line)


def launches(folder: Path) -> list[dict[str, Any]]:
    """The lines of all starts, without those that a kill cut off."""
    path, found = folder / LAUNCHES, []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def duration(seconds: float) -> str:
    """3725 → 1 h 02 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
