"""per_study.parquet: each study's texts, labels, sides and own scores, for a closer look than the means."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from megpt.evaluation.clinical import MISSING, Findings
from megpt.evaluation.clinical import SIDES as SIDE_NAMES
from megpt.evaluation.metrics import Evaluation
from megpt.evaluation.statistics import SCORES
from megpt.study import CHEXPERT, LABELS, SIDES

STUDY_SCORES = (*(s for s in SCORES if not s.startswith("clinical")), "clinical_f1")

PER_STUDY_SCHEMA = pa.schema(
    [
        pa.field("study_id", pa.string(), nullable=False),
        ("subject_id", pa.string()),
        ("split", pa.string()),
        ("prompt_id", pa.int32()),
        ("logprob", pa.float32()),
        ("novelty", pa.float32()),
        pa.field("scored", pa.bool_(), nullable=False),
        *((name, pa.float64()) for name in STUDY_SCORES),
        ("generated", pa.string()),
        ("reference", pa.string()),
        ("labels", LABELS),
        ("sides", SIDES),
        ("reference_labels", LABELS),
        ("reference_sides", SIDES),
        ("finish_reason", pa.string()),
        ("error", pa.string()),
    ]
)
"""One row a study, the scored ones first; a column for each further score comes last.

`generated` and its labels are null where it failed, METEOR where it could not be computed, every score and the
reference where a study is not scored.
"""


def per_study(evaluation: Evaluation) -> pa.Table:
    """The table of all predictions."""
    pairs, statistics = evaluation.pairs.every, evaluation.statistics
    scores, n = statistics.per_study(), len(statistics)
    assert statistics.found is not None and statistics.truth is not None
    found = Findings.joined([statistics.found, evaluation.unscored])
    written = [pair.generated is not None for pair in pairs]
    columns = {
        "study_id": [p.study_id for p in pairs],
        "subject_id": [p.subject_id or None for p in pairs],
        "split": [p.split for p in pairs],
        **{name: [getattr(p, name) for p in pairs] for name in ("prompt_id", "logprob", "novelty")},
        "scored": [row < n for row in range(len(pairs))],
        **{name: _padded(scores.get(name), len(pairs)) for name in (*STUDY_SCORES, *statistics.further)},
        "generated": [p.generated for p in pairs],
        "reference": [p.reference or None for p in pairs],
        "labels": label_structs(found, written),
        "sides": side_structs(found, written),
        "reference_labels": _padded_structs(label_structs(statistics.truth), len(pairs)),
        "reference_sides": _padded_structs(side_structs(statistics.truth), len(pairs)),
        "finish_reason": [p.finish_reason for p in pairs],
        "error": [p.error for p in pairs],
    }
    further = [pa.field(name, pa.float64()) for name in statistics.further]
    return pa.table(columns, schema=pa.schema([*PER_STUDY_SCHEMA, *further]))


def label_structs(findings: Findings, known: Sequence[bool] | None = None) -> pa.StructArray:
    """The labels as `LABELS`; null where a report is not `known`."""
    columns = [pa.array(column, pa.int8(), mask=column == MISSING) for column in findings.labels.T]
    return _structs(columns, LABELS, known)


def side_structs(findings: Findings, known: Sequence[bool] | None = None) -> pa.StructArray:
    """The sides as `SIDES`; null where a report is not `known`."""
    columns = [pa.array([SIDE_NAMES[code] or None for code in row], pa.string()) for row in findings.sides.T.tolist()]
    return _structs(columns, SIDES, known)


def _structs(columns: list[pa.Array], kind: pa.StructType, known: Sequence[bool] | None) -> pa.StructArray:
    mask = None if known is None else pa.array([not there for there in known], pa.bool_())
    return pa.StructArray.from_arrays(columns, fields=[kind.field(i) for i in range(len(CHEXPERT))], mask=mask)


def _padded(values: np.ndarray | None, count: int) -> pa.Array:
    known = [] if values is None else [float(value) for value in values]
    return pa.array([*known, *[None] * (count - len(known))], pa.float64())


def _padded_structs(values: pa.StructArray, count: int) -> pa.Array:
    return pa.concat_arrays([values, pa.nulls(count - len(values), values.type)])
