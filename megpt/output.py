"""How a job owns the folder it writes: one writer at a time, one config for good, each file whole or absent.

with claim(config.output, job="generate", identity={...}, config=config) as output:
    if output.done: ...                       # nothing to do
    with write_aside(output.path / "x.json") as temporary: temporary.write_text(...)
    output.finish()                           # _SUCCESS, last of all

`inspect` raises what `claim` would raise, and writes nothing: it is the dry run's.

The folder may be at an address (megpt/places). A file there is written on this machine and then put, whole or not at
all. Where there are no locks, in a store or on a file system without them, a lease says who writes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import yaml

from megpt.config import Config
from megpt.errors import InputError
from megpt.places import is_address, place
from megpt.places.lease import FOLDER as LEASE
from megpt.places.lease import Taken, is_leased, leased
from megpt.places.whole import is_full, remove_tree, storage_error, sync_folder, write_aside, write_json, write_text
from megpt.progress import log
from megpt.settings import difference

__all__ = [
    "Output",
    "claim",
    "inspect",
    "is_full",
    "is_locked",
    "remove_tree",
    "reopen",
    "storage_error",
    "sync_folder",
    "write_aside",
    "write_json",
    "write_text",
]

SUCCESS, RECORD, LOCK = "_SUCCESS", "megpt.yaml", ".lock"
LOCK_TRIES, LOCK_PAUSE_S = 3, 0.1
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def reopen(folder: Path) -> None:
    """Take `_SUCCESS` from a finished output that is about to grow; durable when this returns."""
    if (folder / SUCCESS).exists():
        (folder / SUCCESS).unlink()
        sync_folder(folder)


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
        remove_tree(self.path)


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
    path = place(str(output))
    record = path / RECORD
    with _alone(path):
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


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Be the only writer of a folder: by a lock, or by a lease where there are none."""
    try:
        _refuse_foreign(path)
        path.mkdir(parents=True, exist_ok=True)
        lock = contextlib.nullcontext() if is_address(path) else (path / LOCK).open("a")
    except OSError as error:
        raise storage_error(error, path) from error
    with lock as file, contextlib.ExitStack() as stack:
        locked = None if file is None else _locked(file)
        if locked is None:
            if file is not None:
                log(f"{path}: its file system has no locks; a lease in {path / LEASE} is kept instead")
            try:
                stack.enter_context(leased(path, lost=lambda: _stop(path)))
            except OSError as error:
                raise storage_error(error, path) from error
            except Taken:
                locked = False
        if locked is False:
            raise _busy(path)
        yield


def _stop(path: Path) -> None:
    log(f"another job has taken over {path}, since this one did not renew its lease in time; this one stops")
    os.kill(os.getpid(), signal.SIGINT)


def inspect(output: str | Path, *, job: str, identity: dict[str, Any]) -> Output:
    """The folder as `claim` would find it.

    Raises:
        InputError: as `claim`, and where the folder could not be made.
    """
    path = place(output)
    _refuse_foreign(path)
    if is_locked(path):
        raise _busy(path)
    if (path / RECORD).exists():
        _refuse_changes(path / RECORD, job, identity)
    if is_address(path):  # whether it may be written shows only when it is
        return Output(path=path, done=(path / SUCCESS).exists())
    nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        reason = errno.EACCES if nearest.is_dir() else errno.ENOTDIR
        raise storage_error(OSError(reason, os.strerror(reason)), path)
    return Output(path=path, done=(path / SUCCESS).exists())


def is_locked(folder: Path) -> bool:
    """Whether a job holds the folder's claim now (on this machine, or where locks or leases are shared)."""
    if is_address(folder):
        return is_leased(folder)
    try:
        with (folder / LOCK).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        return error.errno in NO_LOCKS and is_leased(folder)
    return False


def _plain(identity: dict[str, Any]) -> dict[str, Any]:
    """As it reads back from the record: tuples are lists."""
    return dict(json.loads(json.dumps(identity, default=str)))


def _refuse_foreign(path: Path) -> None:
    foreign = (
        path.is_dir() and not (path / RECORD).exists() and any(p.name not in (LOCK, LEASE) for p in path.iterdir())
    )
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


def _locked(lock: TextIO) -> bool | None:
    """Take the lock; None where the file system has none.

    It is asked more than once, because `megpt status` holds it for a moment when it looks.
    """
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:
                return None
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
