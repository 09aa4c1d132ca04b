"""Settings of the cluster and of reading an archive."""

from __future__ import annotations

import codecs
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from megpt.errors import InputError
from megpt.recipe import parse_recipe
from megpt.settings import Fraction, Indifferent, Positive, Section

ModalityCode = Annotated[str, Field(pattern="^[A-Z]{2,16}$")]


class ClusterConfig(Section):
    """What the job asks of Ray."""

    num_workers: Positive | tuple[Positive, Positive] = 1
    """Workers (training ranks or generating actors); `[min, max]` lets the job run with what the cluster has."""
    gpus_per_worker: float = Field(default=0, ge=0)
    """GPUs of one worker; a fraction lets generating actors share a GPU."""
    cpus_per_worker: float = Field(default=1, gt=0)
    """Logical CPUs of one worker."""
    wait_s: float = Field(default=300, ge=0)
    """Seconds to wait for workers that the cluster cannot place, at the start or after a lost node, before an error."""
    hang_s: float = Field(default=1800, gt=0)
    """Seconds without a finished study after which `prepare` and `generate` end with an error that says what waits for
    what; told of from the first minute on. `wait_s` is added to it."""
    ray: Literal["auto", "always"] = "auto"
    """Whether Ray is started even for what one worker of this machine can do (`always`), or only where it must be."""
    on_bad_node: Literal["skip", "stop"] = "skip"
    """What to do about a node that is not as the job needs it: go on without it, or end."""

    @property
    def min_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def max_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @model_validator(mode="after")
    def _ordered(self) -> ClusterConfig:
        if self.min_workers > self.max_workers:
            raise ValueError("num_workers: [min, max] needs min ≤ max")
        return self


class DataColumnsConfig(Section):
    """Columns of a manifest, a JSONL file or a Parquet table of studies; recognised by their names by default."""

    study: str | None = None
    """The column that names a study; without one, each row is a study."""
    subject: str | None = None
    """The column that names the patient."""
    image: str | None = None
    """The column of film paths, or of the films themselves."""
    position: str | None = None
    """The column of projections, such as PA, AP or LATERAL."""
    report: str | None = None
    """The column of whole reports."""
    findings: str | None = None
    """The column of findings."""
    impression: str | None = None
    """The column of impressions."""
    split: str | None = None
    """The column of splits."""
    indication: str | None = None
    """The column of indications, why the films were asked for."""
    comparison: str | None = None
    """The column of what the films were compared with."""
    technique: str | None = None
    """The column of how the films were taken."""


class DataConfig(Section):
    """How an archive is read."""

    format: str = "auto"
    """Layout of `source`: `auto` to detect it, or the name of a format (docs/data.md lists them)."""
    reports: str | None = None
    """Where the reports are, if they are not inside the archive (MIMIC-CXR keeps them apart)."""
    annotations: str | None = None
    """A table or JSON of studies to use instead of the archive's own."""
    encoding: str | None = None
    """Encoding of the archive's tables and report files (utf-8, cp1252, utf-16, …); detected by default."""
    delimiter: str | None = None
    """Delimiter of the archive's CSV tables, one character; detected from their first line by default."""
    roots: tuple[str, ...] = ()
    """Folders outside the archive that its symbolic links and absolute paths may lead into."""
    cleaner: str = "none"
    """How report text is normalised before it is used or scored (docs/reports.md); a score names its cleaner."""
    section: Literal["report", "findings", "impression"] = "report"
    """The part of a report that is learnt and scored."""
    max_views: Positive | None = None
    """Largest number of films used per study, in the archive's order; all of them by default."""
    changed: Annotated[Literal["keep", "redo"], Indifferent] = "keep"
    """Whether a study whose films have changed since it was done is left as it is (`keep`) or done again (`redo`)."""
    max_pixels: Positive = 200_000_000
    """A film that declares more pixels is refused before it is decoded (a decompression bomb)."""
    study_id: Literal["uid", "hash", "accession"] = "uid"
    """A DICOM study's id in tables: its StudyInstanceUID, a keyed hash of it, or its accession number."""
    subject_id: Literal["hash", "patient_id"] = "hash"
    """A DICOM patient's id in tables: a keyed hash of the PatientID, or the PatientID itself."""
    modalities: tuple[ModalityCode, ...] = Field(default=("CR", "DX", "RG"), min_length=1)
    """DICOM modalities that may be chest films; files of all others are left out and counted by kind."""
    columns: DataColumnsConfig = DataColumnsConfig()
    options: Annotated[dict[str, Any], Indifferent] = Field(default_factory=dict)
    """Settings that the archive's own format declares, and whether they change the result (docs/pacs.md)."""

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, name: str | None) -> str | None:
        try:
            return name if name is None else codecs.lookup(name).name
        except LookupError:
            raise ValueError(f"unknown encoding {name!r}; use utf-8, cp1252, utf-16, …") from None

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, text: str | None) -> str | None:
        if text is not None and len(text) != 1:
            raise ValueError(f"{text!r} is not one character; a tab is $'\\t' in bash")
        return text

    @field_validator("cleaner")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            return str(parse_recipe(name))
        except InputError as error:
            raise ValueError(f"{error.what}; {error.next}") from None


class PrepareConfig(Section):
    """archive → studies/"""

    films: Literal["resize", "embed", "link"] = "resize"
    """What the table holds of a film: a smaller copy (`resize`), the file as it is (`embed`), or its path (`link`)."""
    image_size: Positive = 512
    """Shorter side of a stored film, in pixels (`films: resize`)."""
    jpeg_quality: int = Field(default=95, ge=50, le=100)
    """JPEG quality of a stored film (`films: resize`)."""
    shard_size: Positive = 500
    """Studies in one Parquet file."""
    lateral_alone: bool = False
    """Whether a study keeps its report when its frontal film is unreadable and only a lateral one is left."""
    max_failed_fraction: Annotated[Fraction, Indifferent] = 0.05
    """If a larger fraction of studies is unreadable, the finished job ends with exit code 3."""
    fail_fast: Annotated[bool, Indifferent] = False
    """End the job as soon as more studies have failed than `max_failed_fraction` allows of all (exit code 1)."""
    max_failed_films_fraction: Annotated[Fraction, Indifferent] = 0.05
    """If a larger fraction of films is dropped from studies that stay, the finished job ends with exit code 3."""
