"""Files at an address as files of this machine, for what reads only those: weights, tokenizers, prompts, evaluation.

    local_folder("s3://bucket/runs/checkpoint")      # fetched at the first call; the same folder at the next

A copy is named by what the listing says (names, sizes, versions), so a checkpoint that was written again is fetched
again. It appears whole, by a rename. `MEGPT_CACHE` (~/.cache/megpt) holds copies up to `MEGPT_CACHE_GB` (100); beyond
that, those that no process uses go, the longest unused first.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from megpt.errors import MegptError
from megpt.places import stores
from megpt.places.addresses import Changed
from megpt.places.stores import Found
from megpt.progress import log

THREADS, PIECE = 8, 32 << 20
TELL_BYTES = 256 << 20
REMEMBERED = "remembered"
"""The folder beside the copies that `megpt.places.remembered` has."""
_held: dict[Path, IO[bytes]] = {}
"""Copies that this process uses, by an open lock: none of them may be removed."""


def cache_root() -> Path:
    return Path(os.environ.get("MEGPT_CACHE") or Path.home() / ".cache" / "megpt").expanduser()


def most_bytes() -> int:
    return int(float(os.environ.get("MEGPT_CACHE_GB") or 100) * 1e9)


def local_folder(address: str, *, skip: Iterable[str] = ()) -> Path:
    """All objects below an address, in a folder of this machine.

    Args:
        skip: names of folders right below it that are not needed.

    Raises:
        FileNotFoundError: there is nothing. MegptError: the store does not answer, or an object changed meanwhile.
    """
    address, left_out = address.rstrip("/"), tuple(f"{address.rstrip('/')}/{name}/" for name in skip)
    found = [one for one in stores.everything(address) if not one.address.startswith(left_out or ("\0",))]
    folders = {above for one in found for above in _above(one.address, address)}  # browsers make objects of them
    found = sorted((one for one in found if one.address not in folders), key=lambda one: one.address)
    if not found:
        raise FileNotFoundError(2, "No such file or directory", address)
    return _copied(address, found)


def _above(address: str, root: str) -> list[str]:
    parts = address[len(root) + 1 :].split("/")[:-1]
    return [root, *("/".join([root, *parts[: n + 1]]) for n in range(len(parts)))]


def _copied(root: str, found: list[Found]) -> Path:
    key = hashlib.sha256("\n".join(f"{one.address}:{one.size}:{one.version}" for one in found).encode()).hexdigest()
    # The name of the address stays the last part, since cards and pages name the folder of a checkpoint.
    folder = cache_root() / key[:24] / root.rpartition("/")[2]
    _hold(folder.parent)
    if folder.is_dir():
        os.utime(folder.parent)
        return folder
    size = sum(one.size for one in found)
    if size > TELL_BYTES:
        log(f"fetching {root} ({size / 1e9:.1f} GB) into {folder}")
    _make_room(size)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".part-") as scratch:
        whole = Path(scratch) / "whole"
        for one in found:
            (whole / one.address[len(root) + 1 :]).parent.mkdir(parents=True, exist_ok=True)
        try:
            with ThreadPoolExecutor(THREADS) as pool:
                pieces = [
                    pool.submit(_fetch, one, whole / one.address[len(root) + 1 :], start)
                    for one in found
                    for start in range(0, max(one.size, 1), PIECE)
                ]
                for piece in pieces:
                    piece.result()
        except Changed as error:
            raise MegptError(
                f"{error.filename} changed while it was read", next="run the same command again when it is written"
            ) from None
        try:
            whole.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process was faster
                raise
    return folder


def _fetch(about: Found, path: Path, start: int) -> None:
    data = stores.fetch(about, start, min(about.size, start + PIECE)) if about.size else b""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.pwrite(handle, data, start)
    finally:
        os.close(handle)


def _hold(folder: Path) -> None:
    while folder not in _held:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (folder / ".lock").open("ab")
        fcntl.flock(lock, fcntl.LOCK_SH)
        if (folder / ".lock").exists():  # it was not removed between the two
            _held[folder] = lock


def _make_room(wanted: int) -> None:
    """Remove copies that no process uses until the new one fits."""
    kept = [folder for folder in cache_root().iterdir() if folder.is_dir() and folder.name != REMEMBERED]
    sizes = {folder: sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) for folder in kept}
    over = sum(sizes.values()) + wanted - most_bytes()
    for folder in sorted(kept, key=lambda folder: folder.stat().st_mtime):
        if over <= 0:
            return
        if folder in _held:
            continue
        with (folder / ".lock").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            shutil.rmtree(folder, ignore_errors=True)
            over -= sizes[folder]
