"""JPEG, PNG, TIFF, BMP, WebP and JPEG 2000 files → a grey picture the right way up.

EXIF and TIFF orientation is applied. Of several pages or frames, the first is taken. 16 bits are scaled by the number
of bits in use, because films of 10, 12 or 14 bits are stored in 16-bit files without scaling.
"""

from __future__ import annotations

import io
import struct
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, ImageOps

from megpt.films import frames
from megpt.films.codestream import Codestream, read_codestream
from megpt.films.reduced import DRAFT_MARGIN, decode_jpeg2000
from megpt.films.resize import shrink
from megpt.films.unreadable import UnreadableFilm, refuse_large

PILLOW_NAMES = {"jpeg": "JPEG", "png": "PNG", "tiff": "TIFF", "bmp": "BMP", "webp": "WEBP", "jpeg2000": "JPEG2000"}
# Markers of the JPEG frames that Pillow decodes: baseline, extended, progressive; the last two with arithmetic codes.
PILLOW_PROCESSES = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
# A film's top is what all but this share of its pixels stay under: a hot pixel or a burnt-in letter does not set it.
OUTLIERS = 0.001
WEBP_HEADER = 30
WHITE_IS_ZERO, PHOTOMETRIC = 0, 262


def load(file: BinaryIO, kind: str, *, size: int | None, max_pixels: int) -> Image.Image:
    """A picture file → mode "L", shrunk to `size`.

    Raises:
        UnreadableFilm: more than `max_pixels` pixels, or a JPEG that no decoder here reads. Damaged files may raise
            whatever their decoder raises.
    """
    if kind == "jpeg":
        stored = _beyond_pillow(file, max_pixels)
        if stored is not None:
            grey = from_bits(stored)
            return grey if size is None else shrink(grey, size)
    with _open(file, kind, max_pixels) as image:
        full, box = image.size, None
        decoded = image
        if kind == "jpeg" and size is not None:
            drafted = image.draft("L", (size * DRAFT_MARGIN, size * DRAFT_MARGIN))
            box = drafted[1] if drafted else None
        elif kind == "jpeg2000":
            data = _all_of(file)
            stream = read_codestream(data)
            if stream is None:
                raise UnreadableFilm("damaged JPEG 2000 (no codestream)")
            decoded, box = decode_jpeg2000(data, stream, size)
        grey = _grey(decoded, file, kind)
        # Shrunk first: turning is then cheap, and the box needs no turning.
        return _upright(image, grey if size is None else shrink(grey, size, full=full, box=box), kind)


def check(file: BinaryIO, kind: str, *, max_pixels: int) -> None:
    """Read the header alone.

    Raises:
        UnreadableFilm: more than `max_pixels` pixels.
    """
    if kind == "jpeg" and _other_jpeg(file, max_pixels) is not None:
        return
    _open(file, kind, max_pixels).close()


def from_bits(pixels: np.ndarray) -> Image.Image:
    """(H, W) or (H, W, 3) of 9 to 32 significant bits, or floats → mode "L"."""
    if pixels.ndim == 3:
        pixels = np.rint(pixels @ np.array([0.299, 0.587, 0.114])).astype(np.uint16)
    if pixels.dtype.kind == "f":
        pixels = np.nan_to_num(pixels, nan=0.0, posinf=0.0, neginf=0.0)
    lowest = pixels.min(initial=0)
    if lowest < 0:
        pixels = pixels.astype(np.float64 if pixels.dtype.kind == "f" else np.int64) - lowest
    full = full_scale(pixels)
    if pixels.dtype == np.uint16:
        table = np.rint(np.arange(1 << 16) * (255.0 / full)).clip(0, 255).astype(np.uint8)
        return Image.fromarray(table.take(pixels))
    return Image.fromarray(np.rint(pixels * (255.0 / full)).clip(0, 255).astype(np.uint8))


def full_scale(pixels: np.ndarray) -> float:
    """The largest value of the bits in use, at least 255; 1.0 for floats in [0, 1].

    A bit is in use if more than the share OUTLIERS of the pixels (and more than one of them) need it.
    """
    outliers = max(1, int(pixels.size * OUTLIERS)) if pixels.size > 1 else 0
    if pixels.dtype.kind == "f" and np.count_nonzero(pixels > 1.0) <= outliers:
        return 1.0
    bits = max(8, int(np.ceil(pixels.max(initial=0))).bit_length())
    while bits > 8 and np.count_nonzero(pixels > (1 << (bits - 1)) - 1) <= outliers:
        bits -= 1
    return float((1 << bits) - 1)


def _open(file: BinaryIO, kind: str, max_pixels: int) -> Image.Image:
    """The opened picture, its size checked and nothing decoded."""
    if kind == "webp":
        # Pillow allocates the canvas as soon as it opens the file.
        head = file.read(WEBP_HEADER)
        file.seek(0)
        refuse_large(*_webp_size(head), max_pixels)
    image = Image.open(file, formats=(PILLOW_NAMES[kind],))
    refuse_large(*image.size, max_pixels)
    return image


def _webp_size(head: bytes) -> tuple[int, int]:
    """(width, height) of a WebP file: extended, lossless or lossy."""
    if head[12:16] == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if head[12:16] == b"VP8L":
        bits = struct.unpack_from("<I", head, 21)[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", head, 26)
    return width & 0x3FFF, height & 0x3FFF


def _all_of(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


def _other_jpeg(file: BinaryIO, max_pixels: int) -> Codestream | None:
    """The header of a JPEG that Pillow does not decode (lossless, more than 8 bits, JPEG-LS); None for all others."""
    # The frame header follows the application segments, which may hold previews and profiles of some hundred kilobytes.
    head = file.read(1 << 20)
    file.seek(0)
    stream = read_codestream(head)
    if stream is None or (stream.precision == 8 and stream.process in PILLOW_PROCESSES):
        return None
    refuse_large(stream.width, stream.height, max_pixels)
    return stream


def _beyond_pillow(file: BinaryIO, max_pixels: int) -> np.ndarray | None:
    stream = _other_jpeg(file, max_pixels)
    return None if stream is None else frames.bare_jpeg(_all_of(file), stream)


def _grey(image: Image.Image, file: BinaryIO, kind: str) -> Image.Image:
    """The decoded picture → mode "L"."""
    deep = _deep_colour(image, file, kind)
    if deep is not None:
        return from_bits(deep)
    if image.mode.startswith(("I", "F")):
        pixels = np.asarray(image)
        if kind == "tiff" and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # pyrefly: ignore[missing-attribute]
            # Pillow inverts 8 bits only.
            return ImageOps.invert(from_bits(pixels))
        return from_bits(pixels)
    if image.mode == "P":
        return image.convert("RGB").convert("L")
    return image.convert("L")


def _deep_colour(image: Image.Image, file: BinaryIO, kind: str) -> np.ndarray | None:
    """(H, W) or (H, W, 3) uint16 of a PNG with 16 bits in each of several channels; None for all others.

    Pillow keeps the upper eight bits only, which leaves next to nothing of a 12-bit film.
    """
    tiles = image.tile if kind == "png" and isinstance(image, ImageFile.ImageFile) else []
    raw = tiles[0].args if tiles else None
    if isinstance(raw, str) and raw in ("RGB;16B", "RGBA;16B"):
        # The little-endian unpacker takes the other byte of each pair.
        high, low = _unpacked(file, raw, image.mode), _unpacked(file, raw[:-1] + "L", image.mode)
        return (high.astype(np.uint16) << 8 | low)[..., :3]
    if raw == "LA;16B":
        pairs = _unpacked(file, "RGBA", "RGBA").astype(np.uint16)
        return pairs[..., 0] << 8 | pairs[..., 1]
    return None


def _unpacked(file: BinaryIO, raw: str, mode: str) -> np.ndarray:
    with Image.open(io.BytesIO(_all_of(file)), formats=("PNG",)) as image:
        image._mode = mode
        image.tile = [tile._replace(args=raw) for tile in image.tile]
        return np.asarray(image)


def _upright(image: Image.Image, grey: Image.Image, kind: str) -> Image.Image:
    """`grey` turned as the file's EXIF data says. Pillow turns TIFF itself."""
    if kind == "tiff":
        return grey
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:
        # A film with broken EXIF data is shown as it is stored, as viewers do.
        return grey
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    return grey if turn is None else grey.transpose(turn)
