"""Text files as text: compressed or not, in the encoding that their bytes say."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from megpt.errors import InputError

CHUNK = 1 << 20
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def open_bytes(path: Path) -> BinaryIO:
    """The bytes of a file, unpacked where it is gzipped (told by its first bytes, not by its name)."""
    file = path.open("rb")
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if not packed:
        return file
    return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=file))))


def open_text(path: Path, encoding: str) -> TextIO:
    """A file as text, line ends as they are."""
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, newline="")


def head(path: Path, size: int = 256 * 1024) -> bytes:
    """The first bytes of a file, unpacked."""
    with readable(path), open_bytes(path) as file:
        return file.read(size)


def find_encoding(path: Path, wanted: str | None = None, *, setting: str = "evaluate.encoding") -> str:
    """The encoding of a text file: the one wanted, its byte-order mark's, UTF-8, UTF-16 without a mark, or cp1252.

    The whole file is read once, in pieces.

    Args:
        wanted: the encoding that the user named.
        setting: the key with which the user names one, for errors.

    Raises:
        InputError: the bytes are neither; it holds both UTF-8 and other letters; an unknown encoding is wanted.
    """
    if wanted is not None:
        try:
            return codecs.lookup(wanted).name
        except LookupError:
            raise InputError(f"unknown encoding {wanted!r}", next=f"set {setting}=utf-8, cp1252, …") from None
    guess = guess_encoding(head(path, 4096))
    return _utf8_or_cp1252(path, setting) if guess == "utf-8" else guess


def guess_encoding(start: bytes) -> str:
    """What a file's first bytes show: the encoding of a byte-order mark, UTF-16 without one, or else `utf-8`."""
    for mark, name in _MARKS:
        if start.startswith(mark):
            return name
    zeros = start[1::2].count(0), start[0::2].count(0)
    if max(zeros) > len(start) // 8:
        return "utf-16-le" if zeros[0] > zeros[1] else "utf-16-be"
    return "utf-8"


def _utf8_or_cp1252(path: Path, setting: str) -> str:
    """Bytes that are no UTF-8 pass as surrogates, so that both kinds of letters can be counted."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    lines, letters, strange, first = 0, False, set[int](), 0
    with readable(path), open_bytes(path) as file:
        more = True
        while more:
            data = file.read(CHUNK)
            more = bool(data)
            text = decoder.decode(data, final=not more)
            if not text.isascii():
                found = {ord(c) - 0xDC00 for c in text if "\udc80" <= c <= "\udcff"}
                if found and not strange:
                    place = next(i for i, c in enumerate(text) if "\udc80" <= c <= "\udcff")
                    first = lines + text.count("\n", 0, place) + 1
                strange |= found
                letters = letters or any(c > "\x7f" and not "\udc80" <= c <= "\udcff" for c in text)
            lines += text.count("\n")
    if not strange:
        return "utf-8"
    undefined = strange & {0x81, 0x8D, 0x8F, 0x90, 0x9D}
    if letters or undefined:
        raise InputError(
            f"{path} is neither UTF-8 nor cp1252 throughout",
            where=f"line {first}",
            cause="two encodings in one file, or a third one" if letters else "bytes that cp1252 does not have",
            next=f"save it as UTF-8, or set {setting}=NAME",
        )
    return "cp1252"


@contextlib.contextmanager
def readable(path: Path, encoding: str = "") -> Iterator[None]:
    """What the system says of a file inside the block, as an error for the screen.

    Raises:
        InputError: there is no such file, it is damaged, or it holds bytes that `encoding` does not have.
    """
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"no file at {path}", next="check the path") from None
    except (OSError, EOFError) as error:
        cause = f"{type(error).__name__}: the file is damaged, was cut off, or may not be read"
        raise InputError(f"{path} cannot be read", cause=cause) from None
    except UnicodeError:
        raise InputError(f"{path} is not {encoding}", next="set evaluate.encoding=NAME") from None
