"""Statistics of several sets of reports against the same references, in tasks that may run anywhere.

A set is an assignment: which of M texts is scored against each of N references. The model's own reports, one constant
report, the nearest training reports and each permutation are such sets, so n-grams are counted once for all of them,
and METEOR and the labeller see each distinct text or pair once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from megpt.errors import InputError
from megpt.evaluation.baselines import MAX_PERMUTED_METEOR_PAIRS
from megpt.evaluation.clinical import Findings, label_findings
from megpt.evaluation.further_scores import further_score
from megpt.evaluation.meteor import MAX_WORDS, RETRY_WORDS, MeteorRows, MeteorUnavailable, meteor_rows
from megpt.evaluation.nlg import TextStatistics, text_statistics
from megpt.evaluation.statistics import Rows, Statistics

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
    """Many permutations: their mean rows, the scores of each (score → (K,)), and how many of them METEOR saw.

    Further scores see the first one only.
    """

    rows: Rows
    scores: dict[str, list[float]]
    count: int
    meteor_count: int

    def mean(self) -> dict[str, float | None]:
        """Score → mean over the permutations."""
        return {name: float(np.mean(self.scores[name])) if self.scores.get(name) else None for name in self.rows.names}

    def range(self) -> dict[str, list[float] | None]:
        """Score → [lowest, highest] of the permutations."""
        found = ((name, self.scores.get(name)) for name in self.rows.names)
        return {name: [min(values), max(values)] if values else None for name, values in found}


@dataclass
class Scored:
    """What `score_sets` found; `notes` says what of METEOR is missing or was cut.

    findings: what each of the M reports says; None where clinical scores were not asked for.
    """

    sets: dict[str, Statistics]
    findings: Findings | None = None
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
    further: Sequence[str] = (),
    run: Runner,
    told: int = 1,
) -> Scored:
    """Score every set.

    Args:
        sets: name → (N,) indices into `reports.texts`.
        orders: (K, N) permutations of the set "generated".
        ids: N study ids, for notes that name one.
        further: names of scores of `further_scores`.
        told: the first sets, whose unusual reports are told; by default the model's own.
    """
    n = len(reports.references)
    orders = np.zeros((0, n), dtype=np.int64) if orders is None else orders
    permuted = sets["generated"][orders] if len(orders) else orders
    picks = np.stack([*sets.values()])
    for_meteor = np.concatenate([picks, permuted[: max(1, MAX_PERMUTED_METEOR_PAIRS // max(n, 1))]])
    for_further = np.concatenate([picks, permuted[:1]])
    jobs: list[tuple[str, Task]] = []
    if meteor:
        jobs += [("meteor", task) for task in _meteor_tasks(reports, for_meteor)]
    pairs, places = _pairs(reports.raw, reports.raw_references, for_further) if further else ([], for_further)
    jobs += [("further", (further_values, (name, *zip(*pairs, strict=True)))) for name in further]
    # Few large tasks, since each counts all n-grams anew; two at least, for two cores.
    every = np.concatenate([picks, permuted])
    size = max(1, min(TEXT_SHARD // max(n, 1), -(-len(every) // 2)))
    for start in range(0, len(every), size):
        jobs += [("texts", (text_statistics, (reports.texts, reports.references, every[start : start + size])))]
    distinct, where = _distinct([*reports.raw, *reports.raw_references] if clinical else [])
    shards = range(0, len(distinct), LABEL_SHARD)
    jobs += [("labels", (label_findings, (distinct[i : i + LABEL_SHARD],))) for i in shards]
    results: dict[str, list[Any]] = {}
    for (name, _), result in zip(jobs, run([task for _, task in jobs]), strict=True):
        results.setdefault(name, []).append(result)

    findings = Findings.joined(results.get("labels", []))[where] if clinical else None
    split = len(reports.raw)
    found = Scored({}, findings[:split] if findings is not None else None)
    values = _named(results.get("further", []), places)
    counted = _gather_meteor(results.get("meteor"), reports, for_meteor, ids, told, found.notes)
    texts = TextStatistics.joined(results["texts"])
    every_set = _Sets(texts, every, findings, split, counted, values)
    found.sets = {name: every_set.statistics(k) for k, name in enumerate(sets)}
    if len(permuted):
        found.permuted = _permuted(every_set, len(picks))
    return found


@dataclass(frozen=True)
class _Sets:
    """All sets, then all permutations; METEOR and the further scores have fewer of the latter."""

    texts: TextStatistics
    picks: np.ndarray
    findings: Findings | None
    split: int
    """`findings` are those of all reports, then, from here on, of the references."""
    meteor: np.ndarray | None
    further: dict[str, np.ndarray]

    def statistics(self, k: int) -> Statistics:
        found = truth = None
        if self.findings is not None:
            found, truth = self.findings[self.picks[k]], self.findings[self.split :]
        counted = None if self.meteor is None or k >= len(self.meteor) else self.meteor[k]
        further = {name: values[k] for name, values in self.further.items() if k < len(values)}
        return Statistics(self.texts.bleu[k], self.texts.rouge[k], self.texts.cider[k], counted, found, truth, further)


def _permuted(sets: _Sets, first: int) -> Permuted:
    """The permutations, whose statistics begin at set `first`."""
    count = len(sets.picks) - first
    mean: np.ndarray | None = None
    widths: dict[str, int] = {}
    scores: dict[str, list[float]] = {}
    for k in range(first, len(sets.picks)):
        whole = sets.statistics(k)
        for name, value in whole.scores().items():
            if value is not None:
                scores.setdefault(name, []).append(value)
        rows = replace(whole, meteor=None, further={}).rows()
        mean, widths = rows.matrix if mean is None else mean + rows.matrix, rows.widths
    assert mean is not None
    rows = Rows(mean / count, widths)
    seen = 0 if sets.meteor is None else len(sets.meteor) - first
    if sets.meteor is not None:
        rows = rows.with_meteor(sets.meteor[first:].mean(0))
    for name, values in sets.further.items():
        rows = rows.with_further(name, values[first])
    return Permuted(rows, scores, count, seen)


def _named(parts: list[dict[str, np.ndarray]], places: np.ndarray) -> dict[str, np.ndarray]:
    """The values of every further score where its pairs are; two scores of one name would hide each other."""
    times = Counter(key for part in parts for key in part)
    if twice := [key for key, count in times.items() if count > 1]:
        raise InputError(f"two scores give values of {twice[0]!r}", next="leave one of them out of evaluate.scores")
    return {key: values[places] for part in parts for key, values in part.items()}


def further_values(name: str, generated: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """The values of a further score for N pairs: name → (N,)."""
    return further_score(name)(generated, references)


ON_GPU = (further_values,)
"""Functions of tasks that a GPU helps."""


def _meteor_tasks(reports: Reports, picks: np.ndarray) -> list[Task]:
    pairs = _pairs(reports.texts, reports.references, picks)[0]
    return [
        (_meteor, tuple(zip(*pairs[i : i + METEOR_SHARD], strict=True))) for i in range(0, len(pairs), METEOR_SHARD)
    ]


def _pairs(texts: list[str], references: list[str], picks: np.ndarray) -> tuple[list[tuple[str, str]], np.ndarray]:
    """The distinct pairs of text and reference, and which of them each place of `picks` has."""
    numbers, others = _distinct(texts)[1], _distinct(references)[1]
    keys = numbers[picks] * (int(others.max(initial=0)) + 1) + others
    where, _ = pd.factorize(keys.ravel())
    _, first = np.unique(where, return_index=True)
    places = np.stack(np.unravel_index(first, picks.shape), axis=1)
    pairs = [(texts[picks[k, i]], references[i]) for k, i in places.tolist()]
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
    where = _pairs(reports.texts, reports.references, picks)[1]
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
