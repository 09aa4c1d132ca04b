"""metrics.json: scores with their intervals, all baselines, and what they are scores of.

    evaluation = evaluate(pairs, training_reports=[...], cleaner="r2gen-iu", settings=config.evaluate, seed=42)
    evaluation.metrics["scores"]["BLEU_4"]

The work is cut into tasks (functions of plain arguments) that `run` may spread over a cluster; this module runs them
one after another by default and knows nothing of Ray.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from megpt.config import EvaluateConfig
from megpt.errors import InputError
from megpt.evaluation import caveats
from megpt.evaluation.clinical import Findings
from megpt.evaluation.clinical_scores import observation_counts
from megpt.evaluation.coverage import risk_coverage
from megpt.evaluation.intervals import METHOD, Bootstrap, patients
from megpt.evaluation.labeller.quality import labeller_quality
from megpt.evaluation.pairs import Pairs
from megpt.evaluation.scoring import Permuted, Reports, Runner, Scored, Task, run_here, score_sets
from megpt.evaluation.sets import MODEL, all_sets
from megpt.evaluation.statistics import Rows, Statistics
from megpt.evaluation.texts import Cleaning, full_stop_warnings, scored_text, signature
from megpt.study import CHEXPERT

__all__ = ["Evaluation", "Runner", "Task", "evaluate", "run_here", "score_reports"]

PACKAGES = ("megpt", "pycocoevalcap", "rapidfuzz", "numpy", "scipy")
BASELINES = ("constant", "permuted", "nearest")
"""Those that metrics.json always names; null where one is missing, and `notes` says why."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found; `metrics` is metrics.json, the rest feeds the table and the page."""

    metrics: dict[str, Any]
    statistics: Statistics
    """Of the scored pairs."""
    pairs: Pairs
    unscored: Findings
    """What the reports of `pairs.unscored` say."""


def score_reports(
    generated: Sequence[str], references: Sequence[str], *, cleaner: str, meteor: bool = True, clinical: bool = True
) -> dict[str, float]:
    """Scores of N report pairs, for validation while training: name (as in metrics.json) → value.

    What cannot be computed (METEOR without Java) is left out. Blank references are not scored.

    Raises:
        ValueError: lists of different length, or no reference at all.
    """
    cleaning = Cleaning.of(cleaner)
    cleaning.prepare([*generated, *references])
    pairs = [(g, r) for g, r in zip(generated, references, strict=True) if scored_text(r, cleaning, reference=True)]
    if not pairs:
        raise ValueError("no reference report to score against")
    raw, raw_references = ([text or "" for text in side] for side in zip(*pairs, strict=True))
    texts = [scored_text(text, cleaning) for text in raw]
    wanted = [scored_text(text, cleaning, reference=True) for text in raw_references]
    reports = Reports(texts, raw, wanted, raw_references)
    found = score_sets(reports, {MODEL: np.arange(len(pairs))}, meteor=meteor, clinical=clinical, run=run_here)
    return {name: value for name, value in found.sets[MODEL].scores().items() if value is not None}


def evaluate(
    pairs: Pairs,
    *,
    training_reports: Sequence[str] | None,
    cleaner: str | Cleaning,
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
        cleaner: the recipe by its name, or ready to use.
        neighbours: name of a baseline ("nearest", …) → study_id → the report, not cleaned, of the training study whose
            films are closest. A study that is missing there counts as an empty report of that baseline.
        notes: what else a reader of the result must know, such as why there are no neighbours.

    Raises:
        InputError: no reference is left after cleaning; a further score that cannot be computed.
    """
    cleaner = cleaner if isinstance(cleaner, Cleaning) else Cleaning.of(cleaner, training=training_reports)
    cleaner.prepare(text for pair in pairs.pairs for text in (pair.generated, pair.reference))
    pairs, references = _with_reference(pairs, cleaner)
    ids = [pair.study_id for pair in pairs.pairs]
    groups, alone = patients([pair.subject_id for pair in pairs.pairs], ids)
    sets = all_sets(pairs, training_reports, neighbours or {}, groups, cleaner, settings, seed)
    # Those without a reference are in no set; they are labelled with the rest.
    others, first_other = [pair.generated or "" for pair in pairs.unscored], len(sets.raw)
    texts, raw = [*sets.texts, *[""] * len(others)], [*sets.raw, *others]
    reports = Reports(texts, raw, references, [pair.reference for pair in pairs.pairs])
    ask = {"meteor": settings.meteor, "clinical": True, "further": settings.scores}
    scored = score_sets(reports, sets.picks, orders=sets.orders, ids=ids, run=run, **ask)
    assert scored.findings is not None
    found = figures(scored, groups, settings, seed)
    n, count = len(ids), int(groups.max()) + 1
    warnings = caveats.warnings(found["scores"], found["baselines"], found["paired"], failed=pairs.failed, n=n)
    metrics = {
        **head(n, count, alone, cleaner=cleaner, settings=settings, seed=seed),
        **found,
        "risk_coverage": risk_coverage(scored.sets[MODEL].rows(), pairs.pairs, groups, settings, seed),
        "warnings": [*warnings, *full_stop_warnings(sets.texts[:n], references, cleaner)],
        "notes": {**(notes or {}), **sets.notes, **told(scored, [MODEL], n, count, alone, settings)},
        "n_failed": pairs.failed,
        "n_without_reference": pairs.without_reference,
        "model": pairs.models,
        "constant_report": sets.constant,
    }
    return Evaluation(metrics, scored.sets[MODEL], pairs, scored.findings[first_other:])


def told(
    scored: Scored, models: Sequence[str], n: int, count: int, alone: int, settings: EvaluateConfig
) -> dict[str, str]:
    """Notes on what the scores of the sets `models` hold; see `head` for the counts."""
    notes = caveats.of_patients(n, count, alone) | caveats.of_scores(scored.sets[models[0]].scores(), n)
    for name in models:
        of = f" of {name}" if len(models) > 1 else ""
        notes |= {key + of: text for key, text in caveats.of_labels(scored.sets[name]).items()}
    off = {} if settings.meteor else {"METEOR": "switched off (evaluate.meteor)"}
    return notes | scored.notes | off


def head(n: int, count: int, alone: int, *, cleaner: Cleaning, settings: EvaluateConfig, seed: int) -> dict[str, Any]:
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
        "cleaner": str(cleaner),
        "tokenizer": cleaner.tokenizer,
        "signature": signature(cleaner, n),
        "versions": {
            **{name: importlib.metadata.version(name) for name in PACKAGES},
            "meteor": "1.5",
            "python": platform.python_version(),
        },
        "confidence": settings.confidence,
        "bootstrap": settings.bootstrap,
        "seed": seed,
        "labeller": labeller_quality(),
    }


def _with_reference(pairs: Pairs, cleaner: Cleaning) -> tuple[Pairs, list[str]]:
    """The pairs whose reference is not blank after cleaning, and these references; the rest is unscored."""
    texts = [scored_text(pair.reference, cleaner, reference=True) for pair in pairs.pairs]
    if not any(texts):
        raise InputError(f"no reference is left after cleaning with {str(cleaner)!r}", next="set another data.cleaner")
    kept = [pair for pair, text in zip(pairs.pairs, texts, strict=True) if text]
    blank = [pair for pair, text in zip(pairs.pairs, texts, strict=True) if not text]
    unscored, without = [*pairs.unscored, *blank], pairs.without_reference + len(blank)
    return replace(pairs, pairs=kept, unscored=unscored, without_reference=without), [text for text in texts if text]


def figures(scored: Scored, groups: np.ndarray, settings: EvaluateConfig, seed: int) -> dict[str, Any]:
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
        "intervals": {name: interval(name) for name in rows[MODEL].names},
        "baselines": baselines,
        "paired": {name: {score: interval(score, name) for score in rows[MODEL].names} for name in others},
        "permuted": _described(permuted),
        "clinical": observations(rows[MODEL], interval, {name: rows[name] for name in others}),
    }


def _described(permuted: Permuted | None) -> dict[str, Any] | None:
    """How many permutations, and their range: score → [lowest, highest]."""
    if permuted is None:
        return None
    return {"permutations": permuted.count, "permutations_meteor": permuted.meteor_count, "range": permuted.range()}


def observations(
    model: Rows, interval: Callable[[str], list[float] | None], others: Mapping[str, Rows] | None = None
) -> dict[str, dict[str, Any]]:
    """Per observation: studies whose reference, generated report, and both name it, with precision, recall and F1."""
    both, extra, missed = observation_counts(model.clinical().astype(int))
    f1 = {name: own.observation_f1(own.matrix.sum(0, keepdims=True)) for name, own in (others or {}).items()}
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
