"""Formats that list films in a table: one row a film, in any order, gathered into studies.

A format gives its rows as `FilmRow`s; `TabularSource` gathers those of one study, wherever they are in the table,
checks that they agree, and makes the `Study`. The rows wait in a temporary database on disk, so memory does not grow.
"""

from __future__ import annotations

import contextlib
import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from operator import attrgetter
from typing import Any

from megpt.data.ids import MAX_FILMS, digest, scratch
from megpt.data.members import with_members
from megpt.data.sources.base import Source
from megpt.data.sources.columns import merged
from megpt.data.sources.reading import join
from megpt.data.studies import Listed
from megpt.errors import InputError
from megpt.study import Study, View, utf8_name


@dataclass(slots=True)
class FilmRow:
    """One film and what its row says of its study; a study without films has a row whose `image` is empty."""

    study_id: str
    image: str = ""
    """The film's path in the archive; or the uri of a film inside a table or tar (`megpt.data.members`)."""
    subject_id: str | None = None
    position: str | None = None
    split: str = ""
    report: str | None = None
    findings: str | None = None
    impression: str | None = None
    labels: dict[str, int] | None = None
    where: str = ""
    """Table and line, for errors."""
    image_id: str | None = None
    member: bool = False
    """Whether `image` is the uri of a film inside another file."""
    indication: str | None = None
    comparison: str | None = None
    technique: str | None = None


class TabularSource(Source):
    """A format whose table has a row a film; subclasses give the rows."""

    @abstractmethod
    def film_rows(self) -> Iterator[FilmRow]:
        """The rows of all tables, in their order."""

    def studies(self) -> Iterator[Study]:
        return with_members(self._studies())

    def listed(self) -> Iterator[Listed]:
        """Without the bytes of films that lie inside a table or tar."""
        return map(Listed, self._studies())

    def _studies(self) -> Iterator[Study]:
        self.ignored.clear()
        return map(self._study, gathered(self.film_rows()))

    def _study(self, rows: list[FilmRow]) -> Study:
        first = rows[0]
        split = self._agreed("split", rows) or ""
        findings, impression = self._text("findings", rows), self._text("impression", rows)
        return Study(
            utf8_name(first.study_id),
            utf8_name(self._agreed("subject_id", rows) or first.study_id),
            tuple(self._film(row) for row in rows if row.image),
            self._text("report", rows) or join(findings, impression),
            findings,
            impression,
            merged(row.labels for row in rows),
            split=split,
            indication=self._text("indication", rows),
            comparison=self._text("comparison", rows),
            technique=self._text("technique", rows),
        )

    def _film(self, row: FilmRow) -> View:
        if row.member:
            return View(utf8_name(row.image_id or row.image), row.position or "", uri=row.image)
        return self.view(row.image, image_id=row.image_id, position=row.position or "")

    def _agreed(self, field: str, rows: list[FilmRow]) -> str | None:
        """The value that all rows of a study give, blanks aside."""
        values = dict.fromkeys(value for row in rows if (value := getattr(row, field)))
        if len(values) > 1:
            other = next(row for row in rows if getattr(row, field) not in (None, "", next(iter(values))))
            raise InputError(
                f"the rows of one study have two values of {field}",
                where=other.where,
                cause=f"an earlier row of the study, {rows[0].where}, has another one",
                next="correct the table, or give the films ids of two studies",
            )
        return next(iter(values), None)

    def _text(self, field: str, rows: list[FilmRow]) -> str | None:
        values = dict.fromkeys(value for row in rows if (value := getattr(row, field)))
        if len(values) > 1:
            self.ignored[f"studies whose rows differ in their {field} (the first is used)"] += 1
        return next(iter(values), None)


# dataclasses.astuple copies what it finds, which takes longer than all else here
_VALUES = attrgetter(*(field.name for field in fields(FilmRow)))


def gathered(rows: Iterable[FilmRow]) -> Iterator[list[FilmRow]]:
    """The rows of each study together, studies and rows in the order in which they first appear."""
    with contextlib.closing(scratch("CREATE TABLE studies (id BLOB PRIMARY KEY, number INT) WITHOUT ROWID")) as db:
        db.execute("CREATE TABLE films (study INT, film INT, row TEXT, PRIMARY KEY (study, film)) WITHOUT ROWID")
        count = 0

        @lru_cache(maxsize=64)
        def number_of(study_id: str) -> int:
            nonlocal count
            key = digest(study_id)
            known = db.execute("SELECT number FROM studies WHERE id = ?", (key,)).fetchone()
            if known is None:
                count += 1
                db.execute("INSERT INTO studies VALUES (?, ?)", (key, count))
                return count
            return int(known[0])

        for film, row in enumerate(rows):
            db.execute("INSERT INTO films VALUES (?, ?, ?)", (number_of(row.study_id), film, json.dumps(_VALUES(row))))
        group: list[FilmRow] = []
        last = 0
        for study, text in db.execute("SELECT study, row FROM films ORDER BY study, film"):
            if study != last and group:
                yield group
                group = []
            last = study
            if len(group) <= MAX_FILMS:  # one too many says enough
                group.append(_row(json.loads(text)))
        if group:
            yield group


def _row(values: list[Any]) -> FilmRow:
    return FilmRow(*values)
