"""The helper process of `apart`: requests on standard input, replies on standard output.

    python -m megpt.films.apart_helper

A request is (decoder, length) and a DICOM data set with one frame; a reply is (0, length) and an array in NumPy's
format, or (1, length) and the kind of the error. Ends when its input ends.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from typing import BinaryIO

import gdcm
import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import pixel_array
from pydicom.uid import JPEGExtended12Bit

from megpt.films.apart import PLUGINS, REPLY, REQUEST

MORE_THAN_A_BYTE = 8


def main() -> None:
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    # Decoders print to standard output too, where only replies may go.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    while len(head := requests.read(REQUEST.size)) == REQUEST.size:
        plugin, length = REQUEST.unpack(head)
        _answer(replies, PLUGINS[plugin], requests.read(length))


def _answer(replies: BinaryIO, plugin: str, request: bytes) -> None:
    buffer = io.BytesIO()
    try:
        np.save(buffer, decode(pydicom.dcmread(io.BytesIO(request), force=True), plugin), allow_pickle=False)
        status, reply = 0, buffer.getbuffer()
    except Exception as error:
        status, reply = 1, memoryview(type(error).__name__.encode())
    replies.write(REPLY.pack(status, len(reply)))
    replies.write(reply)
    replies.flush()


def decode(dataset: Dataset, plugin: str) -> np.ndarray:
    extended = dataset.file_meta.TransferSyntaxUID == JPEGExtended12Bit
    if plugin == "gdcm" and extended and dataset.BitsStored > MORE_THAN_A_BYTE:
        return _extended(dataset)
    return pixel_array(dataset, index=0, decoding_plugin=plugin, correct_unused_bits=False)


def _extended(dataset: Dataset) -> np.ndarray:
    """JPEG Extended with up to 12 bits: GDCM reads it, though pydicom's plugin for GDCM refuses it."""
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(get_frame(dataset.PixelData, 0, number_of_frames=1))
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((int(dataset.Columns), int(dataset.Rows), 1))
    image.SetDataElement(element)
    grey = gdcm.PhotometricInterpretation.GetPIType("MONOCHROME2")
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(grey))
    syntax = gdcm.TransferSyntax.GetTSType(str.__str__(JPEGExtended12Bit))
    image.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    bits, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation)
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, bits, bits - 1, signed))
    data = image.GetBuffer().encode("utf-8", "surrogateescape")
    return np.frombuffer(data, "<i2" if signed else "<u2").reshape(int(dataset.Rows), int(dataset.Columns))


if __name__ == "__main__":
    main()
