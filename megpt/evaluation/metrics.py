"""metrics.json: scores with their intervals, both baselines, and what they are scores of.

    evaluation = evaluate(pairs, training_reports=[...], cleaner="r2gen-iu", settings=config.evaluate, seed=42)
    evaluation.metrics["scores"]["BLEU_4"]

The work is cut into tasks (functions of plain arguments) that `run` may spread over a cluster; this module runs them
one after another by default and knows nothing of Ray.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from megpt.config import EvaluateConfig
from megpt.errors import InputError
from megpt.evaluation import nlg
from megpt.evaluation.baselines import constant_report, derangement
from megpt.evaluation.clinical import label_reports
from megpt.evaluation.meteor import MeteorUnavailable, meteor_statistics
from megpt.evaluation.pairs import Pairs
from megpt.evaluation.statistics import SCORES, Statistics
from megpt.evaluation.texts import Cleaning, full_stop_warnings, scored_text, signature
from megpt.study import CHEXPERT

Task = tuple[Callable[..., Any], tuple[Any, ...]]
Runner = Callable[[Sequence[Task]], Iterable[Any]]
"""Takes tasks, gives their results in the same order."""

SHARD, METEOR_SHARD = 2_000, 10_000
"""Pairs in one task; METEOR's Java program alone takes ten seconds to start."""

PACKAGES = ("megpt", "pycocoevalcap", "numpy")


def run_here(tasks: Sequence[Task]) -> list[Any]:
    """Run tasks one after another in this process."""
    return [function(*arguments) for function, arguments in tasks]


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found; `metrics` is metrics.json, the rest feeds the table and the page."""

    metrics: dict[str, Any]
    statistics: Statistics
    pairs: Pairs


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
    texts = [scored_text(text, cleaning) for text, _ in pairs]
    wanted = [scored_text(text, cleaning, reference=True) for _, text in pairs]
    reports = [text or "" for side in zip(*pairs, strict=True) for text in side] if clinical else []
    columns, labels, _ = _compute({"generated": texts}, wanted, reports, meteor=meteor, run=run_here)
    found, truth = labels.reshape(2, -1, len(CHEXPERT)) if clinical else (None, None)
    statistics = Statistics(**columns["generated"], found=found, truth=truth)
    return {name: value for name, value in statistics.scores().items() if value is not None}


def evaluate(
    pairs: Pairs,
    *,
    training_reports: Sequence[str] | None,
    cleaner: str | Cleaning,
    settings: EvaluateConfig,
    seed: int,
    run: Runner = run_here,
) -> Evaluation:
    """Score a set of predictions.

    A study that failed counts as an empty report: leaving it out would reward a model for failing on hard studies.

    Args:
        training_reports: reports of the training split, not cleaned; None where it is not known, which leaves out the
            constant baseline and says so.
        cleaner: the recipe by its name, or ready to use.

    Raises:
        InputError: no reference is left after cleaning.
    """
    cleaner = cleaner if isinstance(cleaner, Cleaning) else Cleaning.of(cleaner, training=training_reports)
    cleaner.prepare(text for pair in pairs.pairs for text in (pair.generated, pair.reference))
    every = [(pair, scored_text(pair.reference, cleaner, reference=True)) for pair in pairs.pairs]
    kept = [(pair, text) for pair, text in every if text]
    if not kept:
        raise InputError(f"no reference is left after cleaning with {str(cleaner)!r}", next="set another data.cleaner")
    blank = [pair for pair, text in every if not text]
    pairs = replace(
        pairs,
        pairs=[pair for pair, _ in kept],
        without_reference=pairs.without_reference + len(blank),
        unscored=[*pairs.unscored, *blank],
    )
    references = [text for _, text in kept]
    texts = [scored_text(pair.generated, cleaner) for pair in pairs.pairs]
    raw = [pair.generated or "" for pair in pairs.pairs]
    notes: dict[str, str] = {}
    order, chosen = _baselines(len(texts), training_reports, cleaner, settings, seed, notes)
    sets = {"generated": texts}
    if chosen is not None:
        sets["constant"] = [chosen] * len(texts)
    if order is not None:
        sets["permuted"] = [texts[i] for i in order]

    reports = [*raw, *(pair.reference for pair in pairs.pairs)]
    columns, labels, reason = _compute(sets, references, reports, meteor=settings.meteor, run=run)
    found, truth = labels.reshape(2, len(raw), len(CHEXPERT))
    by_set = {"generated": found}
    if chosen is not None:
        by_set["constant"] = np.repeat(label_reports([chosen]), len(raw), axis=0)
    if order is not None:
        by_set["permuted"] = found[order]
    scored = {name: Statistics(**columns[name], found=by_set[name], truth=truth) for name in sets}
    if reason:
        notes["METEOR"] = reason
    if not settings.meteor:
        notes["METEOR"] = "switched off (evaluate.meteor)"
    metrics = _metrics(scored, pairs, chosen, notes, cleaner=cleaner, settings=settings, seed=seed)
    metrics["warnings"] += full_stop_warnings(texts, references, cleaner)
    return Evaluation(metrics, scored["generated"], pairs)


def _baselines(
    n: int,
    training_reports: Sequence[str] | None,
    cleaner: Cleaning,
    settings: EvaluateConfig,
    seed: int,
    notes: dict[str, str],
) -> tuple[np.ndarray | None, str | None]:
    """The order of the permuted reports and the constant one; None with a note where there is none."""
    if not settings.baselines:
        notes["baselines"] = "switched off (evaluate.baselines)"
        return None, None
    order = derangement(n, seed) if n > 1 else None
    if order is None:
        notes["permuted"] = "needs two studies"
    chosen = None
    if training_reports is None:
        notes["constant"] = "the training split's reports are not known; set training=PATH or studies=PATH"
    else:
        cleaner.prepare(training_reports)
        chosen = constant_report([scored_text(text, cleaner, reference=True) for text in training_reports], seed)
        if chosen is None:
            notes["constant"] = "the training split has no reports"
    return order, chosen


def _compute(
    sets: dict[str, list[str]], references: list[str], reports: list[str], *, meteor: bool, run: Runner
) -> tuple[dict[str, dict[str, Any]], np.ndarray, str | None]:
    """The columns of `Statistics` for each set of texts, the labels of `reports`, and why METEOR is missing if it is.

    All sets share the tasks of what is scored pair by pair, so that METEOR's slow start is paid once.
    """
    texts, wanted = [text for part in sets.values() for text in part], references * len(sets)
    jobs: list[tuple[str, Task]] = [(f"cider {name}", (nlg.cider, (part, references))) for name, part in sets.items()]
    if meteor:
        jobs += [("meteor", (_meteor, part)) for part in _paired(texts, wanted, METEOR_SHARD)]
    for part in _paired(texts, wanted, SHARD):
        jobs += [("bleu", (nlg.bleu_statistics, part)), ("rouge", (nlg.rouge_l, part))]
    jobs += [("labels", (label_reports, (reports[i : i + SHARD],))) for i in range(0, len(reports), SHARD)]
    results: dict[str, list[Any]] = {}
    for (name, _), result in zip(jobs, run([task for _, task in jobs]), strict=True):
        results.setdefault(name, []).append(result)
    reason = next((part for part in results.get("meteor", ()) if isinstance(part, str)), None)
    if reason:
        del results["meteor"]
    columns: dict[str, dict[str, Any]] = {name: {"cider": results.pop(f"cider {name}")[0]} for name in sets}
    labels = np.concatenate(results.pop("labels")) if reports else np.zeros((0, len(CHEXPERT)), dtype=bool)
    for column, parts in results.items():
        for name, rows in zip(sets, np.split(np.concatenate(parts), len(sets)), strict=True):
            columns[name][column] = rows
    return columns, labels, reason


def _meteor(texts: Sequence[str], references: Sequence[str]) -> np.ndarray | str:
    """METEOR's statistics, or why there are none: a missing Java must not end an evaluation."""
    try:
        return meteor_statistics(texts, references)
    except MeteorUnavailable as error:
        return str(error)


def _paired(texts: list[str], references: list[str], size: int) -> list[tuple[list[str], list[str]]]:
    return [(texts[i : i + size], references[i : i + size]) for i in range(0, len(texts), size)]


def _metrics(
    scored: dict[str, Statistics],
    pairs: Pairs,
    constant: str | None,
    notes: dict[str, str],
    *,
    cleaner: Cleaning,
    settings: EvaluateConfig,
    seed: int,
) -> dict[str, Any]:
    model = scored["generated"]
    scores = model.scores()
    baselines = {name: scored[name].scores() if name in scored else None for name in ("constant", "permuted")}
    return {
        "n": len(pairs.pairs),
        "unit": "study",
        "cleaner": str(cleaner),
        "tokenizer": cleaner.tokenizer,
        "signature": signature(cleaner, len(pairs.pairs)),
        "versions": versions(),
        "scores": scores,
        "intervals": model.intervals(resamples=settings.bootstrap, confidence=settings.confidence, seed=seed),
        "baselines": baselines,
        "warnings": warnings(scores, baselines, failed=pairs.failed, n=len(pairs.pairs)),
        "notes": notes,
        "confidence": settings.confidence,
        "bootstrap": settings.bootstrap,
        "seed": seed,
        "n_failed": pairs.failed,
        "n_without_reference": pairs.without_reference,
        "model": pairs.models,
        "constant_report": constant,
        "clinical": _observations(model),
    }


def versions() -> dict[str, str]:
    """What the scores were computed with."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {**packages, "meteor": "1.5", "python": platform.python_version()}


def warnings(
    scores: dict[str, float | None], baselines: dict[str, dict[str, float | None] | None], *, failed: int, n: int
) -> list[str]:
    """What a reader must know before quoting the scores."""
    result = []
    for baseline, values in baselines.items():
        if values is None:
            result.append(f"the {baseline} baseline is missing: whether the model looks at the films is not shown")
            continue
        behind = [s for s in SCORES if (a := scores[s]) is not None and (b := values[s]) is not None and a <= b]
        if behind:
            result.append(f"the model does not beat the {baseline} baseline on {', '.join(behind)}")
    if failed:
        result.append(f"{failed} of {n} studies have no generated report and count as empty ones")
    return result


def _observations(model: Statistics) -> dict[str, dict[str, float | int | None]]:
    """Per observation: studies whose reference, generated report, and both name it, with precision, recall and F1."""
    both, extra, missed = model.observations()
    rows: dict[str, dict[str, float | int | None]] = {}
    for name, b, e, m in zip(CHEXPERT, both.tolist(), extra.tolist(), missed.tolist(), strict=True):
        rows[name] = {
            "reference": b + m,
            "generated": b + e,
            "both": b,
            "precision": b / (b + e) if b + e else None,
            "recall": b / (b + m) if b + m else None,
            "f1": 2 * b / (2 * b + e + m) if b + e + m else None,
        }
    return rows
