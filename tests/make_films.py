"""Tiny films of every kind, for the tests of this folder and of `prepare`."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from openjpeg.utils import encode_array
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, generate_uid


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


def in_bits(
    values: np.ndarray, *, bits: int, high_bit: int, signed: bool = False, allocated: int = 16, rest: int = 0
) -> FileDataset:
    """A data set whose `bits` bits end at `high_bit`; `rest` fills the bits that hold no value."""
    mask = (1 << bits) - 1
    shift = high_bit + 1 - bits
    raw = ((values & mask) << shift) | (rest & ~(mask << shift) & ((1 << allocated) - 1))
    data = dataset(raw.astype("u2" if allocated == 16 else "u1"), BitsStored=bits, HighBit=high_bit)
    data.PixelRepresentation = int(signed)
    return data


def lut(entries: Any, first: int, bits: int, vr: str = "US") -> list[Dataset]:
    """A LUT sequence; `vr` is what the descriptor's VR is said to be, whatever the sign of its first value."""
    item = Dataset()
    numbers = [len(entries), first, bits]
    lowest = 0 if vr == "US" else -(1 << 15)
    item.add_new("LUTDescriptor", vr, [(n - lowest) % (1 << 16) + lowest for n in numbers])
    item.add_new("LUTData", "OW", np.asarray(entries, "u1" if bits <= 8 else "<u2").tobytes())
    return [item]


def jpeg2000(pixels: np.ndarray, bits: int | None = None, *, boxes: bool = False) -> bytes:
    """A lossless codestream, or a JP2 file around one."""
    return bytes(encode_array(pixels, bits_stored=bits, codec_format=int(boxes)))


def in_syntax(data: FileDataset, syntax: str, frame: bytes) -> FileDataset:
    """The data set with `frame` as its compressed pixels."""
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = encapsulate([frame])
    data["PixelData"].VR = "OB"
    return data


def deep_png(pixels: np.ndarray) -> bytes:
    """A PNG with 16 bits in each of 1, 2, 3 or 4 channels; Pillow writes one channel only."""
    height, width, channels = np.atleast_3d(pixels).shape
    color = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


def deflated(data: FileDataset, *, after: int = 0) -> bytes:
    """The data set in the deflated transfer syntax, with `after` more bytes of padding behind the pixels."""
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    whole = encoded(data)
    start = 132 + 12 + struct.unpack_from("<I", whole, 140)[0]
    syntax = DeflatedExplicitVRLittleEndian
    data.file_meta.TransferSyntaxUID = syntax
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    head = buffer.getvalue()[: 132 + 12 + struct.unpack_from("<I", buffer.getvalue(), 140)[0]]
    pack = zlib.compressobj(1, wbits=-15)
    packed = [pack.compress(whole[start:])]
    if after:
        packed.append(pack.compress(struct.pack("<HH2sHI", 0xFFFC, 0xFFFC, b"OB", 0, after)))
        block = bytes(1 << 20)
        packed += [pack.compress(block) for _ in range(after >> 20)]
    return head + b"".join(packed) + pack.flush()


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(data, str):
        data = data.encode()
    path.write_bytes(data)
    return path
