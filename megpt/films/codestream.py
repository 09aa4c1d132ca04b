"""What a compressed frame says of itself before it is decoded: JPEG, JPEG-LS and JPEG 2000 headers.

Decoders believe the frame rather than the DICOM header around it, so its size is read here and checked first.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

MARKERS_WITHOUT_LENGTH = frozenset({0xD8, 0x01, *range(0xD0, 0xD8)})
JPEG_LS = 0xF7
FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {JPEG_LS}
# In a JP2 file, boxes (colour profiles among them) come before the codestream.
JPEG2000_SEARCH = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Codestream:
    """`process` is the JPEG frame marker (0xC0 baseline, 0xC3 lossless, 0xF7 JPEG-LS, …), or 0x4F for JPEG 2000."""

    width: int
    height: int
    components: int
    precision: int
    process: int
    signed: bool = False
    # JPEG 2000: how often the picture can be halved without decoding it in full; 0 where that is not known.
    halvings: int = 0

    @property
    def is_jpeg2000(self) -> bool:
        return self.process == 0x4F


def read_codestream(frame: bytes) -> Codestream | None:
    """The header of a frame; None for anything else (RLE has none).

    Raises:
        struct.error: the header is cut off.
    """
    start = frame.find(b"\xff\x4f\xff\x51", 0, JPEG2000_SEARCH)
    return _jpeg2000(frame, start) if start >= 0 and not frame.startswith(b"\xff\xd8") else _jpeg(frame)


def _jpeg2000(frame: bytes, start: int) -> Codestream:
    length, _, right, bottom, left, top = struct.unpack_from(">HHIIII", frame, start + 4)
    (components,) = struct.unpack_from(">H", frame, start + 40)
    depth = frame[start + 42]
    return Codestream(
        width=max(right - left, 0),
        height=max(bottom - top, 0),
        components=components,
        precision=(depth & 0x7F) + 1,
        process=0x4F,
        signed=bool(depth & 0x80),
        # With an offset grid, the sizes of the smaller pictures follow other rules: such frames are decoded in full.
        halvings=0 if left or top else _halvings(frame, start + 4 + length),
    )


def _halvings(frame: bytes, position: int) -> int:
    """The number of decomposition levels in the main header's COD segment."""
    while position + 4 <= len(frame) and frame[position] == 0xFF and frame[position + 1] not in (0x90, 0x93, 0xD9):
        length = struct.unpack_from(">H", frame, position + 2)[0]
        if frame[position + 1] == 0x52:
            return frame[position + 9] if position + 9 < len(frame) else 0
        position += 2 + length
    return 0


def _jpeg(frame: bytes) -> Codestream | None:
    position = 0
    while position + 9 < len(frame) and frame[position] == 0xFF:
        marker = frame[position + 1]
        if marker in MARKERS_WITHOUT_LENGTH:
            position += 2
        elif marker == 0xFF:
            position += 1
        elif marker in FRAME_HEADERS:
            precision, height, width, components = struct.unpack_from(">BHHB", frame, position + 4)
            return Codestream(width=width, height=height, components=components, precision=precision, process=marker)
        else:
            position += 2 + struct.unpack_from(">H", frame, position + 2)[0]
    return None
