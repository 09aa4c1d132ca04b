"""Reduced-resolution decoding: a JPEG or JPEG 2000 frame at the smallest scale that still leaves enough pixels.

A JPEG 2000 frame holds its picture as a pyramid, and the coarse levels are decoded without touching the fine ones:
for a 2500×3000 film wanted at 224, a sixteenth of the work.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from megpt.films.codestream import Codestream
from megpt.films.resize import Box

# A draft of twice the wanted size is within one grey level of a decode at full size.
DRAFT_MARGIN = 2


def is_whole(frame: bytes) -> bool:
    """Whether the end marker is there: coarse levels decode even where the fine ones are lost."""
    return frame.rstrip(b"\0").endswith(b"\xff\xd9")


def halvings(stream: Codestream, size: int) -> int:
    """How often a JPEG 2000 picture is halved so that its shorter side keeps DRAFT_MARGIN times `size`."""
    count = 0
    while count < stream.halvings and min(stream.width, stream.height) >> (count + 1) >= size * DRAFT_MARGIN:
        count += 1
    return count


def decode_jpeg2000(data: bytes, stream: Codestream, size: int | None) -> tuple[Image.Image, Box | None]:
    """The picture, and the part of it that the film covers (None for all of it).

    Pillow gives 9 to 16 bits as mode "I;16", moved up to the top of the 16 bits.
    """
    steps = halvings(stream, size) if size is not None and is_whole(data) else 0
    if steps:
        try:
            return _halved(data, stream, steps)
        except (OSError, ValueError, AttributeError, IndexError, TypeError):
            # A tile may have fewer levels than the main header says; a Pillow may keep its tiles elsewhere.
            pass
    image = Image.open(io.BytesIO(data), formats=("JPEG2000",))
    image.load()
    return image, None


def _halved(data: bytes, stream: Codestream, steps: int) -> tuple[Image.Image, Box]:
    image = Image.open(io.BytesIO(data), formats=("JPEG2000",))
    power = 1 << steps
    if image.size != (stream.width, stream.height):
        raise ValueError("not one grid for all")
    # Pillow's own `reduce` rounds the size to the nearest, the codestream rounds up, and then it calls the file broken.
    size = (-(-stream.width // power), -(-stream.height // power))
    codec, _, *rest = image.tile[0].args or ()
    image.tile = [image.tile[0]._replace(extents=(0, 0, *size), args=(codec, steps, *rest))]
    image._size = size
    pixels = np.asarray(image)
    # A coarse sample lies where the first of its `power` fine ones lay, not in their middle (T.800 annex F), so
    # the film begins that much further in and ends that much beyond the last sample.
    shift = 0.5 - 0.5 / power
    padded = np.pad(pixels, ((0, 1), (0, 1), (0, 0))[: pixels.ndim], mode="edge")
    return Image.fromarray(padded), (shift, shift, shift + stream.width / power, shift + stream.height / power)


def decode_jpeg(data: bytes, size: int) -> tuple[Image.Image, Box | None]:
    """A grey 8-bit JPEG at the smallest scale that leaves DRAFT_MARGIN times `size`."""
    image = Image.open(io.BytesIO(data), formats=("JPEG",))
    if image.mode != "L":
        raise UnidentifiedImageError("not a grey JPEG")
    drafted = image.draft("L", (size * DRAFT_MARGIN, size * DRAFT_MARGIN))
    image.load()
    return image, drafted[1] if drafted else None
