"""How well the labeller agrees with people: its own score, which travels with every result that rests on it.

    labeller_quality()   → what is stored in quality.json, numbers only
    python -m megpt.evaluation.labeller.quality indiana_reports.csv   measures it anew and prints it

People coded 3,826 reports of IU X-Ray with MeSH terms (Demner-Fushman et al., 2016; `indiana_reports.csv` of the Kaggle
copy). The labeller's words were chosen on reports of even `uid`; what is reported was measured on those of odd `uid`.
"""

from __future__ import annotations

import csv
import datetime
import importlib.resources
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megpt.study import CHEXPERT

STORED = "quality.json"
UNCODED = "No Indexing"
"""What the table says of a report that nobody coded; such reports are left out."""

CODED: dict[str, str] = {
    "Atelectasis": "Pulmonary Atelectasis",
    "Cardiomegaly": "Cardiomegaly",
    "Consolidation": "Consolidation",
    "Edema": "Pulmonary Edema|Pulmonary Congestion",
    "Fracture": "Fractures, Bone",
    "Lung Lesion": "Nodule|Mass",
    "Lung Opacity": "Opacity|Infiltrate|Airspace Disease|Cicatrix",
    "No Finding": "normal",
    "Pleural Effusion": "Pleural Effusion",
    "Pleural Other": "Thickening/pleura.*|Cicatrix/pleura.*",
    "Pneumonia": "Pneumonia",
    "Pneumothorax": "Pneumothorax|Hydropneumothorax",
    "Support Devices": "Catheters, Indwelling|Implanted Medical Device|Tube, Inserted|Medical Device|Stents"
    "|Surgical Instruments",
}
"""Observation → the codes that mean it: a main heading, or one with its qualifiers. There is none for an enlarged
cardiomediastinum, whose codes people used for the heart's shadow."""

_MEASURED = tuple(name for name in CODED if name != "No Finding")
_RESAMPLES, _SEED, _CONFIDENCE, _CHUNK = 2_000, 7, 95, 100


def labeller_quality() -> dict[str, Any]:
    """The stored agreement: micro_f1, interval, n, per_observation, date and what it was measured on."""
    return json.loads(
        importlib.resources.files("megpt.evaluation.labeller").joinpath(STORED).read_text(encoding="utf-8")
    )


def measure(table: Path, *, odd: bool = True) -> dict[str, Any]:
    """The labeller's agreement with the coded reports of odd (or even) uid, with bootstrap intervals over reports.

    The table does not say whose a report is; nearly every report there is another patient's.
    """
    from megpt.evaluation.clinical import label_reports

    rows = [row for row in _rows(table) if int(row["uid"]) % 2 == odd]
    found = label_reports([f"{row['findings']}\n\n{row['impression']}" for row in rows])
    truth = codes([row["MeSH"] for row in rows])
    hits, extra, missed = found & truth, found & ~truth, ~found & truth
    drawn = _resampled(hits, extra, missed)
    columns = [CHEXPERT.index(name) for name in _MEASURED]
    return {
        "micro_f1": _rounded(_f1(*(c[:, columns].sum() for c in (hits, extra, missed)))),
        "interval": _interval(_f1(*(c[:, columns].sum(1) for c in drawn))),
        "n": len(rows),
        "per_observation": {
            name: {
                "coded": int(truth[:, i].sum()),
                "precision": _rounded(hits[:, i].sum() / max(1, found[:, i].sum())),
                "recall": _rounded(hits[:, i].sum() / max(1, truth[:, i].sum())),
                "f1": _rounded(_f1(*(c[:, i].sum() for c in (hits, extra, missed)))),
                "interval": _interval(_f1(*(c[:, i] for c in drawn))),
            }
            for name in CODED
            for i in [CHEXPERT.index(name)]
        },
        "measured_on": f"IU X-Ray, reports of {'odd' if odd else 'even'} uid with MeSH codes, findings and impression; "
        f"micro over {len(_MEASURED)} observations, without No Finding and Enlarged Cardiomediastinum",
    }


def codes(mesh: Sequence[str]) -> np.ndarray:
    """(N, 14) bool: the observations that the codes of N reports ("Nodule/lung/left;Opacity") mean."""
    patterns = {name: re.compile(rf"(?:{terms})(?:/.*)?") for name, terms in CODED.items()}
    truth = np.zeros((len(mesh), len(CHEXPERT)), dtype=bool)
    for row, terms in enumerate(mesh):
        for name, pattern in patterns.items():
            truth[row, CHEXPERT.index(name)] = any(pattern.fullmatch(term.strip()) for term in terms.split(";"))
    return truth


def _rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="", encoding="utf-8") as file:
        return [r for r in csv.DictReader(file) if r["findings"] + r["impression"] and r["Problems"] != UNCODED]


def _resampled(*counts: np.ndarray) -> tuple[np.ndarray, ...]:
    """Each (N, 14) summed over resamples of the rows: (B, 14)."""
    n = len(counts[0])
    rng = np.random.default_rng(_SEED)
    parts: list[list[np.ndarray]] = [[] for _ in counts]
    for _ in range(_RESAMPLES // _CHUNK):
        weights = rng.multinomial(n, np.full(n, 1 / n), size=_CHUNK).astype(np.float64)
        for part, column in zip(parts, counts, strict=True):
            part.append(weights @ column)
    return tuple(np.concatenate(part) for part in parts)


def _f1(hits: np.ndarray, extra: np.ndarray, missed: np.ndarray) -> np.ndarray:
    return 2 * hits / np.maximum(2 * hits + extra + missed, 1)


def _interval(drawn: np.ndarray) -> list[float]:
    tail = (100 - _CONFIDENCE) / 2
    return [_rounded(v) for v in np.percentile(drawn, [tail, 100 - tail])]


def _rounded(value: Any) -> float:
    return round(float(value), 4)


def main() -> None:
    """Print quality.json as it would be measured today."""
    print(json.dumps(measure(Path(sys.argv[1])) | {"date": datetime.date.today().isoformat()}, indent=2))


if __name__ == "__main__":
    main()
