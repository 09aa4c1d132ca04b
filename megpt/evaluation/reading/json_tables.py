"""JSON and JSON lines as tables.

A list of records or of texts, records or texts by id, R2Gen's annotation (lists under train, val, test), or columns
(`{"ids": […], "preds": […]}`, and what `DataFrame.to_json` writes). A file up to `SMALL` is read at once by the json
module, which also takes the NaN that Python writes; a larger one streams through ijson.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import ijson

from megpt.data.encoding import open_bytes, open_text, readable
from megpt.errors import InputError
from megpt.evaluation.reading.ids import named

KEY, TEXT, SPLIT = "(key)", "(text)", "(split)"
ANNOTATION = "R2Gen annotation"
SMALL = 128 * 2**20
"""Characters of a JSON file that is held as a whole."""
LONGEST_LINE = 16 * 2**20
PEEK = 200
_SPLITS = ("train", "val", "test")

Rows = Callable[[], Iterator[tuple[int, dict[str, Any]]]]
Opened = tuple[str, list[str], Rows]


class _Object(dict[str, Any]):
    """A JSON object that remembers keys it held more than once."""

    twice: tuple[str, ...] = ()


def open_json(path: Path, encoding: str, names: frozenset[str]) -> Opened:
    """(kind, columns, rows) of a JSON file or of JSON lines.

    Args:
        names: column names that are known, in lower case; they tell columns and a record from entries by id.

    Raises:
        InputError: not JSON (with line and column), or of a shape that holds no reports.
    """
    if _one_object_a_line(path, encoding):
        return _json_lines(path, encoding)
    text = _text(path, encoding)
    return _large(path, encoding) if text is None else _shape(path, _parsed(path, text), names)


def _one_object_a_line(path: Path, encoding: str) -> bool:
    """Whether the first line is an object of its own and another one begins on the next."""
    with readable(path, encoding), open_text(path, encoding) as file:
        every = iter(lambda: file.readline(LONGEST_LINE), "")
        lines = list(islice((line for line in (part.strip("\ufeff \t\r\n") for part in every) if line), 2))
    if len(lines) < 2 or not lines[1].startswith("{"):
        return False
    try:
        return isinstance(json.loads(lines[0]), dict)
    except (ValueError, RecursionError):
        return False


def _json_lines(path: Path, encoding: str) -> Opened:
    """(kind, columns, rows) of a file with one JSON object a line."""

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        number = 0
        with readable(path, encoding), open_text(path, encoding) as file:
            for line_number, line in enumerate(file, 1):
                line = line.strip("\ufeff \t\r\n")
                if not line:
                    continue
                number += 1
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    column = getattr(error, "colno", 1)
                    raise InputError(
                        f"{path} is not JSON lines",
                        where=f"line {line_number}, column {column}",
                        cause="the line is no JSON object: cut off, or not one object a line",
                    ) from None
                if not isinstance(record, dict):
                    raise InputError(
                        f"{path} is not JSON lines", where=f"line {line_number}", cause="it holds no object"
                    )
                yield number, record

    return "JSON lines", _columns(rows), rows


def _text(path: Path, encoding: str) -> str | None:
    """All of a file, unpacked; None where it is too large to be held."""
    with readable(path, encoding), open_text(path, encoding) as file:
        text = file.read(SMALL + 1)
    return None if len(text) > SMALL else text.removeprefix("\ufeff")


def _parsed(path: Path, text: str) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> _Object:
        result = _Object(items)
        if len(result) < len(items):
            times = Counter(key for key, _ in items)
            result.twice = tuple(key for key, count in times.items() if count > 1)
        return result

    try:
        return json.loads(text, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path} is not valid JSON", where=f"line {error.lineno}, column {error.colno}", cause=error.msg.lower()
        ) from None
    except RecursionError:
        raise InputError(f"{path} is nested too deeply to hold reports") from None


def _shape(path: Path, data: Any, names: frozenset[str]) -> Opened:
    if isinstance(data, list):
        return _listed(path, lambda: iter(data))
    if not isinstance(data, _Object) or not data:
        raise InputError(
            f"{path} holds no reports", cause=f"its JSON is {'an empty object' if data == {} else type(data).__name__}"
        )
    if set(data) & set(_SPLITS) and all(isinstance(data[key], list) for key in data if key in _SPLITS):
        return _annotation(path, {split: lambda split=split: iter(data[split]) for split in _SPLITS if split in data})
    known = any(key.lower() in names for key in data)
    if known and not any(isinstance(value, (dict, list)) for value in data.values()):
        return _listed(path, lambda: iter([data]))  # one record
    if known and (named := _columnar(data)):
        count = len(next(iter(named.values())))
        listed = [{name: values[i] for name, values in named.items()} for i in range(count)]
        return "JSON columns", list(named), lambda: iter(enumerate(listed, 1))
    if data.twice:
        raise twice_in(path, data.twice)
    if (wrapped := _wrapped(data, names)) is not None:
        kind, columns, rows = _listed(path, lambda: iter(data[wrapped]))
        return f"{kind} {wrapped[:40]!r}", columns, rows
    return _keyed(path, lambda: iter(data.items()))


def _large(path: Path, encoding: str) -> Opened:
    """The same for a file that is too large to be held: only lists, and entries by id."""
    if encoding not in ("utf-8", "utf-8-sig"):
        raise InputError(f"{path} is JSON in {encoding}, and large", next="save it as UTF-8, or as JSON lines")

    def stream(read: Callable[[Any], Iterator[Any]]) -> Iterator[Any]:
        with readable(path), open_bytes(path) as file:
            if encoding == "utf-8-sig":
                file.read(3)
            try:
                yield from read(file)
            except (ijson.JSONError, UnicodeError) as error:
                raise InputError(f"{path} is not valid JSON", cause=type(error).__name__) from None

    events = list(islice(stream(ijson.basic_parse), 2))
    if events[0][0] == "start_array":
        return _listed(path, lambda: stream(lambda file: ijson.items(file, "item", use_float=True)))
    if events[-1][1] in _SPLITS:
        return _annotation(
            path, {s: lambda s=s: stream(lambda f: ijson.items(f, f"{s}.item", use_float=True)) for s in _SPLITS}
        )
    return _keyed(path, lambda: stream(lambda file: ijson.kvitems(file, "", use_float=True)))


def _listed(path: Path, items: Callable[[], Iterator[Any]]) -> Opened:
    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        for number, item in enumerate(items(), 1):
            if isinstance(item, dict):
                yield number, item
            elif item is None or isinstance(item, str):
                yield number, {TEXT: item}
            else:
                raise InputError(f"{path}: entry {number} is {type(item).__name__}, neither a record nor a text")

    return "JSON list", _columns(rows), rows


def _keyed(path: Path, items: Callable[[], Iterator[tuple[str, Any]]]) -> Opened:
    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        for number, (key, value) in enumerate(items(), 1):
            yield number, {KEY: key, **(value if isinstance(value, dict) else {TEXT: value})}

    return "JSON by id", _columns(rows), rows


def _annotation(path: Path, splits: dict[str, Callable[[], Iterator[Any]]]) -> Opened:
    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        number = 0
        for split, entries in splits.items():
            for entry in entries():
                number += 1
                if not isinstance(entry, dict):
                    raise InputError(f"{path}: entry {number} ({split}) is {type(entry).__name__}, not a record")
                yield number, {**entry, SPLIT: split}

    return ANNOTATION, _columns(rows), rows


def _columnar(data: _Object) -> dict[str, list[Any]] | None:
    """Columns of equal length: lists, or the objects by row number that pandas writes."""
    values = list(data.values())
    if len(values) < 2:
        return None
    if all(isinstance(v, list) for v in values) and len({len(v) for v in values}) == 1:
        return {name: list(column) for name, column in data.items()}
    numbered = all(isinstance(v, dict) and v and list(v) == [str(i) for i in range(len(v))] for v in values)
    if numbered and len({len(v) for v in values}) == 1:
        return {name: list(column.values()) for name, column in data.items()}
    return None


def _wrapped(data: _Object, names: frozenset[str]) -> str | None:
    """The key of the only list of records, beside settings and scores: `{"results": […], "metrics": {…}}`."""
    found = [key for key, value in data.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    return found[0] if len(found) == 1 and any(str(name).lower() in names for name in data[found[0]][0]) else None


def _columns(rows: Rows) -> list[str]:
    """Names in the first rows, in the order in which they come up."""
    return list(dict.fromkeys(str(name) for _, row in islice(rows(), PEEK) for name in row))


def twice_in(path: Path, ids: tuple[str, ...]) -> InputError:
    """The error for ids that stand in a file more than once; see `ids.named`."""
    return InputError(
        f"{len(set(ids))} ids are in {path} more than once",
        where=named(sorted(set(ids))),
        cause="two runs in one file, or one row an image where the study is the unit",
        next="remove the repeated rows, or set evaluate.columns.id to a column that names each row once",
    )
