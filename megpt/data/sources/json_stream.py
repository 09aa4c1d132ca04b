"""JSON lists and objects of studies, streamed entry by entry: memory holds one entry, however long the file is.

    for entry in json_items(Path("annotation.json"), "train.item"): ...
    for name, key, entry in json_entries(Path("ReXRank_IU.json")): ...

An entry larger than `MAX_TEXT` is refused: no study is described at such length, and it would be held as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ijson
from ijson.common import ObjectBuilder

from megpt.data.parquet import MAX_TEXT
from megpt.errors import InputError

STARTS, ENDS = ("start_map", "start_array"), ("end_map", "end_array", "map_key")
_OVERHEAD = 50
"""Bytes that Python needs for a value."""
Events = Iterator[tuple[str, str, Any]]
"""(prefix, event, value), as `ijson.parse` gives them."""


def json_items(path: Path, prefix: str) -> Iterator[Any]:
    """The elements under an ijson prefix (`item` for a list, `train.item` for a list under a key), streamed.

    Raises:
        InputError: no such file, not JSON, or an element that is larger than any study.
    """

    def values(events: Events) -> Iterator[Any]:
        for place, event, value in events:
            if place == prefix and event not in ENDS:
                yield _built(path, event, value, events)

    yield from _json(path, values)


def json_entries(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(name for errors, key, entry) of a JSON object of entries by key, or of a list, whose keys are "".

    Raises:
        InputError: as `json_items`, or an entry is not an object.
    """

    def values(events: Events) -> Iterator[tuple[str, Any]]:
        for place, event, value in events:
            if place == "" and event == "map_key":
                _, begins, inner = next(events)
                yield value, _built(path, begins, inner, events)

    listed = json_is_list(path)
    found = json_items(path, "item") if listed else _json(path, values)
    for number, item in enumerate(found):
        key, entry = ("", item) if listed else item
        name = f"entry {key or number}"
        if not isinstance(entry, dict):
            raise InputError(f"{path}: {name} is not an object")
        yield name, key, entry


def json_is_list(path: Path) -> bool:
    """Whether a JSON file holds a list rather than an object."""
    return next((event == "start_array" for _, event, _ in _json(path, iter)), False)


def json_keys(path: Path, most: int) -> list[str]:
    """The first keys of a JSON object that begin in its first megabyte; [] for anything else."""
    keys: list[str] = []
    try:
        with path.open("rb") as file:
            for prefix, event, value in ijson.parse(_Head(file, 1 << 20)):
                if prefix == "" and event == "map_key":
                    keys.append(value)
                    if len(keys) >= most:
                        break
    except (ijson.JSONError, OSError, UnicodeDecodeError):
        pass
    return keys


def _built(path: Path, event: str, value: Any, stream: Events) -> Any:
    """The value that begins with an event; `stream` gives the others."""
    if event not in STARTS:
        return value
    builder, depth, size = ObjectBuilder(), 1, 0
    builder.event(event, value)
    for _, event, value in stream:
        builder.event(event, value)
        size += _OVERHEAD + (len(value) if value.__class__ is str else 0)
        if event in STARTS:
            depth += 1
        elif event in ENDS and event != "map_key":
            depth -= 1
            if not depth:
                break
        if size > MAX_TEXT:
            raise _too_large(path)
    return builder.value


def _too_large(path: Path) -> InputError:
    return InputError(
        f"{path} has an entry of more than {MAX_TEXT >> 20} MiB",
        cause="no study is described at such length; the list is damaged, or made to fill the memory",
        next="correct the list",
    )


class _Head:
    """The beginning of a file, as a file."""

    def __init__(self, file: BinaryIO, size: int):
        self._file, self._left = file, size

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data


class _NoEnd(Exception):
    """A single text is as long as an entry may be."""


class _Metered:
    """A file whose reader says when it has found something: the parser holds a text until it ends."""

    def __init__(self, file: BinaryIO):
        self._file, self.since = file, 0

    def read(self, size: int = -1) -> bytes:
        if self.since > MAX_TEXT:
            raise _NoEnd
        data = self._file.read(size)
        self.since += len(data)
        return data


def _events(file: _Metered) -> Events:
    for event in ijson.parse(file):
        file.since = 0
        yield event


def _json(path: Path, values: Callable[[Events], Iterator[Any]]) -> Iterator[Any]:
    try:
        with path.open("rb") as file:
            yield from values(_events(_Metered(file)))
    except FileNotFoundError:
        raise InputError(f"no list at {path}") from None
    except _NoEnd:
        raise _too_large(path) from None
    except (ijson.JSONError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON", cause=type(error).__name__) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read", cause=type(error).__name__) from None
