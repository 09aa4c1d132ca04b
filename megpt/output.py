"""How a job owns the folder it writes: one writer at a time, one config for good, each file whole or absent.

with claim(config.output, job="generate", identity={...}, config=config) as output:
    if output.done: ...                       # nothing to do
    with write_aside(output.path / "x.json") as temporary: temporary.write_text(...)
    output.finish()                           # _SUCCESS, last of all

`inspect` raises what `claim` would raise, and writes nothing: it is the dry run's.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import yaml

from megpt.config import Config
from megpt.errors import InputError, MegptError
from megpt.settings import difference

SUCCESS, RECORD, LOCK = "_SUCCESS", "megpt.yaml", ".lock"
LOCK_TRIES, LOCK_PAUSE_S = 3, 0.1
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


@contextlib.contextmanager
def write_aside(path: str | Path, *, aside: Path | None = None) -> Iterator[Path]:
    """A temporary path beside `path`, or in the folder `aside`, that takes its name only when the block ends well.

    `aside` is for tables: some readers refuse a folder that holds anything but Parquet files. It has to be on the same
    file system.

    Safe against a kill at any moment: the data is synced before the rename, the rename before the folder, so a
    reader meets the old file, the new file, or none, never half of one. A full disk raises MegptError.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    place = aside or path.parent
    place.mkdir(parents=True, exist_ok=True)
    temporary = place / f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp"
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise storage_error(error, path) from error
    except Exception as error:
        # Libraries have errors of their own for a full disk (safetensors, torch).
        if is_full(error):
            raise storage_error(error, path) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def reopen(folder: Path) -> None:
    """Take `_SUCCESS` from a finished output that is about to grow; durable when this returns."""
    if (folder / SUCCESS).exists():
        (folder / SUCCESS).unlink()
        sync_folder(folder)


def write_text(path: str | Path, text: str) -> None:
    """A text file, whole or absent."""
    with write_aside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, tree: Any) -> None:
    """A JSON file for people and programs, whole or absent."""
    write_text(path, json.dumps(tree, indent=1, ensure_ascii=False) + "\n")


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_full(error: BaseException) -> bool:
    """Whether an error says that the disk, the quota or the largest file size is reached."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "No space left on device" in str(error)


def storage_error(error: BaseException, path: str | Path) -> MegptError:
    """An error while writing, as the screen a user can act on."""
    if is_full(error):
        free = shutil.disk_usage(next(p for p in Path(path).absolute().parents if p.exists())).free
        return MegptError(
            f"no space left to write {path}",
            where=f"{free / 2**20:.0f} MiB free there",
            cause="the disk or the quota is full; what was finished before is kept",
            next="free space and run the same command again: it resumes",
        )
    reason = error.strerror if isinstance(error, OSError) else None
    if isinstance(error, OSError) and error.errno in FORBIDDEN:
        return InputError(f"{path} cannot be written", cause=reason, next="choose another output=PATH")
    return MegptError(f"writing {path} failed", cause=type(error).__name__ + (f": {reason}" if reason else ""))


@dataclass(frozen=True)
class Output:
    """A claimed output folder."""

    path: Path
    done: bool

    def finish(self, **summary: Any) -> None:
        """Write `_SUCCESS`, the last thing a job does; `summary` is kept inside as JSON."""
        write_json(self.path / SUCCESS, summary)

    def summary(self) -> dict[str, Any]:
        """What `finish` was given."""
        return dict(json.loads((self.path / SUCCESS).read_text()))

    def discard(self) -> None:
        """Delete the folder: an attempt that could not succeed leaves nothing, so the next may have another config."""
        # Errors do not matter: what cannot be deleted (NFS keeps an open lock) must not hide why it is deleted.
        shutil.rmtree(self.path, ignore_errors=True)


@contextlib.contextmanager
def claim(output: str | Path | None, *, job: str, identity: dict[str, Any], config: Config) -> Iterator[Output]:
    """Take the folder for one job.

    Args:
        identity: what the outputs depend on (settings, fingerprints of inputs); a later run must give the same.

    Raises:
        InputError: the folder holds something else, belongs to another config (differences shown), or another
            process is writing it now.
    """
    if output is None:
        config.require("output")
    path = Path(str(output))
    record = path / RECORD
    _refuse_foreign(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / LOCK).open("a")
    except OSError as error:
        raise storage_error(error, path) from error
    with lock:
        if not _locked(lock):
            raise _busy(path)
        if record.exists():
            _refuse_changes(record, job, identity)
        else:
            write_record(path, job=job, identity=identity, config=config)
        yield Output(path=path, done=(path / SUCCESS).exists())


def write_record(folder: Path, *, job: str, identity: dict[str, Any], config: Config) -> None:
    """Note whose output a folder is, and what it depends on."""
    tree = {"job": job, "identity": _plain(identity), "config": config.model_dump(mode="json")}
    write_text(folder / RECORD, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


def recorded(folder: Path, *, job: str) -> dict[str, Any] | None:
    """The identity that `claim` noted in an output of this job; None where there is none that can be read."""
    try:
        tree = yaml.safe_load((folder / RECORD).read_text(encoding="utf-8"))
        return dict(tree["identity"]) if tree["job"] == job else None
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return None


def inspect(output: str | Path, *, job: str, identity: dict[str, Any]) -> Output:
    """The folder as `claim` would find it.

    Raises:
        InputError: as `claim`, and where the folder could not be made.
    """
    path = Path(output)
    _refuse_foreign(path)
    if is_locked(path):
        raise _busy(path)
    if (path / RECORD).exists():
        _refuse_changes(path / RECORD, job, identity)
    nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        reason = errno.EACCES if nearest.is_dir() else errno.ENOTDIR
        raise storage_error(OSError(reason, os.strerror(reason)), path)
    return Output(path=path, done=(path / SUCCESS).exists())


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


def _plain(identity: dict[str, Any]) -> dict[str, Any]:
    """As it reads back from the record: tuples are lists."""
    return dict(json.loads(json.dumps(identity, default=str)))


def _refuse_foreign(path: Path) -> None:
    foreign = path.is_dir() and not (path / RECORD).exists() and any(p.name != LOCK for p in path.iterdir())
    if path.is_file() or foreign:
        raise InputError(
            f"output {path} exists and was not written by megpt",
            cause="it holds other files, which are never overwritten",
            next="choose another output=PATH",
        )


def _busy(path: Path) -> InputError:
    return InputError(
        f"another job is writing {path} now",
        cause="two jobs on one output would write studies twice",
        next=f"wait for it (megpt status {path}), or choose another output=PATH",
    )


def _locked(lock: TextIO) -> bool:
    """Take the lock; asked more than once, because `megpt status` holds it for a moment when it looks."""
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            time.sleep(LOCK_PAUSE_S)
        else:
            return True
    return False


def _refuse_changes(record: Path, job: str, identity: dict[str, Any]) -> None:
    try:
        old = yaml.safe_load(record.read_text(encoding="utf-8"))
        was_job, was = old["job"], old["identity"]
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError):
        raise InputError(
            f"{record} is damaged", next="delete the output folder or choose another output=PATH"
        ) from None
    changed = difference(was, _plain(identity)) if was_job == job else [f"job: {was_job} → {job}"]
    if changed:
        raise InputError(
            f"output {record.parent} exists from another config",
            where="; ".join(changed),
            cause="mixing two configs in one output would give numbers that belong to neither",
            next="choose another output=PATH, or delete the folder",
        )
