"""What the columns of radiology tables mean, whoever named them: their roles, labels, splits, ids and blanks.

    columns = find_columns(["Image Index", "Report_Text"])             # TableColumns(image="Image Index", …)
    observations(row, label_columns(row), where="list.csv, line 7")    # {"Edema": 1}

All table-shaped formats share this, so that a blank, an id or a label is read alike in each of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from megpt.config.data import DataColumnsConfig
from megpt.errors import InputError, did_you_mean
from megpt.study import CHEXPERT

# The names that radiology tables use for the splits.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "": "",
}
# What tables write for "nothing"; pandas' own list, in lower case.
BLANKS = frozenset({"", "nan", "na", "n/a", "#n/a", "#na", "<na>", "none", "null", "nat", "-nan"})

LONGEST_NAME = 80


class TableColumns(DataColumnsConfig):
    """The column of each role; None if the table has none."""

    def text(self, row: Mapping[str, Any], role: str) -> str | None:
        """The cell of a role as text; None if it is blank or there is no such column."""
        name = getattr(self, role)
        return None if name is None else text_cell(row.get(name))


# The likeliest names first, in the form that `plain` gives.
ALIASES = {
    "study": (
        "study_id",
        "studyid",
        "study",
        "study_instance_uid",
        "studyinstanceuid",
        "exam_id",
        "case_id",
        "id",
        "uid",
    ),
    "subject": ("subject_id", "subjectid", "patient_id", "patientid", "deid_patient_id", "patient", "subject"),
    "image": (
        *("image_path", "image_paths", "imagepath", "path_to_image", "image", "images", "file_name", "file_names"),
        *("filename", "filenames", "image_file", "img_path", "image_index", "file", "path", "film", "films", "img"),
    ),
    "position": ("position", "view_position", "viewposition", "projection", "view", "frontal_lateral", "ap_pa"),
    "report": ("report", "report_text", "text", "caption", "full_report", "reports", "radiology_report"),
    "findings": ("findings", "section_findings", "finding"),
    "impression": ("impression", "section_impression", "impressions", "conclusion"),
    "split": ("split", "subset", "partition", "fold"),
    "indication": ("indication", "section_indication", "clinical_indication", "history", "clinical_history", "reason"),
    "comparison": ("comparison", "section_comparison", "comparisons"),
    "technique": ("technique", "section_technique"),
}
# Other tables' names for CheXpert's observations, in the form that `plain` gives.
SYNONYMS = {
    **{name.lower().replace(" ", "_"): name for name in CHEXPERT},
    "effusion": "Pleural Effusion",
    "enlarged_cardiom": "Enlarged Cardiomediastinum",
    "enlarged_cardiomediastinal_silhouette": "Enlarged Cardiomediastinum",
    "airspace_opacity": "Lung Opacity",
    "no_findings": "No Finding",
}


def plain(name: str) -> str:
    """A column's name in lower case, with `_` for everything that is not a letter or a digit."""
    return re.sub(r"[^0-9a-z]+", "_", name.strip().lower()).strip("_")


def find_columns(
    names: Iterable[str], wanted: Mapping[str, str | None] | None = None, *, where: str = ""
) -> TableColumns:
    """The column of each role: the one that the user named, else the likeliest known name.

    Args:
        wanted: role → column, from `data.columns.*`.
        where: the table, for errors.

    Raises:
        InputError: a column that the user named is not there.
    """
    names = list(names)
    known: dict[str, str] = {}
    for name in names:
        known.setdefault(plain(name), name)
    found: dict[str, str | None] = {}
    for role in TableColumns.model_fields:
        chosen = (wanted or {}).get(role)
        if chosen is not None and chosen not in names:
            raise no_column(where or "the table", chosen, names, where=f"data.columns.{role}")
        found[role] = chosen or next((known[alias] for alias in ALIASES[role] if alias in known), None)
    return TableColumns(**found)


def no_column(table: str | Path, column: str, names: list[str], *, where: str | None = None) -> InputError:
    """The error for a column that is not among a table's `names`."""
    return InputError(
        f"{table} has no column {column!r}",
        where=where,
        cause=f"its columns are: {listed(names)}",
        next=did_you_mean(column, names) if names else None,
    )


def listed(names: list[str]) -> str:
    """Names of columns, for errors: the first of them, and of each its beginning."""
    told = [name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…" for name in names[:20]]
    return ", ".join(told) or "none, the file is empty"


def label_columns(names: Iterable[str]) -> dict[str, str]:
    """Column → CheXpert observation, for the columns that hold one."""
    return {name: SYNONYMS[plain(name)] for name in names if plain(name) in SYNONYMS}


def observations(row: Mapping[str, Any], columns: Mapping[str, str], *, where: str) -> dict[str, int] | None:
    """The labels of a row; None if the table has no label columns or all of them are blank.

    Raises:
        InputError: a cell that is not 1, 0, -1 or blank.
    """
    labels = {}
    for column, name in columns.items():
        text = text_cell(row.get(column))
        if text is None:
            continue
        try:
            value = {"true": 1.0, "false": 0.0}.get(text.lower()) if text.isalpha() else float(text)
        except ValueError:
            value = None
        if value is None or value not in (-1.0, 0.0, 1.0):
            table, _, line = where.rpartition(", ")
            raise InputError(f"{table}: a label is not 1, 0, -1 or blank", where=f"column {column!r}, {line}")
        labels[name] = int(value)
    return labels or None


def merged(labels: Iterable[dict[str, int] | None]) -> dict[str, int] | None:
    """The labels of a study from those of its films: present in one is present, then uncertain, then absent."""
    total: dict[str, int] = {}
    for one in labels:
        for name, value in (one or {}).items():
            total[name] = max(total.get(name, value), value, key=(0, -1, 1).index)
    return total or None


def text_cell(value: Any) -> str | None:
    """A cell as text without white space around it; None for a blank, however the table writes it."""
    if value is None or (isinstance(value, float) and value != value):
        return None
    text = str(value).strip()
    return None if text.lower() in BLANKS else text


def id_cell(value: Any, *, where: str) -> str | None:
    """An id as text: leading zeros stay, and a whole float is the integer that pandas made it from.

    Raises:
        InputError: a number that has lost digits, such as 1.23457E+14 or 12.5.
    """
    if isinstance(value, (float, Decimal)) and value == value:
        exact = float(value).is_integer() and abs(value) < 2**53
        if not exact:
            raise _lost_digits(where)
        return str(int(value))
    text = text_cell(value)
    if text is None:
        return None
    if re.fullmatch(r"(0|[1-9][0-9]*)\.0+", text):
        return text.partition(".")[0]
    if re.fullmatch(r"[0-9][.,]?[0-9]*[eE]\+[0-9]{1,3}", text):
        raise _lost_digits(where)
    return text


def _lost_digits(where: str) -> InputError:
    return InputError(
        "an id was saved as a floating-point number and has lost digits",
        where=where,
        cause="a spreadsheet or pandas turned the column into numbers",
        next="export the table again with this column as text",
    )


def split_name(value: str | None, *, where: str) -> str:
    """train, val or test, from the names that tables use; "" if the cell is blank.

    Raises:
        InputError: an unknown name.
    """
    name = SPLIT_NAMES.get((text_cell(value) or "").lower())
    if name is None:
        raise InputError(
            f"unknown split {value!r}", where=where, next=f"use one of {', '.join(k for k in SPLIT_NAMES if k)}"
        )
    return name


def split_of_path(path: str) -> str:
    """The split that a folder or a file's name gives (`train/…`, `data/test-00000-of-00002.parquet`); "" for none."""
    parts = path.lower().split("/")
    for part in parts[:-1]:
        if SPLIT_NAMES.get(part):
            return SPLIT_NAMES[part]
    first = re.split(r"[^a-z]", parts[-1], maxsplit=1)[0]
    return SPLIT_NAMES.get(first, "")
