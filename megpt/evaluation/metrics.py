"""metrics.json: scores with their intervals, all baselines, and what they are scores of.

    evaluation = evaluate(pairs, training_reports=[...], cleaner="r2gen-iu", settings=config.evaluate, seed=42)
    evaluation.metrics["scores"]["BLEU_4"]

The work is cut into tasks (functions of plain arguments) that `run` may spread over a cluster; this module runs them
one after another by default and knows nothing of Ray.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from megpt.config import EvaluateConfig
from megpt.errors import InputError
from megpt.evaluation import caveats
from megpt.evaluation.baselines import MAX_TRAINING_REPORTS, constant_report, derangements, sample
from megpt.evaluation.intervals import METHOD, Bootstrap, patients
from megpt.evaluation.pairs import Pairs
from megpt.evaluation.scoring import Permuted, Reports, Runner, Scored, Task, run_here, score_sets
from megpt.evaluation.statistics import SCORES, Rows, Statistics
from megpt.evaluation.texts import TOKENIZER, scored_text
from megpt.study import CHEXPERT

__all__ = ["Evaluation", "Runner", "Task", "evaluate", "run_here", "score_reports"]

PACKAGES = ("megpt", "pycocoevalcap", "rapidfuzz", "medspacy", "spacy", "numpy", "scipy")
MODEL = "generated"
BASELINES = ("constant", "permuted", "nearest")
"""Those that metrics.json always names; null where one is missing, and `notes` says why."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found; `metrics` is metrics.json, the rest feeds the table, the page and `compare`."""

    metrics: dict[str, Any]
    statistics: Statistics
    pairs: Pairs


@dataclass
class _Sets:
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


def score_reports(
    generated: Sequence[str], references: Sequence[str], *, cleaner: str, meteor: bool = True, clinical: bool = True
) -> dict[str, float]:
    """Scores of N report pairs, for validation while training: name (as in metrics.json) → value.

    What cannot be computed (METEOR without Java) is left out. Blank references are not scored.

    Raises:
        ValueError: lists of different length, or no reference at all.
    """
    pairs = [(g, r) for g, r in zip(generated, references, strict=True) if scored_text(r, cleaner)]
    if not pairs:
        raise ValueError("no reference report to score against")
    raw, raw_references = ([text or "" for text in side] for side in zip(*pairs, strict=True))
    texts, wanted = ([scored_text(text, cleaner) for text in side] for side in (raw, raw_references))
    reports = Reports(texts, raw, wanted, raw_references)
    found = score_sets(reports, {MODEL: np.arange(len(pairs))}, meteor=meteor, clinical=clinical, run=run_here)
    return {name: value for name, value in found.sets[MODEL].scores().items() if value is not None}


def evaluate(
    pairs: Pairs,
    *,
    training_reports: Sequence[str] | None,
    cleaner: str,
    settings: EvaluateConfig,
    seed: int,
    run: Runner = run_here,
    neighbours: Mapping[str, Mapping[str, str]] | None = None,
    notes: Mapping[str, str] | None = None,
) -> Evaluation:
    """Score a set of predictions.

    A study that failed counts as an empty report: leaving it out would reward a model for failing on hard studies.

    Args:
        training_reports: reports of the training split, not cleaned; None where it is not known, which leaves out the
            constant baseline and says so.
        neighbours: name of a baseline ("nearest", …) → study_id → the report, not cleaned, of the training study whose
            films are closest. A study that is missing there counts as an empty report of that baseline.
        notes: what else a reader of the result must know, such as why there are no neighbours.

    Raises:
        InputError: no reference is left after cleaning.
    """
    kept = [(pair, text) for pair in pairs.pairs if (text := scored_text(pair.reference, cleaner))]
    if not kept:
        raise InputError(f"no reference is left after cleaning with {cleaner!r}", next="set another data.cleaner")
    pairs = Pairs([p for p, _ in kept], pairs.without_reference + len(pairs.pairs) - len(kept), pairs.models)
    ids = [pair.study_id for pair in pairs.pairs]
    groups, alone = patients([pair.subject_id for pair in pairs.pairs], ids)
    sets = _sets(pairs, training_reports, neighbours or {}, groups, cleaner, settings, seed)
    reports = Reports(sets.texts, sets.raw, [text for _, text in kept], [pair.reference for pair in pairs.pairs])
    scored = score_sets(
        reports, sets.picks, orders=sets.orders, ids=ids, meteor=settings.meteor, clinical=True, run=run
    )
    found = _metrics(scored, groups, settings, seed)
    n, count = len(ids), int(groups.max()) + 1
    told = {**(notes or {}), **sets.notes, **caveats.of_scores(found["scores"], n, sides=_has_sides(scored))}
    told |= {**caveats.of_patients(n, count, alone), **scored.notes}
    if not settings.meteor:
        told["METEOR"] = "switched off (evaluate.meteor)"
    metrics = {
        **head(n, count, alone, cleaner=cleaner, settings=settings, seed=seed),
        **found,
        "warnings": caveats.warnings(found["scores"], found["baselines"], found["paired"], failed=pairs.failed, n=n),
        "notes": told,
        "n_failed": pairs.failed,
        "n_without_reference": pairs.without_reference,
        "model": pairs.models,
        "constant_report": sets.constant,
    }
    return Evaluation(metrics, scored.sets[MODEL], pairs)


def head(n: int, count: int, alone: int, *, cleaner: str, settings: EvaluateConfig, seed: int) -> dict[str, Any]:
    """What every result says of how it came about.

    Args:
        n: studies.
        count: patients; a study without one counts as one.
        alone: studies whose patient is not known.
    """
    return {
        "n": n,
        "n_patients": None if alone == n else count,
        "unit": "study",
        "interval_unit": "study" if alone == n else "patient",
        "interval_method": METHOD,
        "cleaner": cleaner,
        "tokenizer": TOKENIZER,
        "versions": {
            **{name: importlib.metadata.version(name) for name in PACKAGES},
            "meteor": "1.5",
            "python": platform.python_version(),
        },
        "confidence": settings.confidence,
        "bootstrap": settings.bootstrap,
        "seed": seed,
    }


def _has_sides(scored: Scored) -> bool:
    return scored.sets[MODEL].sides is not None


def _sets(
    pairs: Pairs,
    training_reports: Sequence[str] | None,
    neighbours: Mapping[str, Mapping[str, str]],
    groups: np.ndarray,
    cleaner: str,
    settings: EvaluateConfig,
    seed: int,
) -> _Sets:
    """The model's own reports and those of each baseline; a note for each that is missing."""
    n = len(pairs.pairs)
    raw = [pair.generated or "" for pair in pairs.pairs]
    sets = _Sets([scored_text(text, cleaner) for text in raw], raw, {MODEL: np.arange(n)})
    if not settings.baselines:
        sets.notes["baselines"] = "switched off (evaluate.baselines)"
        return sets
    sets.orders = derangements(n, seed, groups)
    if sets.orders is None:
        sets.notes["permuted"] = (
            "needs two studies" if n < 2 else "one patient has more than half of the studies: nobody to swap with"
        )
    if training_reports is None:
        sets.notes["constant"] = "the training split's reports are not known; set studies=PATH"
    else:
        sets.constant = constant_report(
            [scored_text(text, cleaner) for text in sample(training_reports, MAX_TRAINING_REPORTS, seed)], seed
        )
        if sets.constant is None:
            sets.notes["constant"] = "the training split has no reports"
        else:
            sets.add("constant", [sets.constant], [sets.constant], np.zeros(n, dtype=np.int64))
    for name, by_study in neighbours.items():
        own = [by_study.get(pair.study_id, "") for pair in pairs.pairs]
        sets.add(name, [scored_text(text, cleaner) for text in own], own, np.arange(n))
        if missing := sum(pair.study_id not in by_study for pair in pairs.pairs):
            sets.notes[name] = f"{missing} of {n} studies have no readable film and count as empty reports here"
    return sets


def _metrics(scored: Scored, groups: np.ndarray, settings: EvaluateConfig, seed: int) -> dict[str, Any]:
    """Scores, intervals and baselines."""
    permuted = scored.permuted
    rows = {name: statistics.rows().grouped(groups) for name, statistics in scored.sets.items()}
    if permuted is not None:
        rows["permuted"] = permuted.rows.grouped(groups)
    bootstrap = Bootstrap(rows, resamples=settings.bootstrap, seed=seed) if len(rows[MODEL].matrix) > 1 else None

    def interval(score: str, minus: str | None = None) -> list[float] | None:
        return bootstrap.interval(score, settings.confidence, of=MODEL, minus=minus) if bootstrap else None

    others = [name for name in rows if name != MODEL]
    baselines: dict[str, Any] = dict.fromkeys(BASELINES)
    for name in others:
        baselines[name] = permuted.mean() if permuted and name == "permuted" else rows[name].scores()
    return {
        "scores": rows[MODEL].scores(),
        "intervals": {name: interval(name) for name in SCORES},
        "baselines": baselines,
        "paired": {name: {score: interval(score, name) for score in SCORES} for name in others},
        "permuted": _described(permuted),
        "clinical": _observations(scored.sets[MODEL], rows, interval),
    }


def _described(permuted: Permuted | None) -> dict[str, Any] | None:
    """How many permutations, and their range: score → [lowest, highest]."""
    if permuted is None:
        return None
    return {"permutations": permuted.count, "permutations_meteor": permuted.meteor_count, "range": permuted.range()}


def _observations(model: Statistics, rows: Mapping[str, Rows], interval: Any) -> dict[str, dict[str, Any]]:
    """Per observation: studies whose reference, generated report, and both name it, with precision, recall and F1."""
    both, extra, missed = model.observations()
    f1 = {name: own.observation_f1(own.matrix.sum(0, keepdims=True)) for name, own in rows.items() if name != MODEL}
    found: dict[str, dict[str, Any]] = {}
    for name, b, e, m in zip(CHEXPERT, both.tolist(), extra.tolist(), missed.tolist(), strict=True):
        found[name] = {
            "reference": b + m,
            "generated": b + e,
            "both": b,
            "precision": b / (b + e) if b + e else None,
            "recall": b / (b + m) if b + m else None,
            "f1": 2 * b / (2 * b + e + m) if b + e + m else None,
            "interval": interval(name),
            "baselines": {k: float(v[name][0]) if np.isfinite(v[name][0]) else None for k, v in f1.items()},
        }
    return found
