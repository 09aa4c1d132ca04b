"""Study ids: seen once each, looked up by the million in a temporary database, chosen by a file."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from megpt.data.studies import Listed, open_parquet, read_rows
from megpt.errors import InputError
from megpt.places import place


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


def scratch(schema: str) -> sqlite3.Connection:
    """A temporary database: it is private to this process, moves to disk as it grows, and is deleted when closed."""
    database = sqlite3.connect("")
    database.execute("PRAGMA journal_mode = OFF")
    database.execute(schema)
    return database


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
