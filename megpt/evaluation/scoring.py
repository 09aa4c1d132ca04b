"""Statistics of several sets of reports against the same references, in tasks that may run anywhere.

A set is an assignment: which of M texts is scored against each of N references. The model's own reports, one constant
report, the nearest training reports and each permutation are such sets, so n-grams are counted once for all of them,
and METEOR and the labeller see each distinct text or pair once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from megpt.evaluation.baselines import MAX_PERMUTED_METEOR_PAIRS
from megpt.evaluation.labels import Labels, concatenate, label_texts
from megpt.evaluation.meteor import COLUMNS as METEOR_COLUMNS
from megpt.evaluation.meteor import MAX_WORDS, RETRY_WORDS, MeteorRows, MeteorUnavailable, meteor_rows
from megpt.evaluation.nlg import TextStatistics, text_statistics
from megpt.evaluation.statistics import SCORES, Rows, Statistics, side_counts

Task = tuple[Callable[..., Any], tuple[Any, ...]]
Runner = Callable[[Sequence[Task]], Iterable[Any]]
"""Takes tasks, gives their results in the same order."""

LABEL_SHARD, METEOR_SHARD, TEXT_SHARD = 2_000, 10_000, 600_000
"""Reports or pairs in one task; METEOR's Java program alone takes ten seconds to start."""
_NAMED = 5


def run_here(tasks: Sequence[Task]) -> list[Any]:
    """Run tasks one after another in this process."""
    return [function(*arguments) for function, arguments in tasks]


@dataclass(frozen=True)
class Reports:
    """Texts to score, and what they are scored against. All texts twice: as they are scored, and raw for the labeller.

    `texts` and `raw` (M) hold every report of every set; `references` and `raw_references` (N).
    """

    texts: list[str]
    raw: list[str]
    references: list[str]
    raw_references: list[str]


@dataclass(frozen=True)
class Permuted:
    """Many permutations: their mean rows, the scores of each (score → (K,)), and how many of them METEOR saw."""

    rows: Rows
    scores: dict[str, list[float]]
    count: int
    meteor_count: int

    def mean(self) -> dict[str, float | None]:
        """Score → mean over the permutations."""
        return {name: float(np.mean(self.scores[name])) if self.scores.get(name) else None for name in SCORES}

    def range(self) -> dict[str, list[float] | None]:
        """Score → [lowest, highest] of the permutations."""
        found = ((name, self.scores.get(name)) for name in SCORES)
        return {name: [min(values), max(values)] if values else None for name, values in found}


@dataclass
class Scored:
    """What `score_sets` found; `notes` says what of METEOR is missing or was cut."""

    sets: dict[str, Statistics]
    permuted: Permuted | None = None
    notes: dict[str, str] = field(default_factory=dict)


def score_sets(
    reports: Reports,
    sets: dict[str, np.ndarray],
    *,
    orders: np.ndarray | None = None,
    ids: Sequence[str] = (),
    meteor: bool,
    clinical: bool,
    run: Runner,
    told: int = 1,
) -> Scored:
    """Score every set.

    Args:
        sets: name → (N,) indices into `reports.texts`.
        orders: (K, N) permutations of the set "generated".
        ids: N study ids, for notes that name one.
        told: the first sets, whose unusual reports are told; by default the model's own.
    """
    n = len(reports.references)
    orders = np.zeros((0, n), dtype=np.int64) if orders is None else orders
    permuted = sets["generated"][orders] if len(orders) else orders
    picks = np.stack([*sets.values()])
    seen_by_meteor = permuted[: max(1, MAX_PERMUTED_METEOR_PAIRS // max(n, 1))]
    jobs: list[tuple[str, Task]] = []
    if meteor:
        every = np.concatenate([picks, seen_by_meteor])
        jobs += [("meteor", task) for task in _meteor_tasks(reports, every)]
    # Few large tasks, since each counts all n-grams anew; two at least, for two cores.
    every = np.concatenate([picks, permuted])
    size = max(1, min(TEXT_SHARD // max(n, 1), -(-len(every) // 2)))
    for start in range(0, len(every), size):
        jobs += [("texts", (text_statistics, (reports.texts, reports.references, every[start : start + size])))]
    distinct, where = _distinct([*reports.raw, *reports.raw_references] if clinical else [])
    jobs += [("labels", (label_texts, (distinct[i : i + LABEL_SHARD],))) for i in range(0, len(distinct), LABEL_SHARD)]
    results: dict[str, list[Any]] = {}
    for (name, _), result in zip(jobs, run([task for _, task in jobs]), strict=True):
        results.setdefault(name, []).append(result)

    found = Scored({})
    counted = _gather_meteor(results.get("meteor"), reports, picks, seen_by_meteor, ids, told, found.notes)
    labels = concatenate(results["labels"])[where] if clinical else None
    texts = TextStatistics.joined(results["texts"])
    for k, (name, pick) in enumerate(sets.items()):
        own = None if counted is None else counted[k]
        found.sets[name] = _statistics(texts, k, pick, own, labels, len(reports.raw))
    if len(permuted):
        means = None if counted is None else counted[len(picks) :]
        found.permuted = _permuted(texts, len(picks), permuted, means, labels, len(reports.raw))
    return found


def _statistics(
    texts: TextStatistics, k: int, pick: np.ndarray, meteor: np.ndarray | None, labels: Labels | None, split: int
) -> Statistics:
    """Set k; `labels` are those of all reports, then, from `split` on, of the references."""
    found, truth, sides = None, None, None
    if labels is not None:
        ours, theirs = labels[pick], labels[split:]
        found, truth = ours.codes, theirs.codes
        if ours.sides is not None and theirs.sides is not None:
            sides = side_counts(found, truth, ours.sides, theirs.sides)
    return Statistics(texts.bleu[k], texts.rouge[k], texts.cider[k], meteor, found, truth, sides)


def _permuted(
    texts: TextStatistics,
    first: int,
    picks: np.ndarray,
    meteor: np.ndarray | None,
    labels: Labels | None,
    split: int,
) -> Permuted:
    """The permutations `picks` (K, N), whose statistics are the sets `first` … of `texts`."""
    mean: np.ndarray | None = None
    widths: dict[str, int] = {}
    scores: dict[str, list[float]] = {}
    for number, pick in enumerate(picks):
        rows = _statistics(texts, first + number, pick, None, labels, split).rows()
        mean = rows.matrix if mean is None else mean + rows.matrix
        widths = rows.widths
        if meteor is not None and number < len(meteor):
            rows = _with_meteor(rows, meteor[number])
        for name, value in rows.scores().items():
            if value is not None:
                scores.setdefault(name, []).append(value)
    assert mean is not None
    rows = Rows(mean / len(picks), widths)
    if meteor is not None:
        rows = _with_meteor(rows, meteor.mean(0))
    return Permuted(rows, scores, len(picks), 0 if meteor is None else len(meteor))


def _with_meteor(rows: Rows, meteor: np.ndarray) -> Rows:
    return Rows(np.hstack([rows.matrix, meteor]), {**rows.widths, "meteor": METEOR_COLUMNS})


def _meteor_tasks(reports: Reports, picks: np.ndarray) -> list[Task]:
    pairs = _meteor_pairs(reports, picks)[0]
    return [
        (_meteor, tuple(zip(*pairs[i : i + METEOR_SHARD], strict=True))) for i in range(0, len(pairs), METEOR_SHARD)
    ]


def _meteor_pairs(reports: Reports, picks: np.ndarray) -> tuple[list[tuple[str, str]], np.ndarray]:
    """The distinct pairs of text and reference, and which of them each place of `picks` has."""
    texts = _distinct(reports.texts)[1]
    references = _distinct(reports.references)[1]
    keys = texts[picks] * (int(references.max(initial=0)) + 1) + references
    where, _ = pd.factorize(keys.ravel())
    _, first = np.unique(where, return_index=True)
    places = np.stack(np.unravel_index(first, picks.shape), axis=1)
    pairs = [(reports.texts[picks[k, i]], reports.references[i]) for k, i in places.tolist()]
    return pairs, where.reshape(picks.shape)


def _meteor(texts: Sequence[str], references: Sequence[str]) -> MeteorRows | str:
    """METEOR's statistics, or why there are none: a missing Java must not end an evaluation."""
    try:
        return meteor_rows(texts, references)
    except MeteorUnavailable as error:
        return str(error)


def _gather_meteor(
    parts: list[Any] | None,
    reports: Reports,
    picks: np.ndarray,
    permuted: np.ndarray,
    ids: Sequence[str],
    sets_told: int,
    notes: dict[str, str],
) -> np.ndarray | None:
    """(sets + permutations, N, 23); None with a note where METEOR could not be computed."""
    if parts is None:
        return None
    if reason := next((part for part in parts if isinstance(part, str)), None):
        notes["METEOR"] = reason
        return None
    where = _meteor_pairs(reports, np.concatenate([picks, permuted]))[1]
    starts = np.cumsum([0, *(len(part.statistics) for part in parts)])
    told = []
    for kind, text in (
        ("cut", f"longer than {MAX_WORDS} words: scored by the first {MAX_WORDS}"),
        ("capped", f"Java gave no answer: scored by the first {RETRY_WORDS} words"),
        ("failed", "Java gave no answer: scored 0"),
    ):
        rows = np.concatenate(
            [start + np.array(getattr(p, kind), int) for p, start in zip(parts, starts, strict=False)]
        )
        # A permutation or a baseline meets the same texts again.
        hit = np.flatnonzero(np.isin(where[:sets_told], rows).any(0))
        if len(hit):
            names = [str(ids[i]) for i in hit[:_NAMED].tolist()] if ids else []
            more = f" and {len(hit) - _NAMED} more" if len(hit) > _NAMED else ""
            told.append(f"{len(hit)} of {picks.shape[1]} studies ({', '.join(names)}{more}) {text}")
    if told:
        notes["METEOR"] = "; ".join(told)
    return np.concatenate([part.statistics for part in parts])[where]


def _distinct(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    if not texts:
        return [], np.zeros(0, dtype=np.int64)
    where, distinct = pd.factorize(np.array(texts, dtype=object))
    return list(distinct), np.asarray(where, dtype=np.int64)
