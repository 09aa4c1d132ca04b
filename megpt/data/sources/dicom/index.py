"""The header index of a DICOM tree: one SQLite file beside the plan, so that the next run opens new files only.

    OUT/dicom_index.sqlite      mode 0600: it holds paths, in which people's names may stand

`paths` has a row per file on disk, with the size and the time at which it was read; `entries` a row per DICOM file (an
archive has many). PatientIDs and accession numbers are kept only if the settings make ids of them; else their hashes.

Every `COMMIT_FILES` files are committed together, so a kill loses that many headers at most. The index is a cache: one
that is damaged, or made by other settings or another version, is built again.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from megpt.data.sources.dicom.identity import KEY_FILE, KEY_VARIABLE
from megpt.errors import InputError

VERSION = "1"
INDEX_FILE = "dicom_index.sqlite"
SCHEMA = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS paths (path BLOB PRIMARY KEY, size INT, changed INT, seen INT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entries (
    path BLOB, member BLOB, place INT, what TEXT, reason TEXT, sop TEXT, study TEXT, subject TEXT, accession TEXT,
    modality TEXT, body TEXT, position TEXT, object TEXT, number INT,
    PRIMARY KEY (path, place)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_study ON entries (study);
"""


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One file, or one member of an archive.

    `what` is `dicom`, `error` (with a `reason`), `other` (with what it is in `reason`: `JPEG`, `DICOMDIR` …), or
    `listed`: a DICOMDIR says that this patient has this study.
    """

    path: bytes
    """Relative to the archive."""
    member: bytes | None = None
    place: int = 0
    what: str = "dicom"
    reason: str = ""
    sop: str = ""
    study: str = ""
    subject: str = ""
    accession: str = ""
    modality: str = ""
    body: str = ""
    position: str = ""
    object: str = ""
    number: int = 0


_values = attrgetter(*IndexEntry.__slots__)


class HeaderIndex:
    """The entries of a tree, on disk; `place` is None for one that lasts as long as this object."""

    def __init__(self, place: Path | None, *, made_for: str, key: str, writable: bool = True):
        """Open or begin an index.

        Args:
            made_for: the settings that its identifiers depend on.
            key: tells the key of its hashes from another.
            writable: False leaves the file as it is, for a dry run.

        Raises:
            InputError: its hashes were made with another key.
        """
        self._database = self._opened(place, f"{VERSION}:{made_for}", writable)
        if self._about("key") not in (None, key):
            self._database.close()
            raise InputError(
                f"the patients' ids of {place.parent if place else 'this output'} were made with another key",
                cause=f"{KEY_VARIABLE} has changed, or {KEY_FILE} was deleted or replaced",
                next="bring the key back, or choose another output=PATH (docs/data.md, DICOM)",
            )
        self._database.execute("INSERT OR REPLACE INTO about VALUES ('key', ?)", (key,))
        self.run = int(self._about("run") or 0) + 1
        self._database.execute("INSERT OR REPLACE INTO about VALUES ('run', ?)", (str(self.run),))

    def _opened(self, place: Path | None, made_for: str, writable: bool) -> sqlite3.Connection:
        if place is None or (not writable and not place.exists()):
            return self._fresh("", made_for)
        if writable:
            os.close(os.open(place, os.O_WRONLY | os.O_CREAT, 0o600))
        try:
            stored = sqlite3.connect(place if writable else f"file:{place}?mode=ro", uri=not writable)
            if not writable:  # a dry run reads what is there, and keeps what is new to itself
                copy = sqlite3.connect("")
                stored.backup(copy)
                stored.close()
                stored = copy
            stored.executescript(SCHEMA)
            row = stored.execute("SELECT value FROM about WHERE name = 'made_for'").fetchone()
            if row == (made_for,):
                return stored
            stored.close()
        except sqlite3.DatabaseError:
            pass
        if not writable:
            return self._fresh("", made_for)
        for name in (place, place.with_name(place.name + "-journal")):
            name.unlink(missing_ok=True)
        os.close(os.open(place, os.O_WRONLY | os.O_CREAT, 0o600))
        return self._fresh(place, made_for)

    @staticmethod
    def _fresh(place: Path | str, made_for: str) -> sqlite3.Connection:
        database = sqlite3.connect(place)
        database.executescript(SCHEMA)
        database.execute("INSERT INTO about VALUES ('made_for', ?)", (made_for,))
        return database

    def _about(self, name: str) -> str | None:
        row = self._database.execute("SELECT value FROM about WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def close(self) -> None:
        self._database.commit()
        self._database.close()

    # ---- while the tree is walked

    def known(self, path: bytes, size: int, changed: int) -> bool:
        """Whether a file is in the index as it is now; it then counts as seen by this run."""
        return bool(
            self._database.execute(
                "UPDATE paths SET seen = ? WHERE path = ? AND size = ? AND changed = ?", (self.run, path, size, changed)
            ).rowcount
        )

    def put(self, path: bytes, size: int, changed: int, entries: list[IndexEntry]) -> None:
        """Replace what the index holds of a file."""
        self._database.execute("DELETE FROM entries WHERE path = ?", (path,))
        marks = ", ".join("?" * 14)
        self._database.executemany(f"INSERT INTO entries VALUES ({marks})", map(_values, entries))
        self._database.execute("INSERT OR REPLACE INTO paths VALUES (?, ?, ?, ?)", (path, size, changed, self.run))

    def commit(self) -> None:
        self._database.commit()

    def forget_unseen(self) -> None:
        """Drop what this run did not meet: the files are gone."""
        self._database.execute(
            "DELETE FROM entries WHERE path IN (SELECT path FROM paths WHERE seen != ?)", (self.run,)
        )
        self._database.execute("DELETE FROM paths WHERE seen != ?", (self.run,))
        self._database.commit()

    # ---- when it is complete

    def by_study(self) -> Iterator[IndexEntry]:
        """The DICOM entries, those of a study together, the studies in the order of their first files."""
        return self._entries(
            "SELECT e.* FROM entries e JOIN (SELECT study AS name, min(path) AS first, min(place) AS at FROM entries "
            "WHERE what = 'dicom' AND study != '' GROUP BY study) ON e.study = name WHERE what = 'dicom' "
            "ORDER BY first, at, study, path, place"
        )

    def without_study(self) -> Iterator[IndexEntry]:
        """Errors, and DICOM files without a StudyInstanceUID, in the order of their paths."""
        return self._entries(
            "SELECT * FROM entries WHERE what = 'error' OR (what = 'dicom' AND study = '') ORDER BY path, place"
        )

    def listed(self, study: str) -> set[str]:
        """The patients whom a DICOMDIR gives a study."""
        rows = self._database.execute("SELECT subject FROM entries WHERE study = ? AND what = 'listed'", (study,))
        return {str(row[0]) for row in rows}

    def shared_accessions(self) -> set[str]:
        """Accession numbers that more than one study has."""
        rows = self._database.execute(
            "SELECT accession FROM entries WHERE what = 'dicom' AND accession != '' AND study != '' GROUP BY accession "
            "HAVING count(DISTINCT study) > 1"
        )
        return {str(row[0]) for row in rows}

    def others(self) -> dict[str, int]:
        """How many files of each other type there are."""
        rows = self._database.execute("SELECT reason, count(*) FROM entries WHERE what = 'other' GROUP BY reason")
        return {str(name): int(count) for name, count in rows}

    def _entries(self, query: str) -> Iterator[IndexEntry]:
        return (IndexEntry(*row) for row in self._database.execute(query))
