"""How far a generation run is, from its files alone: no process is asked, so it works after a kill as well."""

from __future__ import annotations

import fcntl
import time
from dataclasses import dataclass
from pathlib import Path

from megpt.generation import table
from megpt.generation.plan import Plan, load_plan
from megpt.output import LOCK, SUCCESS


@dataclass(frozen=True)
class Status:
    """Studies, and how fast they come. `rate` is of the last start, None before its first shard."""

    total: int
    done: int
    failed: int
    rate: float | None
    state: str
    """finished, running, or stopped."""

    @property
    def left(self) -> int:
        return self.total - self.done

    @property
    def seconds_left(self) -> float | None:
        return self.left / self.rate if self.rate else None

    def lines(self) -> list[str]:
        """For a person."""
        found = [f"{self.state}: {self.done} of {self.total} studies done, {self.failed} failed, {self.left} left"]
        if self.rate:
            found.append(f"rate: {self.rate:.1f} studies/s")
        if self.left and self.rate and self.state == "running":
            found.append(f"time left: {duration(self.seconds_left or 0)}")
        if self.state == "stopped":
            found.append("run the same command again: it resumes")
        return found


def read_status(folder: Path) -> Status | None:
    """The state of a predictions/ folder; None before its plan is complete."""
    plan = load_plan(folder)
    if plan is None:
        return None
    shards = sorted(n for n in table.finished_shards(folder) if n < plan.shards)
    paths = {n: table.shard_path(folder, n) for n in shards}
    done = sum(plan.rows_in(n) for n in shards)
    failed = sum(table.count_failed(path) for path in paths.values())
    if (folder / SUCCESS).exists():
        state = "finished"
    else:
        state = "running" if is_locked(folder) else "stopped"
    return Status(plan.studies, done, failed, _rate(folder, plan, paths, state), state)


def _rate(folder: Path, plan: Plan, paths: dict[int, Path], state: str) -> float | None:
    """Studies per second since the last start; until the last file, or until now while the job runs."""
    starts = [launch["started"] for launch in table.launches(folder) if "started" in launch]
    if not starts:
        return None
    written = {n: path.stat().st_mtime for n, path in paths.items()}
    recent = {n: at for n, at in written.items() if at >= starts[-1]}
    if not recent:
        return None
    end = time.time() if state == "running" else max(recent.values())
    return sum(plan.rows_in(n) for n in recent) / max(end - starts[-1], 1e-3)


def is_locked(folder: Path) -> bool:
    """Whether a job holds the folder's claim now (on this machine, or on a file system that shares locks)."""
    try:
        with (folder / LOCK).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def duration(seconds: float) -> str:
    """3725 → 1 h 02 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
