"""What a file is, from its first bytes: names and suffixes do not matter.

kind_of("IM000001")            # "dicom"
film_type(head)                # the same from the first HEADER_BYTES bytes, wherever they come from
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

# Enough for a gzip header with a long file name and the DICOM prefix behind it.
HEADER_BYTES = 1024
GZIP = b"\x1f\x8b\x08"
BMP_HEADERS = frozenset({12, 40, 52, 56, 64, 108, 124})

# What each type is called in a message.
NAMES = {
    "jpeg": "JPEG",
    "png": "PNG",
    "dicom": "DICOM",
    "tiff": "TIFF",
    "bmp": "BMP",
    "webp": "WebP",
    "jpeg2000": "JPEG 2000",
}


def film_type(head: bytes) -> str | None:
    """A key of `NAMES` from the first bytes of a file (132, or HEADER_BYTES if it may be gzipped); None for others.

    A gzipped DICOM file is "dicom". Other gzipped files are not read, so they have no type.
    """
    if head.startswith(GZIP):
        return "dicom" if film_type(_unpacked(head)) == "dicom" else None
    # A DICOM file may begin with a TIFF header in its preamble (PS3.10 7.1), so its own mark comes first.
    if head[128:132] == b"DICM":
        return "dicom"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in BMP_HEADERS:
        return "bmp"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "webp"
    if head.startswith((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")):
        return "jpeg2000"
    # Older archives hold bare data sets, which begin with a tag of group 0002 or 0008, little endian.
    if head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\x00" and len(head) > 8:
        return "dicom"
    return None


def kind_of(path: str | os.PathLike[str]) -> str | None:
    """The film type of a file; None for anything else, also for what cannot be opened and for pipes and devices."""
    try:
        if not Path(path).is_file():
            return None
        with Path(path).open("rb") as file:
            return film_type(file.read(HEADER_BYTES))
    except (OSError, ValueError):
        return None


def _unpacked(head: bytes) -> bytes:
    try:
        data = zlib.decompressobj(wbits=31).decompress(head, HEADER_BYTES)
    except zlib.error:
        return b""
    return b"" if data.startswith(GZIP) else data
