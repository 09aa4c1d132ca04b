"""Predictions and references → pairs of generated and reference report, each study once."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from megpt.config import EvaluateConfig
from megpt.data.parquet import open_parquet
from megpt.data.studies import read_studies, split_folders, study_files
from megpt.errors import InputError
from megpt.evaluation.reading.columns import SECTIONS, known_names, prediction_columns
from megpt.evaluation.reading.ids import AMBIGUOUS, Matcher, as_id, named
from megpt.evaluation.reading.records import Counts, Record, records
from megpt.evaluation.reading.references import References, find_references
from megpt.evaluation.reading.tables import SPLIT, Table, open_table
from megpt.evaluation.texts import is_blank
from megpt.output import SUCCESS
from megpt.places import place
from megpt.study import SPLITS, Study


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
    logprob: float | None = None
    novelty: float | None = None


@dataclass(frozen=True)
class Pairs:
    """What is scored, and what is not."""

    pairs: list[Pair]
    """Studies with a reference, in the order of the predictions; failed ones among them."""
    without_reference: int = 0
    """Studies left out because nobody knows what their report should say."""
    models: list[str] = field(default_factory=list)
    """Fingerprints of the checkpoints that wrote the reports."""
    unscored: list[Pair] = field(default_factory=list)
    """Studies without a reference (`reference` is ""), in the order of the predictions."""
    said: list[str] = field(default_factory=list)
    """What was taken of the files, a line each."""

    @property
    def every(self) -> list[Pair]:
        """All studies: first those that are scored."""
        return [*self.pairs, *self.unscored]

    @property
    def failed(self) -> int:
        return sum(pair.generated is None for pair in self.pairs)


def prediction_files(folder: str | Path) -> list[Path]:
    """The Parquet files of a finished predictions/ folder.

    Raises:
        InputError: no such folder, not predictions/, or not finished.
    """
    folder = place(folder)
    if not folder.is_dir():
        raise InputError(f"no predictions at {folder}", next="run `megpt generate` first, or set predictions=PATH")
    files = sorted((folder / "reports").glob("*.parquet"))
    if not files:
        raise InputError(
            f"{folder} is not a predictions/ folder",
            cause="it has no reports/*.parquet",
            next="set predictions=PATH to the output of `megpt generate`, or to a file of reports",
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
    predictions: str | Path,
    *,
    studies: str | None = None,
    references: str | None = None,
    section: str = "report",
    limit: int | None = None,
    settings: EvaluateConfig | None = None,
) -> Pairs:
    """The pairs of predictions, whatever file they lie in; see `megpt.evaluation.reading`.

    References come from `references` alone where it is given, else from the predictions, and from `studies` where
    these have none.

    Args:
        section: the text of a study that is the reference: report, findings or impression.
        limit: the first N predictions only.
        settings: columns, encoding and delimiter, where they were set.

    Raises:
        InputError: see `prediction_files`, `open_table` and `find_references`; a study twice (all are named); no
            prediction; none of them has a reference where some were given.
    """
    settings = settings or EvaluateConfig()
    # where references are given, a set truth column is theirs
    own = settings.columns.model_copy(update={"truth": None}) if references else settings.columns
    taken = _predictions(place(predictions), section, settings.model_copy(update={"columns": own}))
    found, said = taken.pairs, [taken.said]
    if references:
        ids = [pair.study_id for pair in found]
        other = find_references(references, ids, numbered=taken.numbered, settings=settings, section=section)
        said.append(other.said + (f"; {taken.truth!r} of the predictions is not used" if taken.truth else ""))
        found = _with(other, found)
    elif studies:
        splits = _splits(studies, {pair.study_id for pair in found})
        found = [replace(pair, split=splits.get(pair.study_id, pair.split)) for pair in found]
        unknown = {pair.study_id for pair in found if is_blank(pair.reference)}
        texts = _of_studies(studies, section, unknown) if unknown else {}
        found = [replace(p, reference=texts[p.study_id]) if p.study_id in texts else p for p in found]
    if limit is not None and limit < len(found):
        said.append(f"the first {limit} of {len(found)} only")
        found = found[:limit]
    pairs = [pair for pair in found if not is_blank(pair.reference)]
    unscored = [replace(pair, reference="") for pair in found if is_blank(pair.reference)]
    if not pairs and (studies or references):
        raise InputError(
            f"none of the {len(found)} studies in {predictions} has a reference report",
            cause=f"neither the predictions nor {references or studies} have one",
            next="set references=PATH to a file that has their reports (data.section names the text)",
        )
    if unscored:
        said.append(f"{len(unscored)} of {len(found)} studies have no reference and are not scored")
    return Pairs(pairs, len(unscored), taken.models, unscored, said)


def training_reports(studies: str | Path, section: str) -> Iterator[str]:
    """The reports of a table's training split, as they stand."""
    for study in read_studies(studies, "train", columns=[section]):
        if text := _text(study, section):
            yield text


def fingerprint(path: str | Path) -> str:
    """16 hex digits of what a file, a predictions/ folder, or any other folder of Parquet files holds."""
    path = place(path)
    files = [path] if path.is_file() else sorted(path.glob("**/*.parquet"))
    if path.is_dir() and (path / "reports").is_dir():
        files = prediction_files(path)
    # Of a studies/ table the studies only: its plan and its failures lie beside them.
    files = [part for part in files if part.parent.name.startswith("split=")] or files
    digest = hashlib.sha256()
    for part in files:
        with part.open("rb") as file:
            digest.update(f"{part.name}:{hashlib.file_digest(file, 'sha256').hexdigest()};".encode())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class _Taken:
    """A file of predictions as it was read, with the references that it has itself."""

    pairs: list[Pair]
    said: str
    truth: str | None
    numbered: bool
    models: list[str]


def _predictions(path: Path, section: str, settings: EvaluateConfig) -> _Taken:
    table = _open(path, settings)
    columns = prediction_columns(table, settings.columns, section)
    ours = {"error", "finish_reason"} <= set(table.columns)
    counts, models = Counts(), set[str]()
    pairs = []
    for record in records(table, columns, counts):
        pairs.append(_pair(record, ours, columns.subject))
        if ours and record.row.get("model"):
            models.add(str(record.row["model"]))
    if not pairs:
        raise InputError(
            f"{path} holds {'only scores' if counts.scores else 'no study'}",
            cause="a table of scores"
            if counts.scores
            else "generate ran over an empty archive, or nothing was written",
        )
    twice = [study for study, times in Counter(pair.study_id for pair in pairs).items() if times > 1]
    if twice:
        raise InputError(
            f"{len(twice)} studies are in the predictions more than once",
            where=f"{columns.id} in {path}: {named(twice)}",
            cause="two runs in one file or folder, or a row an image where the study is the unit",
            next="remove the repeated rows, or set evaluate.columns.id to a column that names each row once",
        )
    said = f"predictions: {path.name}, {table.kind}, {counts.rows} rows; {columns.shown()}"
    return _Taken(pairs, "; ".join([said, *counts.said()]), columns.truth, columns.id is None, sorted(models))


def _open(path: Path, settings: EvaluateConfig) -> Table:
    if path.is_dir() and ((path / "reports").is_dir() or not any(path.glob("**/*.parquet"))):
        prediction_files(path)
        path = path / "reports"
    elif not path.exists():
        raise InputError(f"no predictions at {path}", next="run `megpt generate` first, or set predictions=PATH")
    elif path.is_dir() and split_folders(path):
        raise InputError(
            f"{path} is a studies/ table, not predictions",
            cause="its reports are the radiologists' own: scoring them would look like a perfect model",
            next="set predictions=PATH to the output of `megpt generate`, and studies= or references= to this table",
        )
    names = known_names(settings.columns)
    return open_table(path, names=names, encoding=settings.encoding, delimiter=settings.delimiter)


def _pair(record: Record, ours: bool, subject: str | None) -> Pair:
    row = record.row
    error = row.get("error") if ours else None
    return Pair(
        study_id=record.id or f"row{record.number}",
        generated=record.text if error is None else None,
        reference=record.truth or "",
        subject_id=(as_id(row.get(subject)) if subject else None) or "",
        finish_reason=(row.get("finish_reason") if ours else None) or "",
        error=error,
        split=_known(row.get(SPLIT) or row.get("split")),
        **{name: row.get(name) if ours else None for name in ("prompt_id", "logprob", "novelty")},
    )


def _known(split: Any) -> str | None:
    """A split by the name that studies/ has for it; None for anything else."""
    name = "val" if split in ("validate", "valid", "validation") else split
    return name if name in SPLITS else None


def _with(other: References, found: list[Pair]) -> list[Pair]:
    return [
        replace(
            pair,
            reference=other.texts.get(pair.study_id, ""),
            subject_id=pair.subject_id or other.subjects.get(pair.study_id, ""),
            split=_known(other.splits.get(pair.study_id)) or pair.split,
        )
        for pair in found
    ]


def _of_studies(studies: str, section: str, wanted: set[str]) -> dict[str, str]:
    """Reports of a studies/ table by the id of the prediction; ids written otherwise match where only one does."""
    matcher, exactly, loosely = Matcher(wanted), dict[str, str](), dict[str, str]()
    for study in read_studies(studies, "all", columns=[section]):
        match, exact = matcher.find(study.study_id)
        if match is not None and (text := _text(study, section)):
            into = exactly if exact else loosely
            into[match] = AMBIGUOUS if match in into and not exact else text
    return {study: text for study, text in loosely.items() if text != AMBIGUOUS} | exactly


def _splits(studies: str, wanted: set[str]) -> dict[str, str]:
    """The split of each study that the table holds."""
    found = {}
    for split, path in study_files(studies):
        with open_parquet(path) as file:
            ids = file.read(columns=["study_id"]).column(0).to_pylist()
        found |= dict.fromkeys(wanted.intersection(ids), split)
    return found


def _text(study: Study, section: str) -> str | None:
    assert section in SECTIONS
    text: str | None = getattr(study, section)
    return None if is_blank(text) else text
