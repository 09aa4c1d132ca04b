"""One report as a DICOM Basic Text SR, by highdicom: marked for what it is, and referring to its films.

    document = text_report("Lungs are clear.", films, model="a1b2…")     # films: their headers, from the PACS

The patient and study modules are those of the films. The UIDs depend on study and model alone, so the same report has
the same UID whenever and wherever it is sent from.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Sequence

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import UID, BasicTextSRStorage

from megpt import __version__

TITLE = "Research use only, machine-made"
SERIES_NUMBER = 9901
_NAMES = uuid.UUID("5f0f6b52-0d0b-4a3e-9b39-6d8f3c1b7a11")
# What highdicom takes from a film without asking whether it is there; of the types that may be empty.
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate"),
    *("StudyTime", "ReferringPhysicianName"),
)


def report_uid(study: str, model: str, kind: str = "report") -> str:
    """The SOPInstanceUID of a model's report on a study: a name-based UUID (RFC 4122) as DICOM PS3.5 B.2 writes it."""
    return f"2.25.{uuid.uuid5(_NAMES, f'{kind}/{study}/{model}').int}"


def text_report(text: str, films: Sequence[Dataset], *, model: str) -> Dataset:
    """The SR document of a report.

    Args:
        text: the report.
        films: the headers of its films, of one study.
        model: the fingerprint of the checkpoint that wrote it.
    """
    from highdicom.sr import EnhancedSR

    first = films[0]
    for film in films:
        for name in _MAY_BE_EMPTY:
            if name not in film:
                setattr(film, name, None)
    study = str(first.StudyInstanceUID)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote names
        document = EnhancedSR(
            evidence=films,
            content=_content(text, films, model),
            series_instance_uid=report_uid(study, model, "series"),
            series_number=SERIES_NUMBER,
            sop_instance_uid=report_uid(study, model),
            instance_number=1,
            manufacturer="megpt",
            manufacturer_model_name="megpt",
            software_versions=__version__,
            device_serial_number=model,
            series_description=TITLE,
            specific_character_set="ISO_IR 192",
            is_complete=True,
            is_final=False,
            is_verified=False,
        )
    # The content is of Basic Text SR's few kinds, and highdicom has no class for that document.
    document.SOPClassUID = document.file_meta.MediaStorageSOPClassUID = BasicTextSRStorage
    return document


def _content(text: str, films: Sequence[Dataset], model: str) -> Dataset:
    from highdicom.sr import (
        CodeContentItem,
        ContainerContentItem,
        ContentItem,
        ContentSequence,
        ImageContentItem,
        RelationshipTypeValues,
        TextContentItem,
        UIDRefContentItem,
    )

    contains, context = RelationshipTypeValues.CONTAINS, RelationshipTypeValues.HAS_OBS_CONTEXT

    def dcm(value: str, meaning: str) -> Code:
        return Code(value, "DCM", meaning)

    def section(name: Code, items: Sequence[ContentItem]) -> ContainerContentItem:
        container = ContainerContentItem(name, is_content_continuous=False, relationship_type=contains)
        container.ContentSequence = ContentSequence(items)
        return container

    note = f"{TITLE}: by megpt {__version__}, model {model}. Not verified by a physician."
    finding = TextContentItem(dcm("121071", "Finding"), text, contains)
    source = Code("260753009", "SCT", "Source")
    images = [
        ImageContentItem(source, film.SOPClassUID, film.SOPInstanceUID, relationship_type=contains) for film in films
    ]
    root = ContainerContentItem(Code("18748-4", "LN", "Diagnostic Imaging Report"), is_content_continuous=False)
    root.ContentSequence = ContentSequence(
        [
            CodeContentItem(dcm("121005", "Observer Type"), dcm("121007", "Device"), context),
            UIDRefContentItem(dcm("121012", "Device Observer UID"), UID(report_uid("", model, "device")), context),
            TextContentItem(dcm("121013", "Device Observer Name"), f"megpt {__version__}", context),
            TextContentItem(dcm("121106", "Comment"), note, contains),
            section(dcm("121070", "Findings"), [finding]),
            section(dcm("111028", "Image Library"), images),
        ]
    )
    return root
