"""The rows of a table as records of text, with everything that was left out or changed counted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from megpt.errors import InputError
from megpt.evaluation.reading.columns import Columns
from megpt.evaluation.reading.ids import as_id, shown
from megpt.evaluation.reading.tables import TEXT, Table

MISSING = frozenset({"", "nan", "NaN", "None", "null", "<NA>"})
"""What pandas and others write for a text that is not there."""
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_NUMBER = re.compile(r"[-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?")
_SCORE = re.compile(
    r"(?:avg_|mean_|test_|val_)*(?:bleu|meteor|rouge|cider|spice|bert_?score|radgraph|radcliq|chexbert|green|rate_?score"
    r"|ce_|f1|precision|recall|accuracy|loss)[a-z0-9_@ .-]{0,30}",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Record:
    """One row: `id` is None in a table without ids; `text` and `truth` are None where they are missing."""

    number: int
    id: str | None
    text: str | None
    truth: str | None
    row: dict[str, Any]


@dataclass
class Counts:
    """What a table had that is not in its records as it stood."""

    rows: int = 0
    scores: list[str] = field(default_factory=list)
    """Ids of rows that hold scores, not reports."""
    empty: int = 0
    without_text: int = 0
    control: int = 0
    surrogates: int = 0

    def said(self) -> list[str]:
        """What a reader must know, in words; nothing where nothing happened."""
        names = f" ({self.scores[0]} … {self.scores[-1]})" if len(self.scores) > 1 else ""
        return [
            text
            for count, text in (
                (len(self.scores), f"{len(self.scores)} rows of scores left out{names}"),
                (self.empty, f"{self.empty} empty rows left out"),
                (self.without_text, f"{self.without_text} without text"),
                (self.control, f"{self.control} texts with control characters, read as blanks"),
                (self.surrogates, f"{self.surrogates} texts with halves of characters, replaced"),
            )
            if count
        ]


def records(table: Table, columns: Columns, counts: Counts) -> Iterator[Record]:
    """The records of a table, streamed; `counts` is filled on the way.

    Raises:
        InputError: a cell that holds no text, or a row without an id, with row and column.
    """
    begun = False
    for number, row in table.rows():
        # among records by id, a bare text or number is what its key names
        text = _cell(table, number, row, columns.text if columns.text in row else TEXT, counts)
        truth = _cell(table, number, row, columns.truth, counts)
        study = as_id(row.get(columns.id)) if columns.id else None
        if columns.id and text is None and truth is None and study is None:
            counts.empty += 1
            continue
        if text is not None and truth is None and _holds_score(text, study, leading=not begun):
            counts.scores.append(shown(study or text))
            continue
        if columns.id and study is None:
            raise InputError(
                f"{table.path} has a row without an id",
                where=f"row {number}, column {columns.id!r}",
                next="fill it in, or set evaluate.columns.id to another column",
            )
        begun = True
        counts.rows += 1
        counts.without_text += text is None
        yield Record(number, study, text, truth, row)


def _holds_score(text: str, study: str | None, *, leading: bool) -> bool:
    """Whether a row is a score, as repositories write them above the reports: a bare number beside no reference."""
    if not _NUMBER.fullmatch(text.strip()):
        return False
    return leading or (study is not None and _SCORE.fullmatch(study) is not None)


def _cell(table: Table, number: int, row: dict[str, Any], column: str | None, counts: Counts) -> str | None:
    if column is None:
        return None
    value = row.get(column)
    if isinstance(value, list) and len(value) < 2:
        value = value[0] if value else None
    if value is None or value != value:
        return None
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        held = f"a list of {len(value)}" if isinstance(value, list) else type(value).__name__
        held = "an object" if isinstance(value, dict) else held
        raise InputError(
            f"{table.path} has a cell that is no text",
            where=f"row {number}, column {column!r}",
            cause=f"it holds {held}",
            next="give one text a study, or set evaluate.columns to other columns",
        )
    if value.isascii() and value.isprintable():
        return None if value in MISSING else value
    if _SURROGATE.search(value):
        counts.surrogates += 1
        value = _SURROGATE.sub("�", value)
    if _CONTROL.search(value):
        counts.control += 1
        value = _CONTROL.sub(" ", value)
    return value
