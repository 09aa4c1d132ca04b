"""predictions/ → pairs of generated and reference report, each study once."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megpt.data.studies import read_rows, read_studies
from megpt.errors import InputError
from megpt.evaluation.texts import is_blank
from megpt.output import SUCCESS
from megpt.study import Study

COLUMNS = ["study_id", "subject_id", "report", "reference", "prompt_id", "finish_reason", "error", "model"]


@dataclass(frozen=True, slots=True)
class Pair:
    """One study: what was generated (None when it failed) and what the radiologist wrote, neither cleaned nor cut."""

    study_id: str
    generated: str | None
    reference: str
    subject_id: str = ""
    finish_reason: str = "stop"
    error: str | None = None
    split: str | None = None
    prompt_id: int | None = None


@dataclass(frozen=True)
class Pairs:
    """What is scored, and what is not."""

    pairs: list[Pair]
    """Studies with a reference, in the order of predictions/; failed ones among them."""
    without_reference: int = 0
    """Studies left out because nobody knows what their report should say."""
    models: list[str] = field(default_factory=list)
    """Fingerprints of the checkpoints that wrote the reports."""

    @property
    def failed(self) -> int:
        return sum(pair.generated is None for pair in self.pairs)


def prediction_files(folder: str | Path) -> list[Path]:
    """The Parquet files of a finished predictions/ folder.

    Raises:
        InputError: no such folder, not predictions/, or not finished.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no predictions at {folder}", next="run `megpt generate` first, or set predictions=PATH")
    files = sorted((folder / "reports").glob("*.parquet"))
    if not files:
        raise InputError(
            f"{folder} is not a predictions/ folder",
            cause="it has no reports/*.parquet",
            next="set predictions=PATH to the output of `megpt generate`",
        )
    if not (folder / SUCCESS).exists():
        raise InputError(
            f"the predictions in {folder} are not finished",
            where=f"{folder / SUCCESS} is missing",
            cause="`generate` was stopped or is still running; a score of a part would pass for the whole",
            next=f"run `megpt generate … output={folder}` again: it resumes",
        )
    return files


def read_pairs(
    predictions: str | Path, *, studies: str | None = None, section: str = "report", limit: int | None = None
) -> Pairs:
    """The pairs of a predictions/ folder; references that it lacks are looked up in a studies/ table.

    Args:
        section: the text of a study that is the reference: report, findings or impression.
        limit: the first N predictions only.

    Raises:
        InputError: see `prediction_files`; a study twice; no prediction; no reference at all.
    """
    rows = list(itertools.islice(_rows(prediction_files(predictions)), limit))
    if not rows:
        raise InputError(f"{predictions} holds no study", cause="generate ran over an empty archive")
    twice = [study for study, times in Counter(row["study_id"] for row in rows).items() if times > 1]
    if twice:
        raise InputError(
            f"{len(twice)} studies are in the predictions more than once",
            where=f"study_id {twice[0]} in {Path(predictions) / 'reports'}",
            cause="files of two runs lie in one folder",
            next="delete the folder and generate again",
        )
    unknown = {row["study_id"] for row in rows if is_blank(row["reference"])}
    found = _references(studies, section, unknown) if studies and unknown else {}
    pairs = [
        Pair(
            study_id=row["study_id"],
            generated=row["report"] if row["error"] is None else None,
            reference=reference,
            subject_id=row.get("subject_id") or "",
            finish_reason=row.get("finish_reason") or "",
            error=row["error"],
        )
        for row in rows
        if not is_blank(reference := found.get(row["study_id"], row["reference"]))
    ]
    if not pairs:
        raise InputError(
            f"none of the {len(rows)} studies in {predictions} has a reference report",
            cause="the archive has no reports" if studies else "the predictions hold none, and `studies` is not set",
            next="set studies=PATH to a table that has their reports (data.section names the text)",
        )
    models = sorted({row["model"] for row in rows if row.get("model")})
    return Pairs(pairs=pairs, without_reference=len(rows) - len(pairs), models=models)


def training_reports(studies: str | Path, section: str) -> Iterator[str]:
    """The reports of a table's training split, as they stand."""
    for study in read_studies(studies, "train", columns=[section]):
        if text := _text(study, section):
            yield text


def fingerprint(predictions: str | Path) -> str:
    """16 hex digits of what the predictions' files hold."""
    digest = hashlib.sha256()
    for path in prediction_files(predictions):
        with path.open("rb") as file:
            digest.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()};".encode())
    return digest.hexdigest()[:16]


def _rows(files: list[Path]) -> Iterator[dict[str, Any]]:
    for path in files:
        for row in read_rows(path, COLUMNS):
            if missing := {"study_id", "report", "reference", "error"} - row.keys():
                raise InputError(f"{path} has no column {sorted(missing)[0]}", cause="it was not written by generate")
            yield row


def _references(studies: str, section: str, wanted: set[str]) -> dict[str, str]:
    table = read_studies(studies, "all", columns=[section])
    return {study.study_id: text for study in table if study.study_id in wanted and (text := _text(study, section))}


def _text(study: Study, section: str) -> str | None:
    text: str | None = getattr(study, section)
    return None if is_blank(text) else text
