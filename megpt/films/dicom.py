"""DICOM films: the first frame of a file as the grey picture a viewer would show.

Only the elements that the picture needs are read, and of the pixel data only the first frame, so a file's own size does
not matter. Headers name people, so nothing here logs, warns, or quotes a header in an error.
"""

from __future__ import annotations

import contextlib
import logging
import struct
import warnings
from typing import Any, BinaryIO

import numpy as np
import pydicom
import pydicom.config
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import get_frame
from pydicom.pixels import apply_color_lut
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit

from megpt.films import frames, greyscale, reduced
from megpt.films.codestream import Codestream
from megpt.films.deflated import inflated
from megpt.films.resize import Box, shrink
from megpt.films.unreadable import UnreadableFilm, refuse_large

# pydicom quotes header values in its warnings and logs, so both are switched off for the whole process.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
for _name in ("pydicom", "pylibjpeg", "openjpeg", "rle", "jpeg_ls"):
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")

# What a picture is made of; everything else, names and dates above all, is skipped unread.
ELEMENTS: list[Any] = [
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "PresentationLUTShape"),
    *(f"{color}PaletteColorLookupTable{part}" for color in ("Red", "Green", "Blue") for part in ("Descriptor", "Data")),
    *(f"Segmented{color}PaletteColorLookupTableData" for color in ("Red", "Green", "Blue")),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
]
MAX_BITS = 64
PIXEL_DATA = (0x7FE0, 0x0010)
# A header has some hundred elements; each takes a few reads, and time: megabytes of empty ones would take minutes.
MOST_READS = 50_000
UNDEFINED = 0xFFFFFFFF
# VRs whose length takes four bytes, after two that are reserved (PS3.5 7.1.2), as far as pixels may have them.
LONG_VRS = (b"OB", b"OW", b"UN", b"OD", b"OF", b"OL", b"OV")
# A compressed frame may be somewhat larger than its pixels, if they are noise; it is never many times larger.
FRAME_MARGIN = 1 << 20


def load(file: BinaryIO, *, size: int | None, max_pixels: int) -> Image.Image:
    """The first frame of a DICOM file as a PIL picture, mode "L", its shorter side at most `size`.

    Raises:
        UnreadableFilm: no pixels, too many pixels, or a compression that no installed decoder reads. Damaged files
            may raise whatever their decoder raises; `megpt.films.decode.load_film` turns it into UnreadableFilm.
    """
    dataset, frame = _read_frame(inflated(file, max_pixels=max_pixels), max_pixels)
    stream = frames.codestream_of(frame, dataset.file_meta.TransferSyntaxUID)
    complete(dataset, frame, stream)
    frames.refuse_frame(dataset, stream, max_pixels)
    full = (int(dataset.Columns), int(dataset.Rows))
    smaller = None
    if size is not None and stream is not None and reduced.is_whole(frame):
        # Where this decoder fails, the others get their try below.
        with contextlib.suppress(OSError, ValueError, SyntaxError):
            smaller = _at_reduced_resolution(dataset, frame, stream, size)
    if smaller is not None and size is not None:
        pixels, box = smaller
        return shrink(Image.fromarray(greyscale.shown(pixels, dataset)), size, full=full, box=box)
    image = _picture(frames.decode(dataset, frame, stream), dataset)
    return image if size is None else shrink(image, size)


def check(file: BinaryIO, *, max_pixels: int) -> None:
    """Read the header alone.

    Raises:
        UnreadableFilm: not an image, or too many pixels.
    """
    _refuse(_header(inflated(file, max_pixels=max_pixels, header_only=True)), max_pixels)


def read(file: BinaryIO, *, max_pixels: int = 1 << 31) -> Dataset:
    """The elements of a picture, with the first frame alone as PixelData, still encoded.

    Raises:
        UnreadableFilm: no pixels, or too many.
    """
    dataset, frame = _read_frame(inflated(file, max_pixels=max_pixels), max_pixels)
    complete(dataset, frame, frames.codestream_of(frame, dataset.file_meta.TransferSyntaxUID))
    dataset.PixelData = frame
    return dataset


def stored_pixels(dataset: Dataset, *, max_pixels: int) -> np.ndarray:
    """The stored values of what `read` gave: (H, W), or (H, W, 3) in RGB.

    Raises:
        UnreadableFilm: an unknown compression, or a compressed frame larger than the header says.
    """
    frame = dataset.PixelData
    stream = frames.codestream_of(frame, dataset.file_meta.TransferSyntaxUID)
    frames.refuse_frame(dataset, stream, max_pixels)
    return frames.decode(dataset, frame, stream)


def complete(dataset: Dataset, frame: bytes, stream: Codestream | None) -> None:
    """Fill in what files leave out of the image pixel module, with what DCMTK or the frame itself gives."""
    if "SamplesPerPixel" not in dataset:
        dataset.SamplesPerPixel = 3 if _photometric(dataset).startswith(("RGB", "YBR")) else 1
    if not _photometric(dataset):
        dataset.PhotometricInterpretation = "RGB" if dataset.SamplesPerPixel == 3 else "MONOCHROME2"
    if dataset.get("PixelRepresentation") not in (0, 1):
        dataset.PixelRepresentation = 0
    if dataset.SamplesPerPixel == 3 and "PlanarConfiguration" not in dataset:
        dataset.PlanarConfiguration = 0
    dataset.NumberOfFrames = 1
    if not dataset.get("BitsAllocated"):
        samples = int(dataset.Rows) * int(dataset.Columns) * int(dataset.SamplesPerPixel)
        bits = stream.precision if stream is not None else 8 * len(frame) // samples
        dataset.BitsAllocated = 8 if bits <= 8 else 16 if bits < 32 else 32
    stored = dataset.get("BitsStored")
    if not isinstance(stored, int) or not 1 <= stored <= int(dataset.BitsAllocated):
        dataset.BitsStored = min(stream.precision, dataset.BitsAllocated) if stream else dataset.BitsAllocated


def _header(file: BinaryIO) -> Dataset:
    """The picture's elements, with a transfer syntax even without a meta header. `file` is left at the pixels."""
    source: Any = _Impatient(file)
    dataset = pydicom.dcmread(source, force=True, stop_before_pixels=True, specific_tags=ELEMENTS)
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit = dataset.original_encoding[0]
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    return dataset


class _Impatient:
    """A file that is not read for ever."""

    def __init__(self, file: BinaryIO):
        self._file, self._left = file, MOST_READS

    def read(self, size: int = -1) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise UnreadableFilm("damaged DICOM (a header without end)")
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _refuse(dataset: Dataset, max_pixels: int) -> None:
    rows, columns = dataset.get("Rows"), dataset.get("Columns")
    if not isinstance(rows, int) or not isinstance(columns, int) or rows < 1 or columns < 1:
        raise UnreadableFilm("DICOM without an image")
    refuse_large(columns, rows, max_pixels)
    for name, most in (("SamplesPerPixel", frames.MAX_CHANNELS), ("BitsAllocated", MAX_BITS)):
        # A pixel of kilobytes would pass the limit on their number.
        if not 0 <= int(dataset.get(name) or 0) <= most:
            raise UnreadableFilm(f"damaged DICOM ({name} out of range)")


def _photometric(dataset: Dataset) -> str:
    return str(dataset.get("PhotometricInterpretation") or "").strip().upper()


def _read_frame(file: BinaryIO, max_pixels: int) -> tuple[Dataset, bytes]:
    """The header and the encoded first frame; nothing else of the pixel data is held."""
    dataset = _header(file)
    _refuse(dataset, max_pixels)
    compressed = frames.is_compressed(dataset.file_meta.TransferSyntaxUID)
    length = _at_pixel_data(file, dataset)
    count = max(int(dataset.get("NumberOfFrames") or 1), 1)
    samples = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("SamplesPerPixel") or 3)
    allocated = int(dataset.get("BitsAllocated") or 0)
    if compressed:
        limit = 2 * samples * max(allocated, 16) // 8 + FRAME_MARGIN
        offsets = None
        if "ExtendedOffsetTable" in dataset and "ExtendedOffsetTableLengths" in dataset:
            offsets = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
        source: Any = _Bounded(file, limit)
        return dataset, get_frame(source, 0, extended_offsets=offsets, number_of_frames=count)
    if length == UNDEFINED:
        raise UnreadableFilm("damaged DICOM (compressed pixels in an uncompressed transfer syntax)")
    if not allocated or "SamplesPerPixel" not in dataset:
        # Neither is certain without the other, so the length of the whole says what a frame takes.
        wanted = min(length // count, 4 * samples)
    else:
        wanted = -(-samples * allocated // 8)
        if _photometric(dataset) == "YBR_FULL_422":
            wanted = wanted * 2 // 3
    frame = file.read(wanted)
    if len(frame) < wanted:
        raise UnreadableFilm("damaged DICOM (the pixel data end too early)")
    return dataset, frame + b"\0" * (len(frame) % 2)


def _at_pixel_data(file: BinaryIO, dataset: Dataset) -> int:
    """Move the file behind the header of the pixel data, and say how long it claims to be."""
    implicit, little = dataset.original_encoding
    order = "<" if little is not False else ">"
    head = file.read(8)
    if len(head) < 8 or struct.unpack(order + "HH", head[:4]) != PIXEL_DATA:
        raise UnreadableFilm("DICOM without pixel data")
    if implicit:
        return struct.unpack(order + "I", head[4:])[0]
    if head[4:6] in LONG_VRS:
        return struct.unpack(order + "I", file.read(4))[0]
    return struct.unpack(order + "H", head[6:])[0]


class _Bounded:
    """A file that hands out no more than `limit` bytes in all, so that no fragment's claim fills the memory."""

    def __init__(self, file: BinaryIO, limit: int):
        self._file, self._left = file, limit
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self._left:
            raise UnreadableFilm("compressed frame larger than its DICOM header says")
        self._left -= size
        return self._file.read(size)


def _at_reduced_resolution(
    dataset: Dataset, frame: bytes, stream: Codestream, size: int
) -> tuple[np.ndarray, Box | None] | None:
    """Stored values at a smaller scale, and the part the film covers; None where that would change the picture."""
    exact = (
        dataset.SamplesPerPixel == stream.components == 1
        and _photometric(dataset).startswith("MONOCHROME")
        and dataset.PixelRepresentation == 0
        and not stream.signed
        and stream.precision == dataset.BitsStored <= 16
        and (stream.width, stream.height) == (dataset.Columns, dataset.Rows)
        # Padding would bleed into the film, and a range of the film's own values would come out narrower.
        and greyscale.padding_range(dataset) is None
        and greyscale.range_is_stated(dataset)
    )
    if not exact:
        return None
    if dataset.file_meta.TransferSyntaxUID == JPEGBaseline8Bit and stream.precision == 8:
        image, box = reduced.decode_jpeg(frame, size)
        return np.asarray(image), box
    if not stream.is_jpeg2000 or not reduced.halvings(stream, size):
        return None
    image, box = reduced.decode_jpeg2000(frame, stream, size)
    container = 16 if image.mode.startswith("I") else 8
    return np.asarray(image) >> (container - stream.precision), box


def _picture(pixels: np.ndarray, dataset: Dataset) -> Image.Image:
    """(H, W) or (H, W, 3) stored values → mode "L"."""
    bits = int(dataset.BitsStored)
    if _photometric(dataset) == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
        bits = 8 * pixels.dtype.itemsize
    if pixels.ndim == 3:
        pixels = pixels[..., :3]
        if bits != 8:
            pixels = np.rint(pixels * (255.0 / ((1 << bits) - 1))).clip(0, 255)
        return Image.fromarray(np.ascontiguousarray(pixels, dtype=np.uint8), "RGB").convert("L")
    return Image.fromarray(greyscale.shown(pixels, dataset))
