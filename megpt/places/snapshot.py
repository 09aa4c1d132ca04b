"""A listing of an archive at an address, taken once: 400 requests instead of a request for each of 400,000 films.

    with_listing("s3://bucket/mimic-cxr-jpg")      # from now on FarPath answers for this tree from it

It lies in a private database that moves to disk as it grows, so memory stays flat. One process takes it, at the start
of a job, and plans from it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator

from megpt.places import stores
from megpt.places.stores import Found
from megpt.progress import log

TELL = 100_000
_taken: dict[str, Snapshot] = {}


class Snapshot:
    """The objects below an address, as they were at one moment."""

    def __init__(self, root: str):
        import sqlite3  # after `megpt --help`

        self.root = root
        self._lock = threading.Lock()
        self._database = sqlite3.connect("", check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute(
            "CREATE TABLE entries (folder TEXT, name TEXT, size INT, version TEXT, modified REAL, "
            "PRIMARY KEY (folder, name)) WITHOUT ROWID"
        )
        self._folder = functools.lru_cache(maxsize=4096)(self._add_folder)
        self._cut = len(root) + 1
        count = 0
        for found in stores.everything(root):
            if found.address == root:  # the archive itself, as an empty object
                continue
            folder, _, name = found.address[self._cut :].rpartition("/")
            self._folder(folder)
            row = (folder, name, found.size, found.version, found.modified)
            self._database.execute("INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?, ?)", row)
            count += 1
            if count % TELL == 0:
                log(f"{root}: {count:,} objects listed")
        self.count = count

    def _add_folder(self, folder: str) -> None:
        if folder:
            above, _, name = folder.rpartition("/")
            self._folder(above)
            # Browsers of stores make an empty object for a folder.
            self._database.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, NULL, NULL, NULL)", (above, name))

    def _rows(self, query: str, *values: str) -> list[tuple]:
        with self._lock:
            return self._database.execute(f"SELECT {query}", values).fetchall()

    def _place(self, address: str) -> tuple[str, str]:
        folder, _, name = address[self._cut :].rpartition("/")
        return folder, name

    def file(self, address: str) -> Found | None:
        query = "size, version, modified FROM entries WHERE folder = ? AND name = ? AND size IS NOT NULL"
        rows = self._rows(query, *self._place(address))
        return Found(address, *rows[0]) if rows else None

    def is_folder(self, address: str) -> bool:
        if address == self.root:
            return self.count > 0
        query = "1 FROM entries WHERE folder = ? AND name = ? AND size IS NULL"
        return bool(self._rows(query, *self._place(address)))

    def children(self, address: str) -> list[tuple[str, bool]]:
        """(name, whether it is a folder), by name."""
        query = "name, size IS NULL FROM entries WHERE folder = ? ORDER BY name"
        return [(name, bool(folder)) for name, folder in self._rows(query, address[self._cut :])]

    def everything(self, address: str) -> Iterator[Found]:
        """All objects below a folder, folder by folder."""
        query = "name, size, version, modified FROM entries WHERE folder = ? ORDER BY name"
        for name, size, version, modified in self._rows(query, address[self._cut :]):
            if size is None:
                yield from self.everything(f"{address}/{name}")
            else:
                yield Found(f"{address}/{name}", size, version, modified)


def with_listing(address: str) -> None:
    """Take a listing of a tree; from now on this process answers for the tree from it."""
    _taken.clear()  # a process reads one archive at a time, and a second start sees what is new
    _taken[address] = Snapshot(address)


def covering(address: str) -> Snapshot | None:
    """The listing that an address lies in."""
    for root, held in _taken.items():
        if address == root or address.startswith(f"{root}/"):
            return held
    return None
