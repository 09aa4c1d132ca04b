"""Stored values → the grey values that a viewer shows.

Stored values → modality LUT or rescale → VOI LUT or window → polarity (DICOM PS3.3 C.11, C.7.6.3). The whole chain is
computed once for each possible stored value and then looked up, which is twenty times faster than computing it for each
pixel. Where files and the standard leave room, the result is that of DCMTK.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

MAX_LUT_VALUES = 1 << 16


def shown(pixels: np.ndarray, dataset: Dataset) -> np.ndarray:
    """(H, W) stored values → (H, W) uint8 as a viewer shows them. Padding is black."""
    low, high = int(pixels.min()), int(pixels.max())
    if high - low >= MAX_LUT_VALUES:
        # Reduce 32-bit values to 16 bits first; `_grey` keeps the tags that follow in proportion.
        step = (high - low) / (MAX_LUT_VALUES - 1)
        values: np.ndarray = low + np.arange(MAX_LUT_VALUES) * step
        indices = np.rint((pixels - float(low)) / step).astype(np.uint16)
    else:
        values = np.arange(low, high + 1)
        indices = (pixels.astype(np.int32) - low).astype(np.uint16)
    padded = np.zeros(len(values), bool)
    used = values
    padding = padding_range(dataset)
    if padding is not None:
        padded = (values >= padding[0]) & (values <= padding[1])
    if padded.any() and low != high:
        used = values[~padded]
        present = pixels[(pixels < padding[0]) | (pixels > padding[1])] if padding else pixels
        if present.size:
            used = used[(used >= present.min()) & (used <= present.max())]
    table = _grey(values, used, dataset)
    table = np.rint((1.0 - table if is_inverted(dataset) else table) * 255.0).astype(np.uint8)
    table[padded] = 0
    return table.take(indices)


def is_inverted(dataset: Dataset) -> bool:
    """Whether the lowest value is white: PresentationLUTShape decides where it is given, as in DCMTK."""
    shape = str(dataset.get("PresentationLUTShape") or "").strip().upper()
    if shape in ("INVERSE", "IDENTITY"):
        return shape == "INVERSE"
    return str(dataset.get("PhotometricInterpretation") or "").strip().upper() == "MONOCHROME1"


def padding_range(dataset: Dataset) -> tuple[int, int] | None:
    """The lowest and the highest padding value; None without padding. The limit may lie on either side of the value."""
    value, limit = _integer(dataset.get("PixelPaddingValue")), _integer(dataset.get("PixelPaddingRangeLimit"))
    if value is None:
        return None
    value = _as_stored(value, dataset)
    other = value if limit is None else _as_stored(limit, dataset)
    return min(value, other), max(value, other)


def range_is_stated(dataset: Dataset) -> bool:
    """Whether the grey range follows from the header (a window, a VOI LUT, or 8 bits shown as they are).

    Otherwise it is that of the film's own values, which a picture at reduced resolution does not show exactly.
    """
    values = _possible(dataset)
    return _stated(_modality(values, dataset), values, dataset) is not None


def _grey(values: np.ndarray, used: np.ndarray, dataset: Dataset) -> np.ndarray:
    """(N,) stored values → (N,) float in [0, 1]; `used` are those that set the range, without padding."""
    modality = _modality(values, dataset)
    stated = _stated(modality, values, dataset)
    if stated is not None:
        return stated
    span = _modality(used, dataset) if used.size else modality
    return np.clip((modality - span.min()) / max(float(span.max() - span.min()), 1e-9), 0.0, 1.0)


def _stated(modality: np.ndarray, values: np.ndarray, dataset: Dataset) -> np.ndarray | None:
    for grey in (_voi_lut(modality, dataset), _window(modality, dataset)):
        if grey is not None and grey.max() > grey.min():
            return grey
    bits = int(dataset.get("BitsStored") or 16)
    if bits <= 8 and int(dataset.get("PixelRepresentation") or 0) == 0 and np.array_equal(modality, values):
        return np.clip(values / 255.0, 0.0, 1.0)
    return None


def _modality(values: np.ndarray, dataset: Dataset) -> np.ndarray:
    lut = _lut(dataset.get("ModalityLUTSequence"), signed=_is_signed(dataset), dataset=dataset)
    if lut is not None:
        data, first, _ = lut
        return data[np.clip(np.rint(values).astype(np.int64) - first, 0, len(data) - 1)]
    slope, intercept = _number(dataset.get("RescaleSlope")), _number(dataset.get("RescaleIntercept"))
    if slope in (None, 0.0) or (slope == 1.0 and not intercept):
        return values
    return values * slope + (intercept or 0.0)


def _voi_lut(values: np.ndarray, dataset: Dataset) -> np.ndarray | None:
    sequence = dataset.get("VOILUTSequence")
    if not sequence:
        return None
    # The first mapped value is signed where the values that reach this table can be (PS3.3 C.11.2.1.1).
    lut = _lut(sequence, signed=bool(_modality(_possible(dataset), dataset).min() < 0), dataset=dataset)
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


def _lut(sequence: Any, *, signed: bool, dataset: Dataset) -> tuple[np.ndarray, int, float] | None:
    """(table, first value mapped, full scale) of a LUT sequence's first item; None if it is absent or unusable.

    Args:
        signed: whether the table's input can be negative. Its first value is then a signed number, whatever VR the
            file gives it: files say US for either.
    """
    if not sequence or "LUTData" not in sequence[0]:
        return None
    descriptor = sequence[0].get("LUTDescriptor")
    if isinstance(descriptor, bytes) and len(descriptor) == 6:
        descriptor = struct.unpack("<3H" if _is_little_endian(dataset) else ">3H", descriptor)
    if descriptor is None or isinstance(descriptor, (str, bytes, int)) or len(descriptor) != 3:
        return None
    entries, first, bits = (int(v) & 0xFFFF for v in descriptor)
    entries = entries or 1 << 16
    if signed and first >= 1 << 15:
        first -= 1 << 16
    data = _lut_data(sequence[0].LUTData, entries, bits, dataset)
    if not len(data):
        return None
    stated = (1 << bits) - 1 if bits <= 16 else 0
    return data, first, float(max(stated, data.max(), 1))


def _lut_data(raw: Any, entries: int, bits: int, dataset: Dataset) -> np.ndarray:
    """(entries,) float64. Eight-bit tables are stored with one entry per byte, or one per word."""
    if isinstance(raw, bytes):
        narrow = bits <= 8 and len(raw) < 2 * entries
        word = "<u2" if _is_little_endian(dataset) else ">u2"
        data = np.frombuffer(raw if narrow else raw[: len(raw) // 2 * 2], "u1" if narrow else word)
    else:
        data = np.atleast_1d(np.asarray(raw, dtype=np.int64)) & 0xFFFF
        if bits <= 8 and len(data) < entries:
            # Two entries of eight bits in each word, the first in the lower byte.
            data = data.astype("<u2").view("u1")
    return data[:entries].astype(np.float64)


def _possible(dataset: Dataset) -> np.ndarray:
    """The lowest and the highest value that BitsStored bits can hold."""
    bits = min(int(dataset.get("BitsStored") or 16), 32)
    return np.array([-(1 << (bits - 1)), (1 << (bits - 1)) - 1] if _is_signed(dataset) else [0, (1 << bits) - 1])


def _is_signed(dataset: Dataset) -> bool:
    return int(dataset.get("PixelRepresentation") or 0) == 1


def _is_little_endian(dataset: Dataset) -> bool:
    return dataset.original_encoding[1] is not False


def _as_stored(value: int, dataset: Dataset) -> int:
    """A value of VR "US or SS" as the pixels hold it: files say US for signed pixels too, and the other way round."""
    if _is_signed(dataset):
        return value - (1 << 16) if 1 << 15 <= value < 1 << 16 else value
    return value + (1 << 16) if -(1 << 15) <= value < 0 else value


def _integer(value: Any) -> int | None:
    if isinstance(value, bytes) and len(value) == 2:
        return int.from_bytes(value, "little")
    number = _number(value)
    return None if number is None else int(number)


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
