"""Reading an archive's lists: CSV tables, streamed, the fields of JSON entries, and the sections of a report.

Errors name the file, and the column and line or the field. JSON itself: megpt/data/sources/json_stream.py.
"""

from __future__ import annotations

import csv
import functools
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import zip_longest
from pathlib import Path
from typing import Any, TextIO

from megpt.data import encoding as encodings
from megpt.data.encoding import find_encoding, guess_encoding
from megpt.data.parquet import MAX_TEXT
from megpt.data.sources.columns import no_column
from megpt.errors import InputError
from megpt.progress import log

csv.field_size_limit(min(sys.maxsize, MAX_TEXT))
MAX_HEADER, MAX_RECORD = 1 << 20, 1 << 26

say_once = functools.cache(log)

# A heading begins a line, is in capitals, and ends with a colon.
_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z0-9 ,/()&_-]{2,60}?)[ \t]*:", re.MULTILINE)
HEADINGS = {
    "findings": {"FINDINGS", "FINDING", "FINDINGS AND IMPRESSION", "FINDINGS/IMPRESSION", "CHEST FINDINGS"},
    "impression": {"IMPRESSION", "IMPRESSIONS", "CONCLUSION", "CONCLUSIONS", "SUMMARY", "OPINION"},
    "indication": {
        *("INDICATION", "INDICATIONS", "CLINICAL INDICATION", "INDICATION FOR STUDY", "HISTORY", "CLINICAL HISTORY"),
        *("CLINICAL INFORMATION", "REASON FOR EXAM", "REASON FOR EXAMINATION", "REASON FOR THE EXAM", "REASON"),
    },
    "comparison": {"COMPARISON", "COMPARISONS", "COMPARISON STUDY", "COMPARISON STUDIES", "COMPARED TO"},
    "technique": {"TECHNIQUE", "TECHNIQUES", "PROCEDURE"},
}
"""Section of a report → the headings that begin it."""


DELIMITERS = (",", ";", "\t", "|")


@dataclass(frozen=True)
class TextForm:
    """How the archive's tables are written: `data.encoding` and `data.delimiter`, or None to detect them."""

    encoding: str | None = None
    delimiter: str | None = None


def open_text(path: Path, form: TextForm = TextForm()) -> TextIO:
    """A text file, unpacked where it is gzipped, in the encoding that its bytes show; cp1252 is said aloud."""
    if not path.is_file():
        raise FileNotFoundError(path)
    encoding = find_encoding(path, form.encoding, setting="data.encoding")
    if encoding == "cp1252" and form.encoding is None:
        say_once(f"{path.name} is not UTF-8 and is read as cp1252 (Windows); set data.encoding if that is wrong")
    return encodings.open_text(path, "utf-8-sig" if encoding == "utf-8" else encoding)


def csv_header(path: Path, form: TextForm = TextForm()) -> list[str]:
    """The column names; [] for a file that is not a table."""
    try:
        start = encodings.head(path, 1 << 20)
        encoding = form.encoding or guess_encoding(start)
        first = start.decode(encoding, errors="replace").lstrip("\ufeff")
        return _header(next(iter(first.splitlines()), ""), form)[1]
    except (InputError, csv.Error):
        return []


def csv_rows(path: Path, required: Sequence[str], form: TextForm = TextForm()) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) of a CSV file. A required cell is never None; other cells may be.

    The delimiter is the one that cuts the first line into most columns: comma, semicolon, tab or bar.

    Raises:
        InputError: no such file, not text, a missing column, or a line with fewer cells than the required ones need.
    """
    line = 1
    try:
        with open_text(path, form) as file:
            first = file.readline(MAX_HEADER)
            delimiter, _ = _header(first.lstrip("\ufeff"), form)
            lines = _Lines(path, file, first.lstrip("\ufeff"))
            reader = csv.reader(lines, delimiter=delimiter)
            names = [name.strip() for name in next(reader, [])]
            if twice := next((name for name, times in Counter(names).items() if name and times > 1), None):
                raise InputError(f"{path} has two columns {twice!r}", next="rename one of them")
            for column in required:
                if column not in names:
                    raise no_column(path, column, names)
            for cells in reader:
                line, lines.record = reader.line_num, 0
                if not cells:
                    continue
                if len(cells) > len(names) and any(map(str.strip, cells[len(names) :])):
                    raise InputError(
                        f"{path} has a line of {len(cells)} cells under a header of {len(names)}",
                        where=f"line {line}",
                        cause="an unquoted delimiter inside a text",
                        next="quote the texts, or set data.delimiter if it was found wrongly",
                    )
                # This does what csv.DictReader does in half the time: MIMIC-CXR's tables have a million lines.
                short = [None] * (len(names) - len(cells))
                row: dict[str, Any] = dict(zip(names, [*cells, *short], strict=False))
                for column in required:
                    if row[column] is None:
                        raise InputError(
                            f"{path} has a line that ends too early",
                            where=f"column {column!r}, line {line}",
                            cause="the table was cut off, or has another delimiter than its first line",
                        )
                yield line, row
    except FileNotFoundError:
        raise InputError(f"no table at {path}") from None
    except UnicodeError as error:
        raise InputError(
            f"{path} has bytes that {getattr(error, 'encoding', 'its encoding')} does not have",
            where=f"after line {line}",
            next="save it as UTF-8, or set data.encoding=NAME",
        ) from None
    except csv.Error as error:
        raise InputError(f"{path} is not a CSV table", where=f"after line {line}", cause=type(error).__name__) from None
    except (OSError, EOFError) as error:
        raise InputError(
            f"{path} cannot be read", cause=f"{type(error).__name__}: the file is damaged or was cut off"
        ) from None


class _Lines:
    """The lines of a table: none is longer than a text may be, and no record goes on over more of them than fit."""

    def __init__(self, path: Path, file: TextIO, first: str):
        self.path, self.file, self.first = path, file, first
        self.record = 0
        """Characters since the last record; whoever reads records sets it back."""

    def __iter__(self) -> Iterator[str]:
        number, line = 1, self.first
        while line:
            self.record += len(line)
            if len(line) >= (MAX_TEXT if number > 1 else MAX_HEADER) or self.record > MAX_RECORD:
                raise InputError(
                    f"{self.path} has a line that does not end"
                    if self.record <= MAX_RECORD
                    else f"{self.path} has a row of more than {MAX_RECORD >> 20} MiB",
                    where=f"line {number}",
                    cause="it is no table, or a quotation mark is never closed",
                    next="correct the table",
                )
            yield line
            number, line = number + 1, self.file.readline(MAX_TEXT)


def _header(first: str, form: TextForm) -> tuple[str, list[str]]:
    """(delimiter, column names) of a table's first line."""
    choices = (form.delimiter,) if form.delimiter else DELIMITERS
    cut = {choice: next(csv.reader([first], delimiter=choice), []) for choice in choices}
    best = max(choices, key=lambda choice: len(cut[choice]))
    return best, [name.strip() for name in cut[best]]


def decode_text(raw: bytes, form: TextForm = TextForm()) -> str:
    """A report file's bytes as text: the encoding wanted, a byte-order mark's, UTF-8, UTF-16, or cp1252."""
    for encoding in (form.encoding or guess_encoding(raw[:4096]), "cp1252"):
        try:
            return raw.decode(encoding).removeprefix("\ufeff")
        except (UnicodeError, LookupError):
            continue
    return raw.decode("utf-8", errors="replace")


def text_of(entry: dict[str, Any], field: str, path: Path) -> str | None:
    """A text field of a JSON entry, stripped; None if it is empty or absent.

    Raises:
        InputError: the field holds something other than text or a number.
    """
    value = entry.get(field)
    if isinstance(value, (int, Decimal)) and not isinstance(value, bool):
        value = str(value)
    if value is None or isinstance(value, str):
        return (value or "").strip() or None
    raise InputError(f"{path}: {field!r} is {type(value).__name__}, not text")


def list_of(entry: dict[str, Any], field: str, path: Path) -> list[str]:
    """A field of a JSON entry that holds a list of texts; a single text counts as a list of one.

    Raises:
        InputError: the field holds anything else.
    """
    value = entry.get(field)
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    raise InputError(f"{path}: {field!r} is not a list of texts")


@dataclass(frozen=True)
class SectionedReport:
    """A report's parts; None for a missing one. `text` is the part that a model learns."""

    text: str | None
    findings: str | None
    impression: str | None
    indication: str | None = None
    comparison: str | None = None
    technique: str | None = None


def parse_report(raw: str) -> SectionedReport:
    """Find the sections of a report such as MIMIC-CXR's by their headings.

    White space is folded. `text` is the findings followed by the impression. If a report has neither section, it is the
    last paragraph, where radiologists then write both.
    """
    parts: dict[str, list[str]] = {name: [] for name in HEADINGS}
    headings = list(_HEADING.finditer(raw))
    for heading, following in zip_longest(headings, headings[1:]):
        name = " ".join(heading.group(1).split())
        section = next((section for section, names in HEADINGS.items() if name in names), None)
        if section:
            parts[section].append(raw[heading.end() : following.start() if following else len(raw)])
    findings, impression, *context = (fold(" ".join(texts)) for texts in parts.values())
    text = join(findings, impression)
    if text is None:
        paragraphs = [p for p in re.split(r"\n[ \t]*\n", raw[headings[-1].end() :] if headings else raw) if p.strip()]
        text = fold(paragraphs[-1]) if paragraphs else None
    return SectionedReport(text, findings, impression, *context)


def fold(text: str | None) -> str | None:
    """The text with each run of white space as one space; None if nothing is left."""
    return " ".join((text or "").split()) or None


def join(findings: str | None, impression: str | None) -> str | None:
    """Findings, then impression; None if there is neither."""
    return " ".join(part for part in (findings, impression) if part) or None
