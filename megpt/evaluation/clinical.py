"""The 14 CheXpert observations in a report's text: present, absent, uncertain or not mentioned; side and size.

    Labeler().label("Small left pleural effusion. No pneumothorax.")
    → {"Pleural Effusion": 1, "Pneumothorax": 0}
    label_findings(reports).labels → (N, 14) int8
    mentions("No effusion.") → [Mention("Pleural Effusion", ABSENT, side="", size="", start=3, end=11)]

Findings come from a dictionary, what denies or doubts them from ConText (Harkema et al., 2009) with rules for
radiology, and mentions become labels as in the CheXpert labeller (Irvin et al., 2019): present over uncertain over
absent, and "No Finding" where nothing but a support device is present or uncertain. Sentences that come again are
looked up. Report text is never logged.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from megpt.evaluation.labeller import reading
from megpt.evaluation.labeller.language import is_foreign
from megpt.evaluation.labeller.reading import ABSENT, PRESENT, UNCERTAIN, Reading
from megpt.evaluation.labeller.sentences import LONGEST_REPORT, lowered, sentences
from megpt.evaluation.labeller.sides import BOTH, LARGE, LEFT, MODERATE, RIGHT, SMALL, TRACE
from megpt.evaluation.texts import is_blank
from megpt.study import CHEXPERT

__all__ = ["ABSENT", "MISSING", "PRESENT", "UNCERTAIN", "Findings", "Labeler", "Mention"]

NO_FINDING, DEVICES = "No Finding", "Support Devices"
MISSING = -2
"""Not mentioned, in an array of labels."""

SIDES = {0: "", LEFT: "left", RIGHT: "right", BOTH: "both"}
SIZES = {0: "", TRACE: "trace", SMALL: "small", MODERATE: "moderate", LARGE: "large"}
"""What the numbers in `Findings` stand for; "" where the report does not say."""

_COLUMN = {name: column for column, name in enumerate(CHEXPERT)}
_CACHE = 200_000


class Mention(NamedTuple):
    """A place in a report that speaks of an observation: characters [start, end) of the text as it was given.

    `status` is PRESENT, ABSENT or UNCERTAIN, or None for what is not said of this film: history, family, what a further
    examination is to exclude. `side` is one of `SIDES`, `size` one of `SIZES` (effusion and pneumothorax alone).
    """

    observation: str
    status: int | None
    side: str
    size: str
    start: int
    end: int


@dataclass(frozen=True)
class Findings:
    """What N reports say, columns in the order of `megpt.study.CHEXPERT`."""

    labels: np.ndarray
    """(N, 14) int8: PRESENT, ABSENT, UNCERTAIN or MISSING."""
    sides: np.ndarray
    """(N, 14) int8, a key of `SIDES`: of the mentions that made the label; 0 for what is absent."""
    sizes: np.ndarray
    """(N, 14) int8, a key of `SIZES`: the largest that is said of what is present or uncertain."""
    unread: np.ndarray
    """(N,) int32: characters beyond `LONGEST_REPORT`, which were not read."""
    foreign: np.ndarray
    """(N,) bool: reports in another language than English, which have no label."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | np.ndarray) -> Findings:
        """The reports at `rows`, a slice or an array of indices or of flags."""
        columns = (self.labels, self.sides, self.sizes, self.unread, self.foreign)
        return Findings(*(column[rows] for column in columns))

    @classmethod
    def joined(cls, parts: Sequence[Findings]) -> Findings:
        """The reports of all parts, one after another; of no part, none."""
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts or [label_findings([])]]) for name in names))

    @property
    def positives(self) -> np.ndarray:
        """(N, 14) bool: present."""
        return self.labels == PRESENT


class Labeler:
    """A rule-based labeller; keeps the sentences that it has read."""

    def __init__(self) -> None:
        self._read = functools.lru_cache(maxsize=_CACHE)(reading.read)

    def label(self, report: str) -> dict[str, int]:
        """Labels of one report: observation → 1, 0 or -1; an unmentioned one is missing.

        A blank report is not a normal one: it has no label, not even "No Finding". Nor has one in another language, or
        one that neither names a finding nor says that something is normal.
        """
        return {name: label for name, (label, _, _) in self._report(report).items()}

    def positives(self, reports: Iterable[str]) -> np.ndarray:
        """(N, 14) bool: the observations labelled present, in the order of `megpt.study.CHEXPERT`."""
        return self.findings(reports).positives

    def findings(self, reports: Iterable[str]) -> Findings:
        """Labels, sides and sizes of N reports."""
        reports = list(reports)
        cells = np.zeros((3, len(reports), len(CHEXPERT)), dtype=np.int8)
        cells[0] = MISSING
        foreign = np.zeros(len(reports), dtype=bool)
        for row, report in enumerate(reports):
            foreign[row] = _is_foreign(report)
            for name, values in self._report(report).items():
                cells[:, row, _COLUMN[name]] = values
        unread = np.array([max(0, len(report) - LONGEST_REPORT) for report in reports], dtype=np.int32)
        return Findings(cells[0], cells[1], cells[2], unread, foreign)

    def mentions(self, report: str) -> list[Mention]:
        """Every place of a report that speaks of one of the 13 observations, in the order of the text."""
        found, _ = self._readings(report)
        told = [
            Mention(r.observation, r.status, SIDES[r.side], SIZES[r.size], r.start, r.end)
            for r in found
            if r.observation in _COLUMN
        ]
        return sorted(told, key=lambda m: (m.start, m.end, m.observation))

    def _report(self, report: str) -> dict[str, tuple[int, int, int]]:
        """Observation → (label, side, size)."""
        found, understood = self._readings(report)
        by_name: dict[str, list[Reading]] = {}
        for one in found:
            if one.status is not None:
                by_name.setdefault(one.observation, []).append(one)
        cells = {name: _combined(readings) for name, readings in by_name.items()}
        abnormal = {name for name, (label, _, _) in cells.items() if label != ABSENT}
        labels = {name: cell for name, cell in cells.items() if name in _COLUMN}
        if understood and not abnormal - {DEVICES}:
            labels[NO_FINDING] = (PRESENT, 0, 0)
        return labels

    def _readings(self, report: str) -> tuple[list[Reading], bool]:
        """What the sentences say, characters counted in the report; whether any of them was understood."""
        if is_blank(report) or _is_foreign(report):
            return [], False
        found: list[Reading] = []
        understood = False
        for offset, sentence in sentences(lowered(report[:LONGEST_REPORT])):
            told, known = self._read(sentence)
            understood = understood or known
            found += [one._replace(start=one.start + offset, end=one.end + offset) for one in told]
        return found, understood


def label_reports(reports: Sequence[str]) -> np.ndarray:
    """(N, 14) bool for N reports, with one labeller per process."""
    return labeler().positives(reports)


def label_findings(reports: Sequence[str]) -> Findings:
    """Labels, sides and sizes of N reports, with one labeller per process."""
    return labeler().findings(reports)


def mentions(report: str) -> list[Mention]:
    """Where a report speaks of which observation, with one labeller per process; `words.OTHER` is left out."""
    return labeler().mentions(report)


@functools.cache
def labeler() -> Labeler:
    """The labeller of this process."""
    return Labeler()


def _combined(readings: Sequence[Reading]) -> tuple[int, int, int]:
    """Present over uncertain over absent; the side and the largest size of those that made the label."""
    values = {one.status for one in readings}
    label = PRESENT if PRESENT in values else UNCERTAIN if UNCERTAIN in values else ABSENT
    if label == ABSENT:
        return label, 0, 0
    made = [one for one in readings if one.status == label]
    return label, functools.reduce(lambda side, one: side | one.side, made, 0), max(one.size for one in made)


@functools.lru_cache(maxsize=1)  # asked twice of each report
def _is_foreign(report: str) -> bool:
    return is_foreign(report[:LONGEST_REPORT].lower())
