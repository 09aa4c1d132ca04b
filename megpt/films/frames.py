"""Stored values of one frame: bytes of a DICOM or of a bare JPEG → an array.

Every installed decoder is tried before a frame is called damaged. GDCM comes last, being the slowest.
"""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import (
    UID,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    UID_dictionary,
)

from megpt.films import apart
from megpt.films.codestream import JPEG_LS, Codestream, read_codestream
from megpt.films.unreadable import UnreadableFilm

# A frame of so few pixels may claim another size than its data set: it harms nobody.
SMALL_FRAME = 1 << 16
MAX_CHANNELS = 4
BARE_SYNTAXES = {0xC1: JPEGExtended12Bit, 0xC3: JPEGLosslessSV1, JPEG_LS: JPEGLSLossless}
# Syntaxes of the standard that pydicom does not know yet.
NEWER_SYNTAXES = {
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression",
}


def decode(dataset: Dataset, frame: bytes, stream: Codestream | None) -> np.ndarray:
    """The stored values of the first frame: (H, W), or (H, W, 3) in RGB, without unused bits.

    Args:
        dataset: the image pixel module, complete (`dicom.complete`); its PixelData is replaced.
        frame: the encoded bytes of the frame; `stream` is what `read_codestream` says of them.

    Raises:
        UnreadableFilm: a syntax without a decoder. For a damaged frame, whatever the last decoder raised.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    high_bit = dataset.get("HighBit")
    if not is_compressed(syntax):
        dataset.PixelData = frame
        return used_bits(pixel_array(dataset, index=0, correct_unused_bits=False), dataset, high_bit)
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    if syntax == JPEGExtended12Bit and stream is not None and stream.precision > 8:
        return used_bits(_extended(dataset, stream), dataset, None)
    pixels = _first_that_decodes(dataset, syntax)
    # A codestream of BitsStored bits holds the values alone, so HighBit has nothing to say there.
    shifted = syntax == RLELossless or (stream is not None and stream.precision > dataset.BitsStored)
    return used_bits(pixels, dataset, high_bit if shifted else None)


def used_bits(pixels: np.ndarray, dataset: Dataset, high_bit: int | None) -> np.ndarray:
    """The BitsStored bits that end at HighBit (PS3.5 8.1.1); the others may hold overlays or anything else."""
    stored, allocated = int(dataset.BitsStored), 8 * pixels.dtype.itemsize
    shift = 0
    if isinstance(high_bit, int) and stored <= high_bit + 1 <= allocated:
        shift = high_bit + 1 - stored
    if stored >= allocated:
        return pixels
    if pixels.dtype.kind == "u":
        mask = (1 << stored) - 1
        if not shift and pixels.max(initial=0) <= mask:
            return pixels
        return (pixels >> shift) & pixels.dtype.type(mask)
    # An arithmetic shift to the right copies the sign into the bits that it frees.
    return (pixels << (allocated - stored - shift)) >> (allocated - stored)


def bare_jpeg(frame: bytes, stream: Codestream) -> np.ndarray:
    """A JPEG file of a kind that only the DICOM decoders know (lossless, 12 bits, JPEG-LS) → stored values.

    Raises:
        UnreadableFilm: a kind without a decoder, or colour.
    """
    syntax = BARE_SYNTAXES.get(stream.process)
    if syntax is None or stream.components != 1 or not 2 <= stream.precision <= 16:
        what = "lossless" if stream.process == 0xC3 else f"frame type {stream.process:02X}"
        raise UnreadableFilm(
            f"JPEG kind that is not supported ({what}, {stream.precision} bits, {stream.components} channels)"
        )
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = stream.height, stream.width, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored = 8 if stream.precision <= 8 else 16, stream.precision
    dataset.HighBit, dataset.NumberOfFrames = stream.precision - 1, 1
    return decode(dataset, frame, stream)


def refuse_frame(dataset: Dataset, stream: Codestream | None, max_pixels: int) -> None:
    """Refuse a frame that claims to be larger than the data set says, because its decoder would believe the frame."""
    if stream is None:
        return
    if stream.components > MAX_CHANNELS:
        raise UnreadableFilm("compressed frame of more channels than a picture has")
    pixels = stream.width * stream.height
    if pixels > max(int(dataset.Rows) * int(dataset.Columns), SMALL_FRAME):
        if pixels > max_pixels:
            raise UnreadableFilm("compressed frame larger than data.max_pixels")
        raise UnreadableFilm("compressed frame larger than its DICOM header says")


def codestream_of(frame: bytes, syntax: UID) -> Codestream | None:
    """The frame's own header, where its syntax has one."""
    return None if syntax == RLELossless or not is_compressed(syntax) else read_codestream(frame)


def is_compressed(syntax: UID) -> bool:
    """Whether the pixels are encapsulated.

    Raises:
        UnreadableFilm: neither the standard nor pydicom knows the syntax.
    """
    try:
        return syntax.is_encapsulated
    except ValueError:
        raise without_decoder(syntax) from None


def without_decoder(syntax: UID) -> UnreadableFilm:
    """The error that names a syntax. What is no known UID is not quoted: it could be anything."""
    name = syntax.name if syntax in UID_dictionary else NEWER_SYNTAXES.get(syntax, "an unknown transfer syntax")
    return UnreadableFilm(f"DICOM compression without a decoder: {name}")


def _first_that_decodes(dataset: Dataset, syntax: UID) -> np.ndarray:
    try:
        available = get_decoder(syntax).available_plugins
    except NotImplementedError:
        available = ()
    if not available:
        raise without_decoder(syntax)
    failure: Exception | None = None
    # pydicom's own decoder of RLE is plain Python.
    for plugin in sorted(available, key=lambda plugin: (plugin == "gdcm", plugin == "pydicom", plugin)):
        try:
            return _by_plugin(dataset, plugin)
        except MemoryError:
            raise
        except Exception as error:
            failure = error
    assert failure is not None
    raise failure


def _by_plugin(dataset: Dataset, plugin: str) -> np.ndarray:
    if plugin in apart.PLUGINS:
        return apart.decode(dataset, plugin)
    return pixel_array(dataset, index=0, decoding_plugin=plugin, correct_unused_bits=False)


def _extended(dataset: Dataset, stream: Codestream) -> np.ndarray:
    """JPEG Extended with more than eight bits, which GDCM alone reads."""
    if stream.components != 1 or stream.precision > 12:
        what = f"{stream.precision} bits, {stream.components} channels"
        raise UnreadableFilm(f"DICOM compression without a decoder: {JPEGExtended12Bit.name}, {what}")
    stored, dataset.BitsStored = dataset.BitsStored, stream.precision
    try:
        return apart.decode(dataset, "gdcm")
    finally:
        dataset.BitsStored = stored
