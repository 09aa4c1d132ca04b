"""The deflated transfer syntax (PS3.5 A.5), unpacked no further than its first frame.

A megabyte may unfold to a gigabyte, so the header is unpacked first, within a fixed bound, and of the pixels only as
much as that header asks for, once it was found to ask for no more than is allowed.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import BinaryIO

import pydicom

from megpt.films.unreadable import UnreadableFilm, refuse_large

DEFLATED = b"1.2.840.10008.1.2.1.99"
# The meta header holds some ten short elements.
META_BYTES = 1 << 14
# Overlays and look-up tables may come before the pixels, and take some megabytes in all.
HEADER_BYTES = 1 << 25
SIZES = ["Rows", "Columns", "SamplesPerPixel", "BitsAllocated"]
# The header of the pixel data, and what trails the frame.
SLACK = 1 << 10
CHUNK = 1 << 16
MAX_SAMPLES, MAX_BITS = 4, 64


def inflated(file: BinaryIO, *, max_pixels: int, header_only: bool = False) -> BinaryIO:
    """`file` itself at its start, or for a deflated data set its unpacked header and first frame.

    Raises:
        UnreadableFilm: more than `max_pixels` pixels, or a header beyond all measure.
        zlib.error: damaged.
    """
    start = _start_of_deflated(file)
    if start is None:
        file.seek(0)
        return file
    file.seek(start)
    unpack = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
    data = bytearray()
    # A film of the usual size is unpacked in one step; a long header costs a second try.
    for bound in (CHUNK, HEADER_BYTES):
        ended = _unpack(file, unpack, data, bound)
        pixels = _pixels_at(data)
        if pixels is not None or ended:
            break
    if pixels is None:
        if not ended:
            raise UnreadableFilm(f"deflated DICOM whose header unfolds to more than {HEADER_BYTES >> 20} MiB")
        return io.BytesIO(bytes(data))
    if not header_only:
        at, rows, columns, sample_bytes = pixels
        refuse_large(columns, rows, max_pixels)
        _unpack(file, unpack, data, at + rows * columns * sample_bytes + SLACK)
    return io.BytesIO(bytes(data))


def _start_of_deflated(file: BinaryIO) -> int | None:
    """Where the deflated part begins; None for every other transfer syntax."""
    head = file.read(META_BYTES)
    if head[128:132] != b"DICM" or DEFLATED not in head:
        return None
    position, end, syntax = 132, len(head), b""
    while position + 12 <= end:
        group, element, vr, length = struct.unpack_from("<HH2sH", head, position)
        if group != 2:
            break
        position += 8
        if vr in (b"OB", b"OW", b"UN", b"UT", b"SQ"):
            length = struct.unpack_from("<I", head, position)[0]
            position += 4
        if element == 0x00 and length == 4:
            # What follows the group may look like one more of its elements.
            end = min(end, position + 4 + struct.unpack_from("<I", head, position)[0])
        elif element == 0x10:
            syntax = head[position : position + length].rstrip(b"\0 ")
        position += length
    return position if syntax == DEFLATED else None


def _unpack(file: BinaryIO, unpack, data: bytearray, bound: int) -> bool:
    """Unpack until `data` holds `bound` bytes; True if the stream ended before."""
    while len(data) < bound and not unpack.eof:
        packed = unpack.unconsumed_tail or file.read(CHUNK)
        if not packed:
            return True
        data += unpack.decompress(packed, bound - len(data))
    return unpack.eof


def _pixels_at(data: bytearray) -> tuple[int, int, int, int] | None:
    """(offset of the pixel data, rows, columns, bytes a pixel) if the whole header is there."""
    file = io.BytesIO(bytes(data))
    try:
        header = pydicom.dcmread(file, force=True, stop_before_pixels=True, specific_tags=SIZES)
        if file.read(4) != b"\xe0\x7f\x10\x00":
            return None
        rows, columns = int(header.Rows), int(header.Columns)
        # More than this is refused once the header is read in full.
        samples = min(int(header.get("SamplesPerPixel") or 3), MAX_SAMPLES)
        allocated = min(int(header.get("BitsAllocated") or 32), MAX_BITS)
    except Exception:
        # Cut off in the middle of an element, which pydicom reports in many ways.
        return None
    return file.tell() - 4, rows, columns, samples * (allocated + 7) // 8
