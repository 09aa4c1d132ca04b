"""Two or more systems on the same studies: which is better, by how much, and whether that may be chance.

    comparison = compare({"base": read_pairs(A), "ours": read_pairs(B)}, cleaner="r2gen-iu", settings=…, seed=42)
    comparison.result["comparisons"][0]["scores"]["CIDEr"]

Only studies that all systems have are compared, against one reference each; what is left out is listed. Patients are
the unit of every interval and every test: intervals of differences by a bootstrap in which all systems have the same
patients, p by paired randomisation over patients, corrected over the scores by Holm's method.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from megpt.config import EvaluateConfig
from megpt.errors import InputError
from megpt.evaluation.clinical import Findings, label_findings
from megpt.evaluation.intervals import Bootstrap, holm, patients, randomisation
from megpt.evaluation.metrics import Evaluation, head, observations, told
from megpt.evaluation.pairs import Pair, Pairs
from megpt.evaluation.scoring import Reports, Runner, Scored, run_here, score_sets
from megpt.evaluation.statistics import Rows
from megpt.evaluation.table import label_structs, side_structs
from megpt.evaluation.texts import Cleaning, scored_text
from megpt.study import CHEXPERT

DRAWS = 10_000
"""Random swaps behind each p, which is never below 1 / (DRAWS + 1)."""
MOST_LISTED = 10_000
"""Ids of left-out studies that are listed at most for one system; their number is always told."""


@dataclass(frozen=True)
class Comparison:
    """`result` is compare.json; `evaluations` has each system's reports by name, the same studies in the same order."""

    result: dict[str, Any]
    evaluations: dict[str, Evaluation]

    def lines(self) -> list[str]:
        """The differences in words, a line for each two systems and score."""
        found = []
        for pair in self.result["comparisons"]:
            for name, row in pair["scores"].items():
                if row is not None:
                    low, high = row["interval"] or (float("nan"), float("nan"))
                    found.append(
                        f"{name}: {pair['a']} - {pair['b']} = {row['difference']:+.4f} [{low:+.4f}, {high:+.4f}], "
                        f"p = {row['p']:.4f}, corrected {row['p_holm']:.4f}"
                    )
        return [*found, *(f"{name}: {text}" for name, text in self.result["notes"].items())]

    def table(self) -> pa.Table:
        """One row a study: texts side by side, and each system's own scores as `SCORE:SYSTEM`."""
        first = next(iter(self.evaluations.values()))
        columns: dict[str, Any] = {
            "study_id": [pair.study_id for pair in first.pairs.pairs],
            "subject_id": [pair.subject_id or None for pair in first.pairs.pairs],
            "split": pa.array([pair.split for pair in first.pairs.pairs], pa.string()),
            "reference": [pair.reference for pair in first.pairs.pairs],
        }
        assert first.statistics.truth is not None
        columns |= {f"reference_{name}": column for name, column in _labels(first.statistics.truth).items()}
        for name, evaluation in self.evaluations.items():
            texts, statistics = [pair.generated for pair in evaluation.pairs.pairs], evaluation.statistics
            columns[f"generated:{name}"] = pa.array(texts, pa.string())
            columns |= {f"{score}:{name}": values for score, values in statistics.per_study().items()}
            assert statistics.found is not None
            columns |= {f"{key}:{name}": column for key, column in _labels(statistics.found).items()}
        return pa.table(columns)


def compare(
    systems: Mapping[str, Pairs],
    *,
    cleaner: str | Cleaning,
    settings: EvaluateConfig,
    seed: int,
    draws: int = DRAWS,
    run: Runner = run_here,
) -> Comparison:
    """Compare every two systems.

    A study that failed in a system counts as an empty report there, as in `evaluate`.

    Args:
        systems: name → its reports; at least two.

    Raises:
        InputError: fewer than two systems, no study that all of them have with the same reference, or no reference
            left after cleaning.
    """
    if len(systems) < 2:
        raise InputError("nothing to compare", cause="one system only", next="megpt compare A B output=PATH")
    cleaner = cleaner if isinstance(cleaner, Cleaning) else Cleaning.of(cleaner)
    cleaner.prepare(t for own in systems.values() for pair in own.pairs for t in (pair.generated, pair.reference))
    common, left_out = _common(systems, cleaner)
    ids, pairs = [*common], [*common.values()]
    groups, alone = patients([pair.subject_id for pair in pairs], ids)
    count = int(groups.max()) + 1
    scored = _score(systems, pairs, cleaner, settings, run)
    rows = {name: own.rows().grouped(groups) for name, own in scored.sets.items()}
    bootstrap = Bootstrap(rows, resamples=settings.bootstrap, seed=seed) if count > 1 else None
    notes = told(scored, [*systems], len(ids), count, alone, settings)
    shared = head(len(ids), count, alone, cleaner=cleaner, settings=settings, seed=seed)
    evaluations = {}
    for name, own in systems.items():
        generated = {pair.study_id: pair.generated for pair in own.pairs}
        theirs = Pairs([replace(pair, generated=generated[pair.study_id]) for pair in pairs], models=own.models)
        metrics = {**shared, **_system(name, theirs, rows[name], bootstrap, settings.confidence), "notes": notes}
        evaluations[name] = Evaluation(metrics, scored.sets[name], theirs, label_findings([]))
    kept = ("n_failed", "model", "scores", "intervals", "clinical")
    result = {
        **shared,
        "draws": draws,
        "systems": {
            name: {"n": len(systems[name].pairs)} | {key: own.metrics[key] for key in kept}
            for name, own in evaluations.items()
        },
        "comparisons": [
            _difference(a, b, rows, bootstrap, settings.confidence, draws, seed)
            for a, b in itertools.combinations(systems, 2)
        ],
        "left_out": left_out,
        "notes": notes,
    }
    return Comparison(result, evaluations)


def _score(
    systems: Mapping[str, Pairs], pairs: list[Pair], cleaner: Cleaning, settings: EvaluateConfig, run: Runner
) -> Scored:
    by_id = [{pair.study_id: pair.generated or "" for pair in own.pairs} for own in systems.values()]
    raw = [own[pair.study_id] for own in by_id for pair in pairs]
    references = [pair.reference for pair in pairs]
    wanted = [scored_text(text, cleaner, reference=True) for text in references]
    reports = Reports([scored_text(text, cleaner) for text in raw], raw, wanted, references)
    return score_sets(
        reports,
        {name: np.arange(len(pairs)) + k * len(pairs) for k, name in enumerate(systems)},
        ids=[pair.study_id for pair in pairs],
        meteor=settings.meteor,
        clinical=True,
        further=settings.scores,
        run=run,
        told=len(systems),
    )


def _common(systems: Mapping[str, Pairs], cleaner: Cleaning) -> tuple[dict[str, Pair], dict[str, Any]]:
    """The studies that all systems have with one reference, in the first one's order, and what is left out."""
    by_id = {name: {pair.study_id: pair for pair in own.pairs} for name, own in systems.items()}
    shared = set.intersection(*(set(own) for own in by_id.values()))
    common: dict[str, Pair] = {}
    unlike, blank = [], []
    for study, pair in next(iter(by_id.values())).items():
        if study not in shared:
            continue
        all_pairs = [own[study] for own in by_id.values()]
        texts = {scored_text(p.reference, cleaner, reference=True) for p in all_pairs}
        if len(texts) > 1:
            unlike.append(study)
        elif not texts.pop():
            blank.append(study)
        else:
            subject = next((p.subject_id for p in all_pairs if p.subject_id), "")
            common[study] = replace(pair, subject_id=subject)
    if not common:
        raise _nothing_in_common(systems, len(shared), unlike, blank, cleaner)
    lacking = {name: _listed([i for i in own if i not in shared]) for name, own in by_id.items()}
    return common, {
        "not_in_all": lacking,
        "references_differ": _listed(unlike),
        "reference_blank_after_cleaning": _listed(blank),
    }


def _nothing_in_common(
    systems: Mapping[str, Pairs], shared: int, unlike: list[str], blank: list[str], cleaner: Cleaning
) -> InputError:
    if unlike:
        return InputError(
            "no study has the same reference in all systems",
            where=f"study {unlike[0]}, and {len(unlike) - 1} more",
            cause="their references are of different sections, or were cleaned for one of them",
            next="set references=PATH or studies=PATH, to give all of them the references of one file",
        )
    if blank:
        return InputError(f"no reference is left after cleaning with {str(cleaner)!r}", next="set another data.cleaner")
    first = ", ".join(f"{name}: {own.pairs[0].study_id!r}" for name, own in systems.items() if own.pairs)
    return InputError(
        "the systems have no study in common",
        where=f"study_id, for example {first}",
        cause="they are of different test sets, or name studies differently",
        next="compare predictions for the same studies",
    )


def _listed(ids: list[str]) -> dict[str, Any]:
    return {"n": len(ids), "study_ids": ids[:MOST_LISTED]}


def _system(name: str, pairs: Pairs, rows: Rows, bootstrap: Bootstrap | None, confidence: float) -> dict[str, Any]:
    """One system's own scores, as metrics.json has them; it has no baselines here."""

    def interval(score: str) -> list[float] | None:
        return bootstrap.interval(score, confidence, of=name) if bootstrap else None

    failed = pairs.failed
    return {
        "n_failed": failed,
        "n_without_reference": 0,
        "model": pairs.models,
        "scores": rows.scores(),
        "intervals": {score: interval(score) for score in rows.names},
        "baselines": {},
        "paired": {},
        "clinical": observations(rows, interval),
        "warnings": [f"{name}: {failed} studies have no generated report and count as empty ones"] if failed else [],
        "constant_report": None,
    }


def _difference(
    a: str,
    b: str,
    rows: Mapping[str, Rows],
    bootstrap: Bootstrap | None,
    confidence: float,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """a minus b: score → difference, interval, p and p by Holm over the scores; the same for each observation's F1."""
    p = randomisation(rows[a], rows[b], draws=draws, seed=seed)
    ours, theirs = (_values(rows[name]) for name in (a, b))

    def table(names: tuple[str, ...]) -> dict[str, Any]:
        corrected = holm({name: p[name] for name in names if name in p})
        return {
            name: {
                "difference": ours[name] - theirs[name],
                "interval": bootstrap.interval(name, confidence, of=a, minus=b) if bootstrap else None,
                "p": p[name],
                "p_holm": corrected[name],
            }
            if name in p
            else None
            for name in names
        }

    return {"a": a, "b": b, "scores": table(rows[a].names), "observations": table(CHEXPERT)}


def _values(rows: Rows) -> dict[str, float]:
    """Scores and the F1 of each observation, of all rows together."""
    sums = rows.matrix.sum(0, keepdims=True)
    return {name: float(value[0]) for name, value in {**rows.score(sums), **rows.observation_f1(sums)}.items()}


def _labels(findings: Findings) -> dict[str, pa.Array]:
    return {"labels": label_structs(findings), "sides": side_structs(findings)}
