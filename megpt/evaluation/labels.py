"""The labels of many reports as arrays of small codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megpt.evaluation.clinical import labeler
from megpt.study import CHEXPERT

NOT_MENTIONED = 2


@dataclass(frozen=True)
class Labels:
    """M reports: `codes` (M, 14) int8; `sides` (M, 14) int8, 0 where none is said, if the labeller tells them."""

    codes: np.ndarray
    sides: np.ndarray | None = None

    def __getitem__(self, rows: np.ndarray | slice) -> Labels:
        return Labels(self.codes[rows], None if self.sides is None else self.sides[rows])


def label_codes(reports: Sequence[str]) -> np.ndarray:
    """(N, 14) int8 for N reports: 1 present, 0 absent, -1 uncertain, NOT_MENTIONED; one labeller per process."""
    label = labeler().label
    rows = [[found.get(name, NOT_MENTIONED) for name in CHEXPERT] for found in map(label, reports)]
    return np.array(rows, dtype=np.int8).reshape(-1, len(CHEXPERT))


def label_texts(reports: Sequence[str]) -> Labels:
    """Labels of N reports."""
    return Labels(label_codes(reports))


def concatenate(parts: Sequence[Labels]) -> Labels:
    """Labels of all parts, one after another."""
    codes = np.concatenate([part.codes for part in parts])
    sides = [part.sides for part in parts if part.sides is not None]
    return Labels(codes, np.concatenate(sides) if len(sides) == len(parts) else None)
