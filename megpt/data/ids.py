"""Study ids: seen once each, looked up by the million in a temporary database, chosen by a file.

Also what no study has: more films than `MAX_FILMS`. It fails alone, before anything looks at its films.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from megpt.data.parquet import open_parquet, read_rows
from megpt.data.studies import Listed
from megpt.errors import InputError, MegptError
from megpt.places import place

MAX_FILMS = 1_000
"""Films of one study. No chest examination has so many; rows of one study are not gathered beyond it."""


def unique(studies: Iterable[Listed], *, where: str | None = None) -> Iterator[Listed]:
    """The same studies, once it is known that no earlier one has the same id.

    Raises:
        InputError: two studies with one id, or a study without an id.
    """
    with contextlib.closing(scratch("CREATE TABLE ids (id BLOB PRIMARY KEY) WITHOUT ROWID")) as seen:
        for listed in studies:
            name = listed.study.study_id
            if not name:
                raise InputError("the archive has a study without an id", where=where)
            try:
                seen.execute("INSERT INTO ids VALUES (?)", (digest(name),))
            except sqlite3.IntegrityError:
                raise InputError(
                    f"two studies have the id {name!r}",
                    where=where,
                    cause="rows of one study must follow one another, and each id must name one study",
                    next="merge or rename them in the archive's table",
                ) from None
            yield listed


def held_together(studies: Iterable[Listed]) -> Iterator[Listed]:
    """The same studies; one of more films than any study has becomes one that failed, with the first of them."""
    for listed in studies:
        study = listed.study
        if len(study.views) > MAX_FILMS and not study.error:
            views, error = study.views[:MAX_FILMS], f"more than {MAX_FILMS:,} films"
            listed = replace(listed, study=replace(study, views=views, error=error))
        yield listed


class _Scratch(sqlite3.Connection):
    def execute(self, *statement: Any) -> sqlite3.Cursor:
        try:
            return super().execute(*statement)
        except sqlite3.OperationalError as error:
            if "full" not in str(error) and "disk I/O" not in str(error):
                raise
            raise MegptError(
                "no space left for the temporary list of studies",
                where=os.environ.get("SQLITE_TMPDIR") or os.environ.get("TMPDIR") or "/var/tmp",
                cause="an archive of ten million films needs some gigabytes there while it is listed",
                next="free some space there, or set TMPDIR=FOLDER, then run the same command again",
            ) from None


def scratch(schema: str) -> sqlite3.Connection:
    """A temporary database: it is private to this process, moves to disk as it grows, and is deleted when closed.

    What is done with it raises a MegptError where the disk is full.
    """
    database = sqlite3.connect("", factory=_Scratch)
    database.execute("PRAGMA journal_mode = OFF")
    database.execute(schema)
    return database


class FirstSeen:
    """What was first seen under each key; on disk, so that there may be ten million. Close it when done with it."""

    def __init__(self) -> None:
        self._seen = scratch("CREATE TABLE seen (key BLOB PRIMARY KEY, value TEXT) WITHOUT ROWID")

    def setdefault(self, key: str, value: str) -> str:
        """The value that came first with this key."""
        self._seen.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (digest(key), value))
        ((first,),) = self._seen.execute("SELECT value FROM seen WHERE key = ?", (digest(key),))
        return str(first)

    def close(self) -> None:
        self._seen.close()


def digest(text: str) -> bytes:
    """16 bytes in place of an id."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def read_ids(path: str | Path) -> frozenset[str]:
    """Study ids from a file: Parquet or CSV with a column `study_id`, or plain text with one id a line.

    Raises:
        InputError: no such file, no such column, or no id in it.
    """
    path = place(path)
    if not path.is_file():
        raise InputError(f"no file at {path}", where="`ids`", next="set ids=FILE to a list of study ids")
    if path.suffix == ".parquet":
        with open_parquet(path) as file:
            found = "study_id" in file.schema_arrow.names
        ids = [str(row["study_id"]) for row in read_rows(path, ["study_id"])] if found else None
    else:
        ids = _ids_of_text(path)
    if ids is None:
        raise InputError(f"{path} has no column study_id", where="`ids`", next="name its column of ids study_id")
    if not (chosen := frozenset(name for name in ids if name)):
        raise InputError(f"{path} names no study", where="`ids`", next="write one study id on each line")
    return chosen


def _ids_of_text(path: Path) -> list[str] | None:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text in UTF-8", where="`ids`", next="save it as UTF-8") from None
    delimiter = {".csv": ",", ".tsv": "\t"}.get(path.suffix)
    if delimiter is None:
        return [line.strip() for line in lines]
    rows = csv.DictReader(lines, delimiter=delimiter)
    if "study_id" not in (rows.fieldnames or ()):
        return None
    return [(row["study_id"] or "").strip() for row in rows]
