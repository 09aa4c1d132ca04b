"""Which column of a table is the id, the generated report, the reference: by name, or as it was set."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from megpt.config import ColumnsConfig
from megpt.errors import InputError, did_you_mean
from megpt.evaluation.reading.tables import ANNOTATION, KEY, SPLIT, TEXT, Table

ID = ("study_id", "id", "images_id", "image_id", "dicom_id", "uid", "study")
PREDICTION = ("model_prediction", "pred_report", "hyp", "generated")
PREDICTION += ("generated_report", "predicted_report", "prediction", "hypothesis", "candidate", "pred", "preds")
TRUTH = ("reference", "ref", "ground_truth", "section_findings", "labels")
TRUTH += ("reference_report", "true_report", "gt_report", "gt", "refs")
SUBJECT = ("subject_id", "patient_id", "subject")
SECTIONS = {
    "report": ("report", "findings", "impression"),
    "findings": ("section_findings", "findings"),
    "impression": ("section_impression", "impression"),
}
NAMES = frozenset((*ID, *PREDICTION, *TRUTH, *SUBJECT, "report", "findings", "impression", "section_impression"))
"""Every name that tells a header from a row."""
PEEK = 200


@dataclass(frozen=True)
class Columns:
    """What was taken; None where a table has none."""

    id: str | None
    text: str | None
    truth: str | None
    subject: str | None = None

    def shown(self, *, truth: bool = True) -> str:
        """`id: study_id, text: report, truth: none`"""
        names = {KEY: "the entry's key", TEXT: "the whole entry", None: "none"}
        roles = [("id", self.id), ("text", self.text), *([("truth", self.truth)] if truth else [])]
        return ", ".join(f"{role}: {names.get(column, column)}" for role, column in roles)


def known_names(wanted: ColumnsConfig) -> frozenset[str]:
    """The names that make a first line a header."""
    return NAMES | {name.lower() for name in (wanted.id, wanted.text, wanted.truth) if name}


def prediction_columns(table: Table, wanted: ColumnsConfig, section: str = "report") -> Columns:
    """The columns of a table of generated reports.

    Raises:
        InputError: a column that was set is not there; no column of generated reports, or a table of references only.
    """
    text = _set(table, "text", wanted.text) or _first(table, PREDICTION)
    if text is None and (TEXT in table.columns or _has(table, "report")):
        text = TEXT if TEXT in table.columns else _has(table, "report")
        if table.kind == ANNOTATION or (_has(table, "section_findings") and not wanted.truth):
            raise InputError(
                f"{table.path} holds references, and no generated reports",
                cause="it has `report`, and nothing such as model_prediction beside it",
                next=f"set references={table.path}, and predictions to what a model wrote",
            )
    if text is None:
        raise _missing(table, "generated reports", "text", PREDICTION)
    names = (*(SECTIONS[section] if section != "report" else ()), *TRUTH, "report", "findings")
    truth = _set(table, "truth", wanted.truth) or _first(table, (n for n in names if _is_text(table, n)), besides=text)
    return Columns(_id(table, wanted), text, truth, _first(table, SUBJECT))


def reference_columns(table: Table, wanted: ColumnsConfig, section: str = "report") -> Columns:
    """The columns of a table of references or training reports; `truth` is None, `text` the report.

    Raises:
        InputError: a column that was set is not there, or no column of reports.
    """
    named = _has(table, wanted.truth) if wanted.truth else None
    sections = SECTIONS[section]
    names = (*sections, *TRUTH) if section != "report" else (*TRUTH, *sections)
    text = named or _first(table, (name for name in names if _is_text(table, name)))
    if text is None and TEXT in table.columns:
        text = TEXT
    if text is None:
        raise _missing(table, "reference reports", "truth", (*TRUTH[:4], "report"))
    chosen = _has(table, wanted.id) if wanted.id else None
    return Columns(chosen or _id(table, ColumnsConfig()), text, None, _first(table, SUBJECT))


def id_columns(table: Table, first: str | None) -> list[str]:
    """Every column that may name a study, the likeliest first; R2Gen's MIMIC-CXR list has one an image too."""
    found = [name for name in (first, KEY if KEY in table.columns else None, *(_has(table, n) for n in ID)) if name]
    return list(dict.fromkeys(found))


def _id(table: Table, wanted: ColumnsConfig) -> str | None:
    named, column = _set(table, "id", wanted.id), _first(table, ID)
    if named or KEY not in table.columns:
        return named or column
    return column if column and _counts(table) else KEY


def _counts(table: Table) -> bool:
    """Whether the keys of a JSON object are row numbers, as pandas writes them."""
    keys = [row.get(KEY) for _, row in islice(table.rows(), PEEK)]
    return keys in ([str(i) for i in range(len(keys))], [str(i + 1) for i in range(len(keys))])


def _set(table: Table, key: str, name: str | None) -> str | None:
    if name is None:
        return None
    found = _has(table, name)
    if found is None:
        listed = ", ".join(_listed(table))
        raise InputError(
            f"evaluate.columns.{key} = {name!r} is no column of {table.path}",
            cause=f"its columns are: {listed}",
            next=did_you_mean(name, _listed(table)),
        )
    return found


def _has(table: Table, name: str) -> str | None:
    """The column of this name, whatever its letter case."""
    if name in table.columns:
        return name
    return next((column for column in table.columns if column.strip().lower() == name.lower()), None)


def _first(table: Table, names: Iterable[str], besides: str | None = None) -> str | None:
    return next((found for name in names if (found := _has(table, name)) and found != besides), None)


def _is_text(table: Table, name: str) -> bool:
    """Whether a column holds sentences; only `labels` is in doubt, which is a list of findings elsewhere."""
    column = _has(table, name)
    if name != "labels" or column is None:
        return column is not None
    values = [row.get(column) for _, row in islice(table.rows(), PEEK)]
    texts = [value for value in values if isinstance(value, str) and value.strip()]
    others = sum(value is not None and not isinstance(value, str) for value in values)
    words = sum(len([w for w in text.split() if w.isalpha()]) for text in texts)
    return bool(texts) and not others and words >= 3 * len(texts)


def _missing(table: Table, what: str, key: str, names: Iterable[str]) -> InputError:
    return InputError(
        f"{table.path} has no column of {what}",
        where=f"read as {table.kind}",
        cause=f"its columns are: {', '.join(_listed(table)) or 'none'}; looked for {', '.join(names)}, report",
        next=f"set evaluate.columns.{key}=NAME",
    )


def _listed(table: Table) -> list[str]:
    return [column[:40] for column in table.columns if column not in (KEY, TEXT, SPLIT)][:20]
