"""Streams that megpt/films/members.py reads archives through: bounded, and with a memory for small steps back."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, cast

from megpt.films.unreadable import UnreadableFilm

# tarfile reads a long name or an extended header in one piece, whatever length it claims.
MAX_TAR_HEADER = 1 << 20
CHUNK, REMEMBERED = 1 << 20, 64
BOMB = "archive member that unfolds to too many bytes"


class BoundedFile:
    """A file that gives tarfile no header of huge size in one piece."""

    def __init__(self, file: Any):
        self._file = file

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= MAX_TAR_HEADER:
            raise UnreadableFilm(BOMB)
        return cast(bytes, self._file.read(count))

    def seek(self, offset: int) -> int:
        return cast(int, self._file.seek(offset))

    def tell(self) -> int:
        return cast(int, self._file.tell())


class UnfoldedFile(BoundedFile):
    """A packed stream: it ends in an error after `most` bytes, and remembers the last `REMEMBERED` chunks.

    Films of a study lie near each other, but are not always wanted in the archive's order. Without the memory each
    step backwards would unfold the archive from its start.
    """

    def __init__(self, file: Any, most: int):
        super().__init__(file)
        self._most, self._position, self._next = most, 0, 0
        self._last: int | None = None
        self._chunks: OrderedDict[int, bytes] = OrderedDict()

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= MAX_TAR_HEADER or self._position + count > self._most:
            raise UnreadableFilm(BOMB)
        number, start = divmod(self._position, CHUNK)
        data = self._chunk(number)[start : start + count]
        if start + count > CHUNK:
            data += self._chunk(number + 1)[: start + count - CHUNK]
        self._position += len(data)
        return data

    def seek(self, offset: int) -> int:
        self._position = offset
        return offset

    def tell(self) -> int:
        return self._position

    def _chunk(self, number: int) -> bytes:
        if number in self._chunks:
            return self._chunks[number]
        if self._last is not None and number > self._last:
            return b""
        if number < self._next:
            self._file.seek(0)
            self._next = 0
            self._chunks.clear()
        while self._next <= number:
            data = self._file.read(CHUNK)
            self._chunks[self._next] = data
            if len(self._chunks) > REMEMBERED:
                self._chunks.popitem(last=False)
            self._next += 1
            if len(data) < CHUNK:
                self._last = self._next - 1
                break
        return self._chunks.get(number, b"")
