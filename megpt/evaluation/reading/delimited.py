"""CSV and TSV by Python's csv module, strictly: a row that does not fit its header is an error that names its place."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from megpt.data.encoding import head, open_text, readable
from megpt.errors import InputError
from megpt.evaluation.reading.ids import named, shown
from megpt.evaluation.reading.json_tables import TEXT

DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
SAMPLE_ROWS = 50
KEPT_LINES = 200
MOST_CHARACTERS = 2**24
"""Of one cell; an unclosed quote would otherwise take the rest of the file into one."""


def open_delimited(
    path: Path, encoding: str, delimiter: str | None, names: frozenset[str]
) -> tuple[str, list[str], Callable[[], Iterator[tuple[int, dict[str, Any]]]]]:
    """(kind, columns, rows) of a delimited file.

    Raises:
        InputError: no header with a known name and more than one column; two columns of one name; no table at all.
    """
    csv.field_size_limit(MOST_CHARACTERS)
    if delimiter is not None and len(delimiter) != 1:
        raise InputError(f"the delimiter {delimiter!r} is not one character", next="set evaluate.delimiter=';' or so")
    sample = head(path).decode(encoding, errors="ignore").lstrip("\ufeff")
    delimiter = delimiter or find_delimiter(sample, names, prefers="\t" if ".tsv" in path.name.lower() else ",")
    first = next(_sample(sample, delimiter), [])
    titles = [cell.strip() for cell in first]
    kind = ", ".join(("TSV" if delimiter == "\t" else "CSV", DELIMITERS.get(delimiter, repr(delimiter)), encoding))
    if not any(title.lower() in names for title in titles):
        if len(titles) > 1:
            raise InputError(
                f"{path} has no column whose name is known",
                cause=f"its first line holds: {named(titles)}; none is a name such as study_id or report",
                next="give it a header, or set evaluate.columns.text=NAME (and .id, .truth)",
            )
        if titles and titles[0] and " " not in titles[0]:
            raise InputError(
                f"{path} has one column, and its first line is no text",
                cause=f"it holds {shown(titles[0])!r}, a name that is not known",
                next=f"set evaluate.columns.text={shown(titles[0])}, or evaluate.delimiter",
            )
        return f"{kind}, no header", [TEXT], lambda: _rows(path, encoding, delimiter, [TEXT], header=False)
    if twice := [name for name, times in Counter(titles).items() if name and times > 1]:
        raise InputError(f"{path} has two columns {twice[0]!r}", next="rename one of them")
    return kind, titles, lambda: _rows(path, encoding, delimiter, titles, header=True)


def find_delimiter(sample: str, names: frozenset[str], *, prefers: str = ",") -> str:
    """The delimiter with which the first line holds most known names, then that gives rows of one width.

    Args:
        sample: the beginning of the file.
        prefers: the one to take where nothing tells them apart.
    """

    def worth(delimiter: str) -> tuple[int, bool, int, bool]:
        rows = [row for row in _sample(sample, delimiter) if row]
        width = len(rows[0]) if rows else 0
        known = sum(cell.strip().lower() in names for cell in rows[0]) if rows else 0
        even = width > 1 and all(len(row) == width for row in rows)
        return known, even, width if even else 0, delimiter == prefers

    return max(DELIMITERS, key=worth)


def _sample(sample: str, delimiter: str) -> Iterator[list[str]]:
    """The first rows, leniently; the last one may be cut off by the end of the sample and is left out."""
    reader = csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter)
    rows: list[list[str]] = []
    try:
        for row in reader:
            rows.append(row)
            if len(rows) > SAMPLE_ROWS:
                break
    except csv.Error:
        pass
    yield from rows[:-1] if len(rows) > 1 and not sample.endswith(("\n", "\r")) else rows


def _rows(
    path: Path, encoding: str, delimiter: str, titles: Sequence[str], *, header: bool
) -> Iterator[tuple[int, dict[str, Any]]]:
    number, line, width = 0, 0, len(titles)
    with readable(path), open_text(path, encoding) as file:
        try:
            lines = _Lines(file)
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            if header:
                next(reader, None)
            while True:
                line = lines.count + 1
                lines.record.clear()
                try:
                    cells = next(reader, None)
                except csv.Error as error:
                    raise _malformed(path, titles, number + 1, line, lines.record, delimiter, error) from None
                if cells is None:
                    return
                if not cells:
                    continue
                number += 1
                if len(cells) != width:
                    raise _wrong_width(path, titles, number, line, len(cells))
                yield number, dict(zip(titles, cells, strict=True))
        except UnicodeError as error:
            where = f"at or after row {number + 1}"
            cause = f"bytes that {encoding} does not have ({type(error).__name__})"
            raise InputError(f"{path} is not {encoding}", where, cause, "set evaluate.encoding=NAME") from None


class _Lines:
    """The lines of a file, counted; those of the present record are kept to say where it went wrong."""

    def __init__(self, file: TextIO):
        self._lines, self.count, self.record = iter(file), 0, list[str]()

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.count += 1
        if self.count == 1:
            line = line.removeprefix("\ufeff")
        if len(self.record) < KEPT_LINES:
            self.record.append(line)
        return line


def _wrong_width(path: Path, titles: Sequence[str], number: int, line: int, found: int) -> InputError:
    cause = "an unquoted delimiter or line end inside a text" if found > len(titles) else "the file was cut off there"
    last = titles[min(found, len(titles)) - 1]
    return InputError(
        f"{path} has a row of {found} cells under a header of {len(titles)}",
        where=f"row {number} (line {line}), " + ("behind" if found > len(titles) else "after") + f" column {last!r}",
        cause=cause,
        next="quote the texts, or set evaluate.delimiter if it was found wrongly",
    )


def _malformed(
    path: Path, titles: Sequence[str], number: int, line: int, record: list[str], delimiter: str, error: csv.Error
) -> InputError:
    reason, text = str(error), "".join(record)
    if "expected after" in reason:
        reason = "a quote inside a quoted text that is not doubled"
        # the first cell whose end the strict reader does not take
        ends = [*[i for i, c in enumerate(text) if c == delimiter][: len(titles)], len(text)]
        text = next(text[:end] for end in ends if end == len(text) or _unquoted_end(text[:end], delimiter))
    else:
        reason = "a quote that is opened and never closed"
    cells = max(1, len(_leniently(text, delimiter)))
    column = titles[min(cells, len(titles)) - 1]
    return InputError(
        f"{path} has a malformed row",
        where=f"row {number} (line {line}), column {column!r}",
        cause=reason,
        next="write the file with a CSV library, which doubles quotes inside texts",
    )


def _leniently(text: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
    except csv.Error:
        return []


def _unquoted_end(text: str, delimiter: str) -> bool:
    try:
        next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), None)
    except csv.Error as error:
        return "expected after" in str(error)
    return False
