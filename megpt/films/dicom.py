"""DICOM films: stored values → the grey picture a viewer would show.

Stored values → modality LUT or rescale → VOI LUT or window → inverted for MONOCHROME1 (DICOM PS3.3 C.11, C.7.6.3).
The whole chain is computed once for each possible stored value and then looked up, which is twenty times faster than
computing it for each pixel. Headers name people, so nothing here logs, warns, or quotes a header in an error.
"""

from __future__ import annotations

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
from pydicom.pixels import apply_color_lut, get_decoder, pixel_array
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

# pydicom quotes header values in its warnings and logs: switched off at the root, for this process.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
for _name in ("pydicom", "pylibjpeg", "openjpeg", "rle", "jpeg_ls"):
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")

MAX_LUT_VALUES = 1 << 16
MARKERS_WITHOUT_LENGTH = frozenset({0xD8, 0x01, *range(0xD0, 0xD8)})
FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}


class UnreadableFilm(Exception):
    """A film that cannot be shown. `reason` is short and holds nothing that was read from the file."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def load(file: BinaryIO, *, max_pixels: int) -> Image.Image:
    """The first frame of a DICOM file as a PIL picture, mode "L".

    Raises:
        UnreadableFilm: no pixels, too many pixels, or a compression that no installed decoder reads. Damaged files
            may raise whatever their decoder raises; `megpt.films.decode.load_film` turns it into UnreadableFilm.
    """
    dataset = read(file)
    _refuse(dataset, max_pixels)
    if "PixelData" not in dataset:
        raise UnreadableFilm("DICOM without pixel data")
    pixels = stored_pixels(dataset, max_pixels=max_pixels)
    photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2")).strip().upper()
    if photometric == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
        if pixels.dtype != np.uint8:
            pixels = (pixels >> 8).astype(np.uint8)
    if pixels.ndim == 3:
        return Image.fromarray(np.ascontiguousarray(pixels[..., :3], dtype=np.uint8), "RGB").convert("L")
    return Image.fromarray(_shown(pixels, dataset, inverted=photometric == "MONOCHROME1"))


def check(file: BinaryIO, *, max_pixels: int) -> None:
    """Read the header alone.

    Raises:
        UnreadableFilm: not an image, or too many pixels.
    """
    _refuse(read(file, stop_before_pixels=True), max_pixels)


def read(file: BinaryIO, *, stop_before_pixels: bool = False) -> Dataset:
    """The data set, with a transfer syntax even where the file has no meta header."""
    dataset = pydicom.dcmread(file, force=True, stop_before_pixels=stop_before_pixels)
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit = dataset.original_encoding[0]
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    return dataset


def stored_pixels(dataset: Dataset, *, max_pixels: int) -> np.ndarray:
    """The first frame as it is stored: (H, W), or (H, W, 3) in RGB.

    Raises:
        UnreadableFilm: an unknown compression, or a compressed frame larger than the header says.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        frames = int(dataset.get("NumberOfFrames") or 1)
        _refuse_frame(get_frame(dataset.PixelData, 0, number_of_frames=frames), dataset, max_pixels)
    return pixel_array(dataset, index=0, decoding_plugin=_plugin(syntax) if syntax.is_encapsulated else "")


def _plugin(syntax: UID) -> str:
    """The decoder for a compressed syntax. GDCM only where nothing else reads it: it prints to the terminal."""
    try:
        available = get_decoder(syntax).available_plugins
    except NotImplementedError:
        raise UnreadableFilm("DICOM transfer syntax that is not supported") from None
    if not available:
        raise UnreadableFilm(f"DICOM compression without a decoder: {syntax.name}")
    return min(available, key=lambda name: name == "gdcm")


def _refuse(dataset: Dataset, max_pixels: int) -> None:
    rows, columns = dataset.get("Rows"), dataset.get("Columns")
    if not isinstance(rows, int) or not isinstance(columns, int) or rows < 1 or columns < 1:
        raise UnreadableFilm("DICOM without an image")
    if rows * columns > max_pixels:
        raise UnreadableFilm(f"{columns}x{rows} pixels, more than data.max_pixels")


def _refuse_frame(frame: bytes, dataset: Dataset, max_pixels: int) -> None:
    """A frame may claim another size than the data set; its decoder believes the frame."""
    size = _frame_size(frame)
    if size is not None and size[0] * size[1] > max(int(dataset.Rows) * int(dataset.Columns), 1 << 16):
        if size[0] * size[1] > max_pixels:
            raise UnreadableFilm("compressed frame larger than data.max_pixels")
        raise UnreadableFilm("compressed frame larger than its DICOM header says")


def _frame_size(frame: bytes) -> tuple[int, int] | None:
    """(width, height) that a JPEG, JPEG-LS or JPEG 2000 frame claims; None where it claims none."""
    start = frame.find(b"\xff\x4f\xff\x51", 0, 256)
    if start >= 0:
        right, bottom, left, top = struct.unpack_from(">IIII", frame, start + 8)
        return max(right - left, 0), max(bottom - top, 0)
    position = 0
    while position + 9 <= len(frame) and frame[position] == 0xFF:
        marker = frame[position + 1]
        if marker in MARKERS_WITHOUT_LENGTH:
            position += 2
        elif marker == 0xFF:
            position += 1
        elif marker in FRAME_HEADERS:
            height, width = struct.unpack_from(">HH", frame, position + 5)
            return width, height
        else:
            position += 2 + struct.unpack_from(">H", frame, position + 2)[0]
    return None


def _shown(pixels: np.ndarray, dataset: Dataset, *, inverted: bool) -> np.ndarray:
    """(H, W) stored values → (H, W) uint8 as shown."""
    padding = dataset.get("PixelPaddingValue")
    low, high = int(pixels.min()), int(pixels.max())
    if high - low >= MAX_LUT_VALUES:
        # 32-bit values: bring them to 16 bits first, the tags that follow are kept in proportion by `_grey`.
        step = (high - low) / (MAX_LUT_VALUES - 1)
        values: np.ndarray = low + np.arange(MAX_LUT_VALUES) * step
        indices = np.rint((pixels - float(low)) / step).astype(np.uint16)
    else:
        values = np.arange(low, high + 1)
        indices = (pixels.astype(np.int32) - low).astype(np.uint16)
    used = values
    if isinstance(padding, int) and low <= padding <= high and low != high:
        used = values[values != padding]
        present = pixels[pixels != padding]
        if present.size:
            used = used[(used >= present.min()) & (used <= present.max())]
    table = _grey(values, used, dataset)
    table = np.rint((1.0 - table if inverted else table) * 255.0).astype(np.uint8)
    if isinstance(padding, int):
        table[values == padding] = 0
    return table.take(indices)


def _grey(values: np.ndarray, used: np.ndarray, dataset: Dataset) -> np.ndarray:
    """(N,) stored values → (N,) float in [0, 1]; `used` are those that range is measured on, padding left out."""
    modality = _modality(values, dataset)
    for shown in (_voi_lut(modality, dataset), _window(modality, dataset)):
        if shown is not None and shown.max() > shown.min():
            return shown
    span = _modality(used, dataset) if used.size else modality
    bits = int(dataset.get("BitsStored") or 16)
    if bits <= 8 and int(dataset.get("PixelRepresentation") or 0) == 0 and np.array_equal(modality, values):
        return np.clip(values / 255.0, 0.0, 1.0)
    return np.clip((modality - span.min()) / max(float(span.max() - span.min()), 1e-9), 0.0, 1.0)


def _modality(values: np.ndarray, dataset: Dataset) -> np.ndarray:
    lut = _lut(dataset.get("ModalityLUTSequence"), dataset)
    if lut is not None:
        data, first, _ = lut
        return data[np.clip(np.rint(values).astype(np.int64) - first, 0, len(data) - 1)]
    slope, intercept = _number(dataset.get("RescaleSlope")), _number(dataset.get("RescaleIntercept"))
    if slope in (None, 0.0) or (slope == 1.0 and not intercept):
        return values
    return values * slope + (intercept or 0.0)


def _voi_lut(values: np.ndarray, dataset: Dataset) -> np.ndarray | None:
    lut = _lut(dataset.get("VOILUTSequence"), dataset)
    if lut is None:
        return None
    data, first, full = lut
    return data[np.clip(np.rint(values).astype(np.int64) - first, 0, len(data) - 1)] / full


def _window(values: np.ndarray, dataset: Dataset) -> np.ndarray | None:
    """PS3.3 C.11.2.1.2: LINEAR, LINEAR_EXACT and SIGMOID; the first of several windows."""
    center, width = _number(dataset.get("WindowCenter")), _number(dataset.get("WindowWidth"))
    function = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    if center is None or width is None or width <= 0 or (function == "LINEAR" and width < 1):
        return None
    if function == "SIGMOID":
        return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - center) / width, -700, 700)))
    if function == "LINEAR_EXACT":
        return np.clip((values - center) / width + 0.5, 0.0, 1.0)
    return np.clip((values - (center - 0.5)) / max(width - 1.0, 1e-9) + 0.5, 0.0, 1.0)


def _lut(sequence: Any, dataset: Dataset) -> tuple[np.ndarray, int, float] | None:
    """(table, first value mapped, full scale) of a LUT sequence's first item; None where it is absent or unusable."""
    if not sequence or "LUTData" not in sequence[0] or len(sequence[0].get("LUTDescriptor") or ()) != 3:
        return None
    entries, first, bits = (int(v) for v in sequence[0].LUTDescriptor)
    entries = entries or 1 << 16
    if first >= 1 << 15 and int(dataset.get("PixelRepresentation") or 0) == 1:
        first -= 1 << 16
    raw = sequence[0].LUTData
    if isinstance(raw, bytes):
        # Eight-bit tables are stored one entry a byte, or one entry a word.
        narrow = bits <= 8 and len(raw) < 2 * entries
        data = np.frombuffer(raw[: len(raw) // 2 * 2 if not narrow else None], "u1" if narrow else "<u2")
    else:
        data = np.atleast_1d(np.asarray(raw, dtype=np.int64))
    data = data[:entries].astype(np.float64)
    if not len(data):
        return None
    return data, first, float(max((1 << bits) - 1, data.max(), 1))


def _number(value: Any) -> float | None:
    """The first value of a number or a multi-valued number."""
    if value is None or value == "":
        return None
    if not isinstance(value, (str, bytes)) and hasattr(value, "__len__"):
        if not len(value):
            return None
        value = value[0]
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None
