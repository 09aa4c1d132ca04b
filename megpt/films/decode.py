"""Decoding films: encoded bytes in, one grey picture out.

    image = load_film(view, size=224, max_pixels=200_000_000)      # PIL, mode "L", shorter side 224

A film's type is read from its first bytes, not from its name. JPEG and JPEG 2000 are decoded at the smallest scale that
still leaves twice the wanted size, so that the antialiased resize at the end has enough pixels to work with. The number
of pixels is read from the header and checked before any pixel is decoded.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import warnings
from typing import BinaryIO, cast

from PIL import Image, ImageFile

from megpt.errors import MegptError
from megpt.films import ahead, dicom, pictures
from megpt.films.kinds import GZIP, HEADER_BYTES, NAMES, film_type, kind_of
from megpt.films.members import from_uri, open_member
from megpt.films.remote import open_remote, scheme_of
from megpt.films.unreadable import UnreadableFilm
from megpt.places import Changed, is_address, screen
from megpt.study import Study, View

__all__ = [
    "HEADER_BYTES",
    "MISSING",
    "UnreadableFilm",
    "check_film",
    "film_type",
    "kind_of",
    "load_film",
    "load_films",
    "opened",
    "read_film",
]

# Pillow's own limit warns and refuses at fixed sizes; `max_pixels` is checked here instead, for every format alike.
Image.MAX_IMAGE_PIXELS = None
ImageFile.LOAD_TRUNCATED_IMAGES = False
# Pillow warns of every odd tag, once a film.
warnings.filterwarnings("ignore", module=r"PIL(\.|$)")

# The reason for a film that is not found: it is not in the archive, or the archive is not mounted on this machine.
MISSING = "missing file"
# The object became another one between the requests for it, so that its bytes are of two.
CHANGED = "changed while it was read"
FORBIDDEN = "no right to read it"
NOT_A_FILM = "not a JPEG, PNG, DICOM, TIFF, BMP, WebP or JPEG 2000 file"


def load_film(view: View, *, size: int | None, max_pixels: int) -> Image.Image:
    """One film as a grey picture.

    Args:
        size: a longer shorter side is reduced to this; None keeps the film's own size.
        max_pixels: a film whose header claims more pixels is refused before it is decoded.

    Returns:
        PIL image, mode "L".

    Raises:
        UnreadableFilm: missing, empty, damaged, too large, of a compression without a decoder, or not a film.
    """
    film_format, file = opened(view)
    with file:
        try:
            if film_format == "dicom":
                return dicom.load(file, size=size, max_pixels=max_pixels)
            return pictures.load(file, film_format, size=size, max_pixels=max_pixels)
        except UnreadableFilm:
            raise
        except MemoryError:
            raise UnreadableFilm("not enough memory to decode it") from None
        except Changed:
            raise UnreadableFilm(CHANGED) from None
        except MegptError:  # the store does not answer, which says nothing of the film
            raise
        except Exception as error:
            # Decoders raise anything on damaged input, and their messages may quote the file, so only the type is kept.
            raise UnreadableFilm(f"damaged {NAMES[film_format]} ({type(error).__name__})") from None


def load_films(study: Study, *, size: int | None, max_views: int | None, max_pixels: int) -> list[Image.Image]:
    """The readable films among a study's first `max_views`, in the archive's order.

    Raises:
        UnreadableFilm: the study has no films, or none of them is readable (the first film's reason).
    """
    if study.error:
        raise UnreadableFilm(study.error)
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
        UnreadableFilm: missing, empty, too large, or not a film. Damage after the header is not noticed.
    """
    film_format, file = opened(view)
    with file:
        try:
            if film_format == "dicom":
                dicom.check(file, max_pixels=max_pixels)
            else:
                pictures.check(file, film_format, max_pixels=max_pixels)
        except (UnreadableFilm, MegptError):
            raise
        except Changed:
            raise UnreadableFilm(CHANGED) from None
        except Exception as error:
            raise UnreadableFilm(f"damaged {NAMES[film_format]} ({type(error).__name__})") from None


def read_film(view: View) -> bytes:
    """The bytes of a film's file, unchanged.

    Raises:
        UnreadableFilm: missing, empty, or not a film by its first bytes.
    """
    _, file = opened(view)
    with file:
        try:
            return file.read()
        except Changed:
            raise UnreadableFilm(CHANGED) from None
        except OSError as error:
            raise UnreadableFilm(f"cannot be read ({type(error).__name__})") from None


def opened(view: View) -> tuple[str, BinaryIO]:
    """The film's type, and the open file at its start, unpacked as it is read where it is gzipped.

    Raises:
        UnreadableFilm: missing, empty, or not a film by its first bytes.
    """
    file: BinaryIO = io.BytesIO(view.data) if view.data is not None else _open_path(view.uri)
    try:
        head = file.read(HEADER_BYTES)
        file.seek(0)
    except Changed:
        file.close()
        raise UnreadableFilm(CHANGED) from None
    except OSError as error:
        file.close()
        raise UnreadableFilm(f"cannot be read ({type(error).__name__})") from None
    film_format = film_type(head)
    if film_format is None:
        file.close()
        raise UnreadableFilm(NOT_A_FILM if head else "empty file")
    if head.startswith(GZIP):
        # Unpacked while it is read, so that a film which unfolds to gigabytes takes no memory.
        return film_format, cast(BinaryIO, _Unzipped(file))
    return film_format, file


class _Unzipped(gzip.GzipFile):
    """A gzipped file that closes what it reads from."""

    def __init__(self, packed: BinaryIO):
        super().__init__(fileobj=packed, mode="rb")
        self._packed = packed

    def close(self) -> None:
        super().close()
        self._packed.close()


def _open_path(uri: str | None) -> BinaryIO:
    if uri is None:
        raise UnreadableFilm("no path inside the archive")
    if scheme_of(uri):
        return open_remote(uri)
    try:
        path, member = from_uri(uri)
        if member is not None:
            return open_member(path, member)
        if is_address(path):
            return ahead.opened(path)
        # A pipe or a device would block forever, or never end.
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
            raise UnreadableFilm("not a file")
        return open(path, "rb")  # noqa: PTH123 (closed by the caller)
    except (FileNotFoundError, NotADirectoryError):
        raise UnreadableFilm(MISSING) from None
    except Changed:
        raise UnreadableFilm(CHANGED) from None
    except PermissionError as error:
        if screen(error) is not None:
            raise UnreadableFilm(FORBIDDEN) from None
        raise UnreadableFilm(f"cannot be opened ({type(error).__name__})") from None
    except (OSError, ValueError) as error:
        raise UnreadableFilm(f"cannot be opened ({type(error).__name__})") from None
