"""The nouns everyone shares, and the Arrow schemas that reach the disk.

A *study* is one examination of one patient: one or more *views* (films) and, where known, its report. Everything
megpt reads becomes a `Study`; everything it writes follows one of the schemas below.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import pyarrow as pa

SPLITS = ("train", "val", "test")

# The 14 observations of CheXpert (Irvin et al., 2019), in the alphabetical order of MIMIC-CXR's tables.
CHEXPERT = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)


CONTEXT = ("indication", "comparison", "technique", "prior_report")
"""What is known of a study before its films are read: the sections of `Study` that a prompt may hold."""


@dataclass(frozen=True, slots=True)
class View:
    """One film. `data` holds the encoded file (JPEG, PNG or DICOM); without it the film lies at `uri`.

    `uri` is an absolute path that the source has already checked to lie inside its archive, or `PATH!MEMBER` for a
    member of a zip or tar archive there (megpt/films/members.py).
    `position` is PA, AP, LATERAL, LL, … or empty when unknown.
    """

    image_id: str
    position: str = ""
    data: bytes | None = None
    uri: str | None = None


@dataclass(frozen=True, slots=True)
class Study:
    """One examination: its films and, where the archive has them, its report and labels.

    `labels` maps CheXpert observations to 1 (present), 0 (absent), -1 (uncertain); an unmentioned one is missing.
    `error` says why a study cannot be used if its source knows that before a film is opened; it becomes an error row.
    """

    study_id: str
    subject_id: str = ""
    views: tuple[View, ...] = ()
    report: str | None = None
    findings: str | None = None
    impression: str | None = None
    labels: dict[str, int] | None = field(default=None)
    split: str = "test"
    error: str = ""
    indication: str | None = None
    comparison: str | None = None
    technique: str | None = None
    prior_report: str | None = None
    """What the patient's film before this one showed; only tables to which somebody has added it have it."""

    def to_row(self) -> dict[str, Any]:
        """The row of a studies/ table (`split` lives in the folder's name, not in the row)."""
        return {
            "study_id": self.study_id,
            "subject_id": self.subject_id,
            "views": [
                {"image_id": v.image_id, "position": v.position, "bytes": v.data, "uri": to_uri(v.uri)}
                for v in self.views
            ],
            "report": self.report,
            "findings": self.findings,
            "impression": self.impression,
            **{name: getattr(self, name) for name in CONTEXT},
            "labels": None if self.labels is None else _all_observations(self.labels),
        }

    def failed_row(self, error: str) -> dict[str, Any]:
        """The study's row of a failed.parquet, which has neither its text nor its films; `source` is added later."""
        views = [{"image_id": v.image_id, "position": v.position, "uri": to_uri(v.uri)} for v in self.views]
        names = {"study_id": self.study_id, "subject_id": self.subject_id, "views": views}
        return {**names, "split": self.split, "error": error}

    @classmethod
    def from_row(cls, row: dict[str, Any], *, split: str = "test") -> Study:
        """The inverse of `to_row`; takes `labels` also as the list of pairs of tables that megpt 0.1 wrote."""
        labels = row.get("labels")
        return cls(
            study_id=row["study_id"],
            subject_id=row.get("subject_id") or "",
            views=tuple(
                View(v["image_id"], v.get("position") or "", v.get("bytes"), from_uri(v.get("uri")))
                for v in row["views"]
            ),
            report=row.get("report"),
            findings=row.get("findings"),
            impression=row.get("impression"),
            indication=row.get("indication"),
            comparison=row.get("comparison"),
            technique=row.get("technique"),
            prior_report=row.get("prior_report"),
            labels=None if labels is None else {str(k): int(n) for k, n in dict(labels).items() if n is not None},
            split=row.get("split") or split,
        )


def _all_observations(labels: dict[str, int]) -> dict[str, int | None]:
    """The cells of the `labels` struct. Arrow would drop a name that the struct does not have without a word."""
    if unknown := labels.keys() - set(CHEXPERT):
        raise ValueError(f"not observations of CheXpert: {', '.join(sorted(unknown))}")
    return {name: labels.get(name) for name in CHEXPERT}


_SURROGATE = re.compile("[\udc80-\udcff]")
_FILE = "file://"


def utf8_name(name: str) -> str:
    """A file's name as valid Unicode; bytes that are not UTF-8 become %FC and so on, so that names stay different."""
    return _SURROGATE.sub(lambda match: f"%{ord(match[0]) - 0xDC00:02X}", name)


def to_uri(path: str | None) -> str | None:
    """A path for a table; one that is not UTF-8 becomes a file:// URI (RFC 8089), since Parquet's texts are UTF-8."""
    return path if path is None or not _SURROGATE.search(path) else _FILE + quote(os.fsencode(path))


def from_uri(uri: str | None) -> str | None:
    """The inverse of `to_uri`."""
    return uri if uri is None or not uri.startswith(_FILE + "/") else os.fsdecode(unquote_to_bytes(uri[len(_FILE) :]))


_FILM = [("image_id", pa.string()), ("position", pa.string())]
_VIEW = pa.struct([*_FILM, ("bytes", pa.binary()), ("uri", pa.string())])

LABELS = pa.struct([(name, pa.int8()) for name in CHEXPERT])
"""What a report says of each observation: 1 present, 0 absent, -1 uncertain, null where it is not mentioned. A struct,
because Hugging Face datasets reads no maps."""
SIDES = pa.struct([(name, pa.string()) for name in CHEXPERT])
"""On which side: left, right, both, or null where that is not said."""

STUDIES_SCHEMA = pa.schema(
    [
        pa.field("study_id", pa.string(), nullable=False),
        ("subject_id", pa.string()),
        ("views", pa.list_(_VIEW)),
        ("report", pa.string()),
        ("findings", pa.string()),
        ("impression", pa.string()),
        ("indication", pa.string()),
        ("comparison", pa.string()),
        ("technique", pa.string()),
        ("labels", LABELS),
    ]
)
"""studies/data/split=…/part-*.parquet: one row a study. The split is in the folder's name only: as a column of the
files as well it would break pandas."""

FAILED_SCHEMA = pa.schema(
    [
        pa.field("study_id", pa.string(), nullable=False),
        ("subject_id", pa.string()),
        ("views", pa.list_(pa.struct([*_FILM, ("uri", pa.string())]))),
        ("split", pa.string()),
        ("error", pa.string()),
        ("source", pa.string()),
        ("format", pa.string()),
    ]
)
"""failed.parquet: the studies that could not be used, and why. It has no text and no films; as a source it reads them
again from `source`, the archive or table (an absolute path) that the job read as `format`."""

FILMS_FAILED_SCHEMA = pa.schema(
    [
        pa.field("study_id", pa.string(), nullable=False),
        ("image_id", pa.string()),
        ("split", pa.string()),
        ("reason", pa.string()),
    ]
)
"""films_failed.parquet: the films that could not be read, of studies that were kept and of studies that failed."""

PREDICTIONS_SCHEMA = pa.schema(
    [
        pa.field("study_id", pa.string(), nullable=False),
        ("subject_id", pa.string()),
        ("image_ids", pa.list_(pa.string())),
        ("report", pa.string()),
        ("reference", pa.string()),
        ("prompt_id", pa.int32()),
        ("num_tokens", pa.int32()),
        ("finish_reason", pa.string()),
        ("error", pa.string()),
        ("model", pa.string()),
        ("logprob", pa.float32()),
        ("sentence_logprobs", pa.list_(pa.float32())),
        ("novelty", pa.float32()),
    ]
)
"""predictions/reports/part-*.parquet: one row a study; `report` is null where `error` is not."""

APPROXIMATE = ("logprob", "sentence_logprobs", "novelty")
"""The columns whose last digits depend on which studies were computed together. All others are the same however often
a job was interrupted, and on any number of workers."""
