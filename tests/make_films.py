"""Tiny films of every kind, for the tests of this folder and of `prepare`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid


def gradient(height: int = 40, width: int = 48, top: int = 255, dtype: Any = np.uint8) -> np.ndarray:
    """(H, W) from 0 at the left to `top` at the right."""
    return np.broadcast_to(np.linspace(0, top, width).round().astype(dtype), (height, width)).copy()


def picture(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(pixels: np.ndarray | None = None, quality: int = 95) -> bytes:
    return picture(gradient() if pixels is None else pixels, "JPEG", quality=quality)


def png(pixels: np.ndarray | None = None) -> bytes:
    return picture(gradient() if pixels is None else pixels)


def dataset(pixels: np.ndarray, **tags: Any) -> FileDataset:
    """An uncompressed DICOM data set; `tags` are set by keyword, None removes one."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    result = FileDataset("film", {}, file_meta=meta, preamble=b"\0" * 128)
    result.SOPClassUID = meta.MediaStorageSOPClassUID
    result.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    result.PatientName = "Secret^Person"
    result.PatientID = "SECRET-1234"
    color = pixels.ndim == 3 and pixels.shape[-1] == 3
    result.Rows, result.Columns = pixels.shape[-3:-1] if color else pixels.shape[-2:]
    result.SamplesPerPixel = 3 if color else 1
    if color:
        result.PlanarConfiguration = 0
    result.PhotometricInterpretation = "RGB" if color else "MONOCHROME2"
    result.BitsAllocated = result.BitsStored = pixels.dtype.itemsize * 8
    result.HighBit = result.BitsStored - 1
    result.PixelRepresentation = int(pixels.dtype.kind == "i")
    result.PixelData = pixels.tobytes()
    for name, value in tags.items():
        if value is None:
            delattr(result, name)
        else:
            setattr(result, name, value)
    return result


def dicom_bytes(pixels: np.ndarray | None = None, **tags: Any) -> bytes:
    return encoded(dataset(gradient() if pixels is None else pixels, **tags))


def encoded(data: FileDataset) -> bytes:
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(data, str):
        data = data.encode()
    path.write_bytes(data)
    return path
