"""Who writes an output where nothing can be locked: an object store, or a file system without locks.

    with leased(path) as lease: ...        # Taken if another job holds it

A lease is a numbered file, `.lease/000007`, and the highest number is the owner. To claim is to create the next number,
which only one of two can do (If-None-Match: * in a store, O_EXCL on a file system). The owner writes its own file again
every 10 s, and nobody else writes that one. A lease is dead if its file does not change while a claimant watches for
40 s: no clock is compared. On the same machine a dead process is seen at once. An owner that was suspended and lost its
lease finds a higher number, and stops.

Where a store has no conditional put, two claims of one number may both seem to succeed; so each reads its own back.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from megpt.errors import MegptError
from megpt.places import stores
from megpt.places.path import FarPath
from megpt.progress import log

FOLDER = ".lease"
RENEW_S, WATCH_S, LOOK_S = 10.0, 40.0, 1.0


class Taken(Exception):
    """Another job holds the lease."""


@dataclass(frozen=True)
class _Held:
    number: int
    version: str
    """Changes whenever the owner renews it."""
    content: dict[str, Any]

    @property
    def free(self) -> bool:
        return bool(self.content.get("released")) or self._is_dead_here()

    def _is_dead_here(self) -> bool:
        """Whether the owner was a process of this machine, and is no more."""
        if self.content.get("machine") != _machine():
            return False
        try:
            started = psutil.Process(int(self.content["pid"])).create_time()
        except (psutil.NoSuchProcess, ValueError):
            return True
        return abs(started - float(self.content["started"])) > 1


@contextlib.contextmanager
def leased(folder: Path, *, lost: Callable[[], None]) -> Iterator[None]:
    """Hold the folder's lease for the block.

    Args:
        lost: called from a thread if another job has taken it over.

    Raises:
        Taken: another job holds it, and renews it.
    """
    token, place = uuid.uuid4().hex, folder / FOLDER
    before = newest(folder)
    if before is not None and not before.free and not _expires(folder, before):
        raise Taken
    mine = place / f"{(before.number if before else 0) + 1:06d}"
    if not _create(mine, _content(token)) or not _is_mine(folder, mine, token):
        raise Taken
    for old in _numbered(place):
        if old.name < mine.name:
            old.unlink(missing_ok=True)
    stop = threading.Event()
    renewing = threading.Thread(target=_renew, args=(folder, mine, token, stop, lost), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        stop.set()
        renewing.join()
        with contextlib.suppress(OSError, MegptError):  # it expires by itself
            if _is_mine(folder, mine, token):
                _replace(mine, _content(token, released=True))


def newest(folder: Path) -> _Held | None:
    """The folder's lease; None if there was never one."""
    for path in reversed(_numbered(folder / FOLDER)):
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            continue
        try:
            content = dict(json.loads(text))
        except ValueError:  # its owner was killed while it wrote; it expires like any other
            content = {}
        return _Held(int(path.name), text.hex(), content)
    return None


def is_leased(folder: Path) -> bool:
    """Whether a job seems to hold the lease now; it may have died within the last seconds."""
    held = newest(folder)
    if held is None or held.free:
        return False
    return time.time() - float(held.content.get("renewed", 0)) < WATCH_S


def _expires(folder: Path, before: _Held) -> bool:
    """Watch a lease; True if its owner does not renew it."""
    log(f"{folder} is leased by {before.content.get('host', 'another machine')}; watching whether it is renewed")
    end = time.monotonic() + WATCH_S
    while time.monotonic() < end:
        time.sleep(LOOK_S)
        now = newest(folder)
        if now is None or now.free:
            return True
        if (now.number, now.version) != (before.number, before.version):
            return False
    return True


def _renew(folder: Path, mine: Path, token: str, stop: threading.Event, lost: Callable[[], None]) -> None:
    while not stop.wait(RENEW_S):
        try:
            if (held := newest(folder)) is None:  # the owner has deleted the folder
                return
            if not _names(held, mine, token):
                lost()
                return
            _replace(mine, _content(token))
        except (OSError, MegptError):
            continue  # the store may answer again before the lease expires; if not, the next look says who owns it


def _is_mine(folder: Path, mine: Path, token: str) -> bool:
    held = newest(folder)
    return held is not None and _names(held, mine, token)


def _names(held: _Held, mine: Path, token: str) -> bool:
    return f"{held.number:06d}" == mine.name and held.content.get("token") == token


def _numbered(place: Path) -> list[Path]:
    return sorted((p for p in place.iterdir() if p.name.isdigit()), key=lambda p: p.name) if place.is_dir() else []


def _content(token: str, **more: Any) -> bytes:
    process = psutil.Process()
    owner = {"token": token, "host": socket.gethostname(), "machine": _machine(), "pid": process.pid}
    return json.dumps({**owner, "started": process.create_time(), "renewed": time.time(), **more}).encode()


def _machine() -> str:
    """This machine since it was started, and its numbering of processes: containers may share a host's name."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    with contextlib.suppress(OSError):
        return f"{boot.read_text().strip()}:{Path('/proc/self/ns/pid').readlink()}:{socket.gethostname()}"
    return socket.gethostname()


def _create(path: Path, content: bytes) -> bool:
    try:
        if isinstance(path, FarPath):
            stores.put(str(path), content, new=True)
            return True
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        os.fsync(file.fileno())
    return True


def _replace(path: Path, content: bytes) -> None:
    if isinstance(path, FarPath):
        stores.put(str(path), content)
        return
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
