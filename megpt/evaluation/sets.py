"""Which reports are scored: the model's own, and those of each baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from megpt.config import EvaluateConfig
from megpt.evaluation.baselines import MAX_TRAINING_REPORTS, constant_report, derangements, sample
from megpt.evaluation.pairs import Pairs
from megpt.evaluation.texts import Cleaning, scored_text

MODEL = "generated"


@dataclass
class Sets:
    """All texts, raw and as they are scored, and which of them each set takes."""

    texts: list[str]
    raw: list[str]
    picks: dict[str, np.ndarray]
    orders: np.ndarray | None = None
    constant: str | None = None
    notes: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, texts: Sequence[str], raw: Sequence[str], which: np.ndarray) -> None:
        self.picks[name] = len(self.texts) + which
        self.texts += texts
        self.raw += raw


def all_sets(
    pairs: Pairs,
    training_reports: Sequence[str] | None,
    neighbours: Mapping[str, Mapping[str, str]],
    groups: np.ndarray,
    cleaner: Cleaning,
    settings: EvaluateConfig,
    seed: int,
) -> Sets:
    """The model's own reports and those of each baseline; a note for each that is missing."""
    n = len(pairs.pairs)
    raw = [pair.generated or "" for pair in pairs.pairs]
    sets = Sets([scored_text(text, cleaner) for text in raw], raw, {MODEL: np.arange(n)})
    if not settings.baselines:
        sets.notes["baselines"] = "switched off (evaluate.baselines)"
        return sets
    sets.orders = derangements(n, seed, groups)
    if sets.orders is None:
        sets.notes["permuted"] = (
            "needs two studies" if n < 2 else "one patient has more than half of the studies: nobody to swap with"
        )
    if training_reports is None:
        sets.notes["constant"] = "the training split's reports are not known; set training=PATH or studies=PATH"
    else:
        drawn = sample(training_reports, MAX_TRAINING_REPORTS, seed)
        cleaner.prepare(drawn)
        sets.constant = constant_report([scored_text(text, cleaner, reference=True) for text in drawn], seed)
        if sets.constant is None:
            sets.notes["constant"] = "the training split has no reports"
        else:
            sets.add("constant", [sets.constant], [sets.constant], np.zeros(n, dtype=np.int64))
    for name, by_study in neighbours.items():
        own = [by_study.get(pair.study_id, "") for pair in pairs.pairs]
        cleaner.prepare(own)
        sets.add(name, [scored_text(text, cleaner) for text in own], own, np.arange(n))
        if missing := sum(pair.study_id not in by_study for pair in pairs.pairs):
            sets.notes[name] = f"{missing} of {n} studies have no readable film and count as empty reports here"
    return sets
