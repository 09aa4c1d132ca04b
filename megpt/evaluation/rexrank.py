"""Predictions as a ReXrank submission: its JSON of studies by id, each with a `model_prediction`.

    {"CXR38_IM-1911": {"image_path": […], "section_findings": "…", …, "model_prediction": "Lungs are clear."}, …}

The entries are those of the ReXrank file that the evaluation read (references or predictions), as they stand; with
another file they hold what is known: the reference and the patient.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from megpt.config import Config
from megpt.evaluation.pairs import Pair, Pairs
from megpt.evaluation.reading.columns import known_names, prediction_columns
from megpt.evaluation.reading.ids import Matcher, as_id
from megpt.evaluation.reading.references import open_references
from megpt.evaluation.reading.tables import KEY, SPLIT, TEXT, Table, open_table
from megpt.output import write_aside
from megpt.places import place

PREDICTION = "model_prediction"
_OURS = (KEY, TEXT, SPLIT)
_MARKS = {"key_image_path", "frontal_lateral", "section_findings", "context"}
"""Fields by two of which a ReXrank file is known."""


def write_rexrank(path: str | Path, pairs: Pairs, config: Config) -> str:
    """Write the submission, whole or not at all; returns what was written, in words.

    Args:
        pairs: all predictions; a failed one is an empty `model_prediction`.
    """
    studies = {pair.study_id: pair for pair in pairs.every}
    template = _template(config)
    written = failed = 0
    with write_aside(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("{")
        for study, entry in _entries(studies, template, config.data.section):
            file.write(",\n" if written else "\n")
            file.write(
                f"{json.dumps(study, ensure_ascii=False)}: {json.dumps(entry, ensure_ascii=False, default=_plain)}"
            )
            written += 1
            failed += not entry[PREDICTION]
        file.write("\n}\n")
    parts = [f"{written} studies" + (f" as in {template[0].path.name}" if template else "")]
    parts += [f"{failed} with an empty report"] if failed else []
    parts += (
        [f"{len(studies) - written} predictions are not in that file and left out"] if written < len(studies) else []
    )
    return f"{Path(path).name}: {'; '.join(parts)}"


def _template(config: Config) -> tuple[Table, str | None] | None:
    """The ReXrank file among the inputs, and its id column."""
    settings, section = config.evaluate, config.data.section
    if config.references:
        table, columns = open_references(config.references, settings, section)
        if len(_MARKS & set(table.columns)) > 1:
            return table, columns.id
    path = place(str(config.predictions))
    if path.is_file():
        names = known_names(settings.columns)
        table = open_table(path, names=names, encoding=settings.encoding, delimiter=settings.delimiter)
        if len(_MARKS & set(table.columns)) > 1:
            return table, prediction_columns(table, settings.columns, section).id
    return None


def _entries(
    studies: dict[str, Pair], template: tuple[Table, str | None] | None, section: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    if template is None:
        for study, pair in studies.items():
            yield study, _minimal(pair, section)
        return
    table, column = template
    matcher, done = Matcher(studies), set[str]()
    for number, row in table.rows():
        theirs = (as_id(row.get(column)) if column else None) or f"row{number}"
        study, _ = matcher.find(theirs)
        if study is None or study in done:
            continue
        done.add(study)
        # Python's NaN is no JSON: a section that is not there
        entry = {name: None if value != value else value for name, value in row.items() if name not in _OURS}
        yield theirs, {**entry, PREDICTION: studies[study].generated or ""}


def _minimal(pair: Pair, section: str) -> dict[str, Any]:
    impression = section == "impression"
    return {
        "report": pair.reference,
        "section_findings": "" if impression else pair.reference,
        "section_impression": pair.reference if impression else "",
        "subject_id": pair.subject_id,
        "split": pair.split or "test",
        PREDICTION: pair.generated or "",
    }


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, Decimal) else str(value)
