"""Arrays and mentions of the clinical labeller.

- labels, sides and sizes of N reports; present over uncertain over absent, sides of several mentions joined
- mentions lie where they are said, in the text as it was given
- any text at all gives an answer, in time that grows with its length; what was not read is counted
- another language has no label; a text that is no report is not a normal one
"""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megpt.evaluation.clinical import (
    MISSING,
    PRESENT,
    SIDES,
    SIZES,
    Labeler,
    Mention,
    label_findings,
    labeler,
    mentions,
)
from megpt.evaluation.labeller.sentences import LONGEST_REPORT
from megpt.study import CHEXPERT

EFFUSION = CHEXPERT.index("Pleural Effusion")
WORDS = [
    "no",
    "small",
    "left",
    "right",
    "effusion",
    ",",
    "and",
    "or",
    "pneumothorax",
    "may",
    "represent",
    "atelectasis",
    "the",
    "heart",
    "is",
    "enlarged",
    "with",
    "not",
    "seen",
    "resolved",
    "possible",
    "versus",
    "nodule",
    "xxxx",
    "(",
    ")",
    ":",
    "unchanged",
    "removed",
    "tube",
    ".",
    "\n",
    "pneumothroax",
    "history",
    "of",
]


def test_arrays() -> None:
    found = label_findings(
        ["Small left effusion. Large right effusion.", "No effusion.", "Possible left effusion.", ""]
    )
    assert found.labels.shape == found.sides.shape == found.sizes.shape == (4, 14) and found.labels.dtype == np.int8
    assert found.labels[:, EFFUSION].tolist() == [1, 0, -1, MISSING]
    assert [SIDES[v] for v in found.sides[:, EFFUSION].tolist()] == ["both", "", "left", ""]
    assert [SIZES[v] for v in found.sizes[:, EFFUSION].tolist()] == ["large", "", "", ""]
    assert (found.labels[3] == MISSING).all() and not found.foreign.any() and not found.unread.any()
    assert len(label_findings([])) == 0


def test_rows_of_findings_are_findings() -> None:
    found = label_findings(["Left effusion.", "No effusion.", "Cardiomegaly."])
    assert found[np.array([2, 0])].labels.tolist() == found.labels[[2, 0]].tolist()
    assert len(found[:1]) == 1 and found[:1].sides.tolist() == found.sides[:1].tolist()


def test_the_side_is_that_of_the_label() -> None:
    found = label_findings(["Left effusion. Possible right effusion. No left pneumothorax."])
    assert SIDES[int(found.sides[0, EFFUSION])] == "left"
    assert found.sides[0, CHEXPERT.index("Pneumothorax")] == 0


def test_mentions_lie_where_they_are_said() -> None:
    report = "İmpression:  Small LEFT\n effusion.\n\nNo pneumo-thorax; heart size is normal. History of pneumonia."
    told = mentions(report)
    assert [(m.observation, m.status, m.side, m.size, report[m.start : m.end]) for m in told] == [
        ("Pleural Effusion", 1, "left", "small", "effusion"),
        ("Pneumothorax", 0, "", "", "pneumo-thorax"),
        ("Cardiomegaly", 0, "", "", "heart size is normal"),
        ("Pneumonia", None, "", "", "pneumonia"),
    ]
    assert isinstance(told[0], Mention)


@given(st.lists(st.sampled_from(WORDS), max_size=60).map(" ".join) | st.text(max_size=300))
def test_any_text_has_an_answer(report: str) -> None:
    labels = labeler().label(report)
    assert set(labels) <= set(CHEXPERT) and set(labels.values()) <= {1, 0, -1}
    told = mentions(report)
    assert all(0 <= m.start < m.end <= len(report) for m in told)
    assert {m.observation for m in told if m.status is not None} == set(labels) - {"No Finding"}
    assert {m.observation for m in told if m.status == PRESENT} == {n for n, v in labels.items() if v == 1} - {
        "No Finding"
    }


@pytest.mark.parametrize(
    "report",
    [
        " ".join(random.Random(1).choices([w for w in WORDS if w not in ".\n"], k=12_000)),
        "effusion " * 4_000,
        "no effusion , and " * 4_000,
        "pneumothorxa is not " * 4_000,
        "may represent " * 6_000 + "pneumonia",
        "history:\n" * 12_000,
        "a" * 100_000,
    ],
    ids=["12,000 words", "a word 4,000 times", "denials", "misspelt", "doubts", "headings", "one long word"],
)
def test_a_long_or_looping_report_stalls_nothing(report: str) -> None:
    started = time.process_time()
    Labeler().label(report)
    assert time.process_time() - started < 1


def test_what_is_not_read_is_counted() -> None:
    report = "Effusion. " + "The lungs are clear. " * 6_000 + "Pneumothorax."
    found = label_findings([report, "Effusion."])
    assert found.unread.tolist() == [len(report) - LONGEST_REPORT, 0]
    assert labeler().label(report) == {"Pleural Effusion": 1}


@pytest.mark.parametrize("report", ["asdf qwer", "the the the the the", "Dear colleague, thank you.", "12345"])
def test_what_is_no_report_is_not_a_normal_one(report: str) -> None:
    assert labeler().label(report) == {}


def test_another_language_is_said_to_be_one() -> None:
    reports = [
        "Kein Pneumothorax, keine Fraktur.",
        "No pneumothorax.",
        "Pas de pneumothorax.",
        "Sin neumotórax ni derrame.",
    ]
    assert label_findings(reports).foreign.tolist() == [True, False, True, True]
    assert not label_findings(reports).positives[[0, 2, 3]].any()
