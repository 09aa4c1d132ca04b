"""A phantom film as a DICOM file, with the habits of real ones: 12 bits, a window, sometimes an inverted scale."""

from __future__ import annotations

import io

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from megpt.demo.phantom.patient import Patient, generator

DIGITAL_X_RAY = UID("1.2.840.10008.5.1.4.1.1.1.1.1")
BITS = 12


def to_dicom(film: np.ndarray, patient: Patient, position: str, seed: int) -> bytes:
    """A film (H, W) uint8 as a DICOM file.

    UIDs follow from the seed, and the dates are fixed, so the bytes are the same every time. A third of the files
    are MONOCHROME1, where the largest value is black.
    """
    inverted = bool(generator(seed, patient.index, 5).random() < 1 / 3)
    pixels = film.astype(np.uint16) << (BITS - 8)
    if inverted:
        pixels = (1 << BITS) - 1 - pixels
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = DIGITAL_X_RAY
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = _uid(seed, patient.index, position)
    ds.StudyInstanceUID = _uid(seed, patient.index, "study")
    ds.SeriesInstanceUID = _uid(seed, patient.index, "series")
    # A name and a birth date, as real files have: nothing of them may reach a log or a table.
    ds.PatientName, ds.PatientID = f"Phantom^Number{patient.index}", f"p{patient.index:06d}"
    ds.PatientBirthDate, ds.StudyDate, ds.StudyTime = "19500101", "20200101", "120000"
    ds.Modality, ds.ViewPosition, ds.BodyPartExamined = "DX", "PA" if position == "PA" else "LL", "CHEST"
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    ds.Rows, ds.Columns = film.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, BITS, BITS - 1, 0
    ds.WindowCenter, ds.WindowWidth = 1 << (BITS - 1), 1 << BITS
    ds.PixelData = pixels.astype("<u2").tobytes()
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _uid(seed: int, index: int, what: str) -> UID:
    return generate_uid(entropy_srcs=["megpt phantom", str(seed), str(index), what])
