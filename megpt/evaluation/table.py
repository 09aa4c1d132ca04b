"""per_study.parquet: each study's texts, labels and own scores, for a closer look than the means."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from megpt.evaluation.metrics import Evaluation
from megpt.evaluation.statistics import SCORES
from megpt.study import CHEXPERT

STUDY_SCORES = (*(s for s in SCORES if not s.startswith("clinical")), "clinical_f1")

PER_STUDY_SCHEMA = pa.schema(
    [
        pa.field("study_id", pa.string(), nullable=False),
        ("subject_id", pa.string()),
        *((name, pa.float64()) for name in STUDY_SCORES),
        ("generated", pa.string()),
        ("reference", pa.string()),
        ("generated_labels", pa.list_(pa.string())),
        ("reference_labels", pa.list_(pa.string())),
        ("finish_reason", pa.string()),
        ("error", pa.string()),
    ]
)
"""One row a study; `generated` is null where it failed, METEOR where it could not be computed."""


def per_study(evaluation: Evaluation) -> pa.Table:
    """The table, in the order of the pairs."""
    pairs, statistics = evaluation.pairs.pairs, evaluation.statistics
    scores = statistics.per_study()
    columns = {
        "study_id": [p.study_id for p in pairs],
        "subject_id": [p.subject_id for p in pairs],
        # not a number: a study without a reference
        **{
            name: pa.array(scores.get(name, [None] * len(pairs)), pa.float64(), from_pandas=True)
            for name in STUDY_SCORES
        },
        "generated": [p.generated for p in pairs],
        "reference": [p.reference or None for p in pairs],
        "generated_labels": _names(statistics.labels[0]),
        "reference_labels": _names(statistics.labels[1]),
        "finish_reason": [p.finish_reason for p in pairs],
        "error": [p.error for p in pairs],
    }
    return pa.table(columns, schema=PER_STUDY_SCHEMA)


def _names(labels: np.ndarray) -> list[list[str]]:
    return [
        [name for name, there in zip(CHEXPERT, row, strict=True) if there]
        for row in (labels if labels is not None else [])
    ]
