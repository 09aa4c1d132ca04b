"""What a reader must know before quoting a score, in words: `warnings` and `notes` of metrics.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megpt.evaluation.labeller.sentences import LONGEST_REPORT
from megpt.evaluation.statistics import Statistics

FEW_PATIENTS = 30
ROUNDING = 1e-9
"""A lead no larger than this is none: the mean of many equal scores is not quite one of them."""
CIDER_BIASED = 1_000
"""Studies below which CIDEr's bias is told."""
MUST_HAVE = ("constant", "permuted")
"""Baselines whose absence is a warning; the nearest report also needs films and a checkpoint."""
TITLES = {
    "constant": "constant baseline",
    "permuted": "permuted baseline",
    "nearest": "nearest-neighbour baseline",
    "nearest_untrained": "nearest-neighbour baseline of an untrained encoder",
}


def warnings(
    scores: Mapping[str, float | None],
    baselines: Mapping[str, Mapping[str, float | None] | None],
    paired: Mapping[str, Mapping[str, Any]],
    *,
    failed: int,
    n: int,
) -> list[str]:
    """Baselines that are missing, that the model does not beat, or that it beats by no more than chance."""
    result = []
    for baseline, values in baselines.items():
        title = TITLES.get(baseline, f"{baseline} baseline")
        if values is None:
            if baseline in MUST_HAVE:
                result.append(f"the {title} is missing: whether the model looks at the films is not shown")
            continue
        leads = {
            name: ours - theirs
            for name in scores
            if (ours := scores[name]) is not None and (theirs := values.get(name)) is not None
        }
        behind = [name for name, lead in leads.items() if lead <= ROUNDING]
        if behind:
            result.append(f"the model does not beat the {title} on {', '.join(behind)}")
        intervals = paired.get(baseline, {})
        unsure = [s for s in leads if s not in behind and (span := intervals.get(s)) and span[0] <= 0]
        if unsure:
            result.append(f"the model's lead over the {title} may be chance on {', '.join(unsure)}")
    if failed:
        result.append(f"{failed} of {n} studies have no generated report and count as empty ones")
    return result


def of_patients(n: int, count: int, alone: int) -> dict[str, str]:
    """Notes on what the intervals are over.

    Args:
        n: studies.
        count: patients; a study without one counts as one.
        alone: studies whose patient is not known.
    """
    if alone == n:
        text = "over studies, since subject_id is not known: too narrow where a patient has several studies"
        text += " (by 1.35 to 2.26 times on MIMIC-CXR's test split)"
    elif alone:
        text = f"{alone} of {n} studies have no subject_id; each counts as a patient of its own"
    else:
        text = ""
    unit = "study" if alone == n else "patient"
    if count < 2:
        text = "; ".join(filter(None, [text, f"there is one {unit} only: no interval can be computed"]))
    elif count < FEW_PATIENTS:
        many = "studies" if unit == "study" else "patients"
        text = "; ".join(filter(None, [text, f"{count} {many} are few: they hold less than they promise"]))
    return {"intervals": text} if text else {}


def of_scores(scores: Mapping[str, float | None], n: int) -> dict[str, str]:
    """Notes on scores that a small set distorts, or that are not defined."""
    notes = {}
    if n < CIDER_BIASED and scores.get("CIDEr") is not None:
        notes["CIDEr"] = (
            f"a set of {n} studies scores too high, because its own references weigh the words: on IU X-Ray by .051 at "
            "50 studies, .021 at 200 and .011 at 590, on a score of .211. No interval covers this; compare CIDEr on "
            "the same studies only"
        )
    if "clinical_side_accuracy" in scores and scores["clinical_side_accuracy"] is None:
        notes["clinical_side_accuracy"] = "no finding that both reports call present has a side in the reference"
    return notes


def of_labels(statistics: Statistics) -> dict[str, str]:
    """A note on reports that the labeller did not read, or not to their end."""
    told = []
    for name, findings in (("generated reports", statistics.found), ("references", statistics.truth)):
        if findings is None:
            continue
        if foreign := int(findings.foreign.sum()):
            told.append(f"{foreign} {name} are in another language than English and have no labels")
        if cut := int((findings.unread > 0).sum()):
            told.append(f"{cut} {name} are read up to {LONGEST_REPORT:,} characters")
    return {"clinical": "; ".join(told)} if told else {}
