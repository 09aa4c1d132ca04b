"""Films: encoded bytes in, one grey picture out, whatever the file calls itself.

    image = load_film(view, size=224, max_pixels=200_000_000)      # PIL, mode "L", shorter side 224

The kind of a film is read from its first bytes, never from its name. A JPEG is decoded at the smallest of the
scales its format offers (Pillow's `draft`) that still leaves twice the wanted size, so that the last step, an
antialiased resize, has enough to work with. The pixel count is read from the header and checked before any pixel.
"""

from __future__ import annotations

import io
import os
import stat
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile

from megpt.films import dicom
from megpt.films.dicom import UnreadableFilm
from megpt.study import Study, View

__all__ = ["MISSING", "UnreadableFilm", "check_film", "kind_of", "load_film", "load_films", "read_film", "shrink"]

# Pillow's own limit warns and refuses at fixed sizes; here `max_pixels` decides, for every format alike.
Image.MAX_IMAGE_PIXELS = None
ImageFile.LOAD_TRUNCATED_IMAGES = False

# Draft to twice the wanted size: at most one grey level off a decode at full size.
DRAFT_MARGIN = 2
HEADER_BYTES = 132
# The reason of a film that is not where it should be: not in the archive, or the archive not on this machine.
MISSING = "missing file"

Box = tuple[float, float, float, float]


def kind_of(head: bytes) -> str | None:
    """`jpeg`, `png` or `dicom` from the first 132 bytes of a file; None for anything else."""
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head[128:132] == b"DICM":
        return "dicom"
    # Older archives hold bare data sets: they begin with a tag of group 0002 or 0008, little endian.
    if head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\x00" and len(head) > 8:
        return "dicom"
    return None


def load_film(view: View, *, size: int | None, max_pixels: int) -> Image.Image:
    """One film as a grey picture.

    Args:
        size: its shorter side is resized to this where it is longer; None leaves it as it is.
        max_pixels: a film whose header says more is refused before it is decoded.

    Returns:
        PIL image, mode "L".

    Raises:
        UnreadableFilm: missing, empty, damaged, too large, or neither JPEG, PNG nor DICOM.
    """
    kind, file = _open(view)
    with file:
        try:
            if kind == "dicom":
                image = dicom.load(file, max_pixels=max_pixels)
                return image if size is None else shrink(image, size)
            return _load_picture(file, size=size, max_pixels=max_pixels)
        except UnreadableFilm:
            raise
        except MemoryError:
            raise UnreadableFilm("not enough memory to decode it") from None
        except Exception as error:
            # Decoders raise anything on damaged input, and their messages may quote the file: only the type is kept.
            raise UnreadableFilm(f"damaged {kind.upper()} ({type(error).__name__})") from None


def load_films(study: Study, *, size: int | None, max_views: int | None, max_pixels: int) -> list[Image.Image]:
    """The readable films among a study's first `max_views`, in the archive's order.

    Raises:
        UnreadableFilm: the study has no films, or none of them is readable (the first film's reason).
    """
    if not study.views:
        raise UnreadableFilm("the study has no films")
    images, reasons = [], []
    for view in study.views[:max_views]:
        try:
            images.append(load_film(view, size=size, max_pixels=max_pixels))
        except UnreadableFilm as error:
            reasons.append(error.reason)
    if not images:
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        raise UnreadableFilm(reasons[0] + more)
    return images


def check_film(view: View, *, max_pixels: int) -> None:
    """Read a film's header only.

    Raises:
        UnreadableFilm: missing, empty, too large, or not a film. Damage behind the header is not seen.
    """
    kind, file = _open(view)
    with file:
        try:
            if kind == "dicom":
                dicom.check(file, max_pixels=max_pixels)
            else:
                with Image.open(file, formats=("JPEG", "PNG")) as image:
                    _refuse_bomb(image.size, max_pixels)
        except UnreadableFilm:
            raise
        except Exception as error:
            raise UnreadableFilm(f"damaged {kind.upper()} ({type(error).__name__})") from None


def read_film(view: View) -> bytes:
    """A film's file as it is.

    Raises:
        UnreadableFilm: missing, empty, or not a film by its first bytes.
    """
    _, file = _open(view)
    with file:
        try:
            return file.read()
        except OSError as error:
            raise UnreadableFilm(f"cannot be read ({type(error).__name__})") from None


def shrink(
    image: Image.Image, size: int, *, full: tuple[int, int] | None = None, box: Box | None = None
) -> Image.Image:
    """The picture with its shorter side at `size`; a smaller one is returned as it is.

    Args:
        full: the size of the film itself, where `image` was decoded at a smaller scale.
        box: the part of `image` that the film covers: at such a scale its last pixels lie partly outside.
    """
    width, height = full or image.size
    shorter = min(width, height)
    if shorter <= size:
        return image
    target = (max(1, round(width * size / shorter)), max(1, round(height * size / shorter)))
    return image.resize(target, Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)


def _open(view: View) -> tuple[str, BinaryIO]:
    """The film's kind, and the open file at its start."""
    file = io.BytesIO(view.data) if view.data is not None else _open_path(view.uri)
    try:
        head = file.read(HEADER_BYTES)
        file.seek(0)
    except OSError as error:
        file.close()
        raise UnreadableFilm(f"cannot be read ({type(error).__name__})") from None
    kind = kind_of(head)
    if kind is None:
        file.close()
        raise UnreadableFilm("not a JPEG, PNG or DICOM file" if head else "empty file")
    return kind, file


def _open_path(uri: str | None) -> BinaryIO:
    if uri is None:
        raise UnreadableFilm("no path inside the archive")
    try:
        # A pipe or a device would block for ever, or never end.
        if not stat.S_ISREG(os.stat(uri).st_mode):  # noqa: PTH116
            raise UnreadableFilm("not a file")
        return open(uri, "rb")  # noqa: PTH123 (closed by the caller)
    except (FileNotFoundError, NotADirectoryError):
        raise UnreadableFilm(MISSING) from None
    except (OSError, ValueError) as error:
        raise UnreadableFilm(f"cannot be opened ({type(error).__name__})") from None


def _refuse_bomb(size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise UnreadableFilm(f"{size[0]}x{size[1]} pixels, more than data.max_pixels")


def _load_picture(file: BinaryIO, *, size: int | None, max_pixels: int) -> Image.Image:
    """JPEG or PNG → mode "L", shrunk to `size`."""
    with Image.open(file, formats=("JPEG", "PNG")) as image:
        full, box = image.size, None
        _refuse_bomb(full, max_pixels)
        if image.format == "JPEG" and size is not None:
            drafted = image.draft("L", (size * DRAFT_MARGIN, size * DRAFT_MARGIN))
            box = drafted[1] if drafted else None
        if image.mode.startswith(("I", "F")):
            grey = _from_16_bit(np.asarray(image))
        elif image.mode == "P":
            grey = image.convert("RGB").convert("L")
        else:
            grey = image.convert("L")
    return grey if size is None else shrink(grey, size, full=full, box=box)


def _from_16_bit(pixels: np.ndarray) -> Image.Image:
    """(H, W) of 9 to 16 significant bits → mode "L".

    Films of 10, 12 or 14 bits are stored in 16-bit PNG as they are, so full scale is the number of bits in use.
    """
    pixels = pixels.astype(np.int64, copy=False)
    bits = max(8, int(pixels.max(initial=0)).bit_length())
    scale = 255.0 / ((1 << bits) - 1)
    return Image.fromarray(np.rint(pixels * scale).clip(0, 255).astype(np.uint8))
