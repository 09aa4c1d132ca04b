"""One DICOM header: what a plan needs of it, and nothing else.

    header = read_header(head, whole=lambda: path.read_bytes())     # None if it is not a DICOM file

Only the few tags in `TAGS` are read, up to the last of them; pixels never are. What comes out is either an identifier
that its caller hashes or checks, or a word of a fixed vocabulary (megpt/data/sources/dicom/words.py), so that free text
from a header goes no further than this file.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag

from megpt.data.sources.dicom.words import DICOMDIR, body_part, kind_of_object, modality_code, position_of
from megpt.films import dicom as _quiet  # switches pydicom's warnings off, which quote headers

__all__ = ["HEAD_BYTES", "TAGS", "Header", "UnreadableHeader", "header_of", "read_header"]

assert _quiet
HEAD_BYTES = 1 << 16
"""Nearly every header ends within this; one that does not is read from `whole`."""
MOST_BYTES = 8 << 20
"""No header is longer; what a deflated file unfolds to is cut here."""
DEFLATED = b"1.2.840.10008.1.2.1.99"
DICOMDIR_CLASS = "1.2.840.10008.1.3.10"
UID = re.compile(r"[0-9.]{1,64}")
TAGS = [
    *("ImageType", "SOPClassUID", "SOPInstanceUID"),
    *("AccessionNumber", "Modality", "PresentationIntentType", "SeriesDescription", "AnatomicRegionSequence"),
    *("PatientID", "BodyPartExamined", "ProtocolName", "AcquisitionDeviceProcessingDescription", "ViewPosition"),
    *("StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "InstanceNumber", "PatientOrientation"),
    "ViewCodeSequence",
]
_TAGS: list[BaseTag | int] = [Tag(name) for name in TAGS]
LAST_GROUP = 0x0054


class UnreadableHeader(Exception):
    """A DICOM file whose header cannot be read; `reason` quotes nothing of it."""

    def __init__(self, reason: str = "DICOM header that cannot be read"):
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Header:
    """What a plan needs of a file. An identifier that is missing is ""; one that is not a UID is ""."""

    sop: str = ""
    study: str = ""
    series: str = ""
    patient: str = ""
    accession: str = ""
    modality: str = ""
    body: str = ""
    position: str = ""
    object: str = ""
    """"" for an image that may be a film, else what it is: `SR`, `PDF`, `localizer`, `FOR PROCESSING`, `DICOMDIR` …"""
    number: int = 0
    """Series and instance number in one, for the order of films."""


def read_header(head: bytes, whole: Callable[[], bytes]) -> Header | None:
    """The header of a file; None if the file is not DICOM.

    Args:
        head: the file's first `HEAD_BYTES`.
        whole: gives the file's first `MOST_BYTES`, for a header that does not end in `head`.

    Raises:
        UnreadableHeader: it is DICOM by its first bytes, but damaged.
    """
    marked = head[128:132] == b"DICM"
    # Older archives hold bare data sets, which begin with a tag of group 0002 or 0008, little endian.
    if not marked and not (head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\x00" and len(head) > 8):
        return None
    try:
        dataset, complete = _parse(head)
        if not complete and len(head) >= HEAD_BYTES:
            dataset, complete = _parse(whole())
        header = header_of(dataset)
    except Exception:  # pydicom raises anything on damaged input
        dataset, complete, header = Dataset(), False, Header()
    if not header.study and not header.sop and header.object != DICOMDIR:
        if not marked:
            return None
        # A file without identifiers whose header ended early is damaged; one that ended in good order lacks its UIDs.
        if not complete:
            raise UnreadableHeader
    return header


def _parse(data: bytes) -> tuple[Dataset, bool]:
    """The data set of `TAGS`, and whether reading came to their end in good order."""
    ended = False

    def beyond(tag: Any, vr: str | None, length: int) -> bool:
        nonlocal ended
        ended = ended or tag.group > LAST_GROUP
        return ended

    if DEFLATED in data[:4096]:
        data = _inflated(data)
    file = io.BytesIO(data)
    dataset = read_partial(file, beyond, force=True, specific_tags=_TAGS)
    return dataset, ended or (len(data) < HEAD_BYTES and file.tell() >= len(data) and len(dataset) > 1)


def _inflated(data: bytes) -> bytes:
    """A deflated file as a bare data set in explicit little endian, its header at least; bounded."""
    start = 144 + int.from_bytes(data[140:144], "little")  # behind the group length, the first element of all
    if DEFLATED not in data[:start]:
        return data
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[start:], MOST_BYTES)


def header_of(dataset: Dataset) -> Header:
    """The header that a parsed data set holds; a value that does not fit its type counts as absent."""
    meta = getattr(dataset, "file_meta", Dataset())
    sop_class = _text(dataset, "SOPClassUID") or _text(meta, "MediaStorageSOPClassUID")
    if sop_class == DICOMDIR_CLASS:
        return Header(object=DICOMDIR)
    words = [_text(dataset, tag) for tag in ("SeriesDescription", "ProtocolName")]
    words += [_text(dataset, "AcquisitionDeviceProcessingDescription"), _meaning(dataset, "ViewCodeSequence")]
    return Header(
        sop=_uid(dataset, "SOPInstanceUID"),
        study=_uid(dataset, "StudyInstanceUID"),
        series=_uid(dataset, "SeriesInstanceUID"),
        patient=_text(dataset, "PatientID"),
        accession=_text(dataset, "AccessionNumber"),
        modality=modality_code(_text(dataset, "Modality"), sop_class),
        body=body_part(_text(dataset, "BodyPartExamined") or _meaning(dataset, "AnatomicRegionSequence")),
        position=position_of(_text(dataset, "ViewPosition"), _values(dataset, "PatientOrientation"), words),
        object=kind_of_object(
            sop_class,
            image_type=_values(dataset, "ImageType"),
            intent=_text(dataset, "PresentationIntentType"),
        ),
        number=min(_number(dataset, "SeriesNumber"), 10**6) * 10**6 + min(_number(dataset, "InstanceNumber"), 10**6),
    )


def _text(dataset: Dataset, tag: str) -> str:
    try:
        value = dataset.get(tag)
        return "" if value is None else str(value).strip(" \0")
    except Exception:  # a value that does not fit its type
        return ""


def _values(dataset: Dataset, tag: str) -> list[str]:
    try:
        value = dataset.get(tag)
        values = [value] if isinstance(value, str) else list(value or ())
        return [str(item).strip().upper() for item in values]
    except Exception:
        return []


def _number(dataset: Dataset, tag: str) -> int:
    try:
        return max(int(dataset.get(tag) or 0), 0)
    except Exception:
        return 0


def _uid(dataset: Dataset, tag: str) -> str:
    value = _text(dataset, tag)
    return value if UID.fullmatch(value) else ""


def _meaning(dataset: Dataset, tag: str) -> str:
    try:
        sequence = dataset.get(tag)
        return str(sequence[0].get("CodeMeaning") or "") if sequence else ""
    except Exception:
        return ""


def listed_studies(data: bytes) -> list[tuple[str, str]]:
    """(PatientID, StudyInstanceUID) of each study in a DICOMDIR; [] if it cannot be read.

    Its records follow one another as the tree does, as every writer of them leaves them.
    """
    found, patient = [], ""
    try:
        for record in pydicom.dcmread(io.BytesIO(data)).DirectoryRecordSequence:
            kind = _text(record, "DirectoryRecordType")
            if kind == "PATIENT":
                patient = _text(record, "PatientID")
            elif kind == "STUDY":
                found.append((patient, _uid(record, "StudyInstanceUID")))
    except Exception:  # an index only: its films are found without it
        return []
    return found
