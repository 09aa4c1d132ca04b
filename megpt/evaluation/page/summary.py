"""The page's tables and sentences, made from metrics.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megpt.evaluation.coverage import SIGNALS
from megpt.evaluation.page.titles import TITLES

if TYPE_CHECKING:
    from megpt.evaluation.page import Extras, System

STUDY_SCORES = ("clinical_f1", "ROUGE_L", "BLEU_4", "CIDEr", "METEOR")
"""Scores of a study alone that the list shows, as far as they are known."""

BASELINE_NOTE = (
    "Bold green: the model is above every baseline; red: it is not. Constant gives every study the training report that"
    " does best on the training split, permuted scores each generated report against another study's reference, and"
    " nearest gives each study the report of the training study that looks most like it. A model that beats none of"
    " them has not looked at the film. CIDEr runs from 0 to 10, the others from 0 to 1."
)


@dataclass(frozen=True)
class Cell:
    """What stands in one place of a table; `mark` colours it."""

    text: str
    range: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Row:
    title: str
    cells: list[Cell]


@dataclass(frozen=True)
class PageTable:
    columns: list[str]
    rows: list[Row]


@dataclass(frozen=True)
class Summary:
    """Everything of the page that is not a study; the names are those of the template."""

    title: str
    facts: list[tuple[str, str]]
    warnings: list[str]
    study_scores: list[str]
    score_table: PageTable
    score_notes: list[str]
    signature: str
    finding_table: PageTable
    labeller: str
    coverage: list[tuple[str, PageTable]]
    prompts: list[dict[str, Any]]
    curves: bool
    differences: list[tuple[str, PageTable]]
    method: list[str]


def summarised(systems: Sequence[System], extras: Extras) -> Summary:
    """The summary of one model's evaluation, or of several side by side."""
    evaluations = [system.evaluation for system in systems]
    metrics = evaluations[0].metrics
    names = " and ".join(system.name for system in systems)
    return Summary(
        title=f"megpt: {names}, {metrics['n']} studies" if len(systems) > 1 else f"megpt: {metrics['n']} studies",
        facts=_facts({system.name: system.evaluation.metrics for system in systems}),
        warnings=[warning for evaluation in evaluations for warning in evaluation.metrics["warnings"]],
        study_scores=study_scores(systems),
        score_table=score_table({system.name: system.evaluation.metrics for system in systems}),
        score_notes=[
            *([BASELINE_NOTE] if any(metrics["baselines"].values()) else []),
            *(f"{name}: {note}" for name, note in metrics["notes"].items()),
        ],
        signature=metrics["signature"],
        finding_table=finding_table({system.name: system.evaluation.metrics for system in systems}),
        labeller=_labeller(metrics),
        coverage=[(TITLES[name], coverage_table(rows)) for name, rows in metrics.get("risk_coverage", {}).items()],
        prompts=_prompts(systems[0], extras),
        curves=bool(extras.curves),
        differences=[(f"{pair['a']} − {pair['b']}", difference_table(pair)) for pair in extras.differences],
        method=_method(metrics),
    )


def score_table(metrics: Mapping[str, Mapping[str, Any]]) -> PageTable:
    """A row a score: each model's value and interval, and the first model's baselines with the paired differences."""
    first = next(iter(metrics.values()))
    baselines = [name for name, values in first["baselines"].items() if values]
    rows = []
    for name in first["scores"]:
        against = [value for b in baselines if (value := first["baselines"][b].get(name)) is not None]
        cells = []
        for position, one in enumerate(metrics.values()):
            value = one["scores"].get(name)
            mark = "" if value is None or not against or position else "good" if value > max(against) else "bad"
            cells.append(Cell(_number(value), _range(one["intervals"].get(name)), mark))
        for baseline in baselines:
            paired = (first.get("paired", {}).get(baseline) or {}).get(name)
            cells.append(Cell(_number(first["baselines"][baseline].get(name)), f"Δ {_range(paired)}" if paired else ""))
        rows.append(Row(TITLES.get(name, name), cells))
    names = list(metrics) if len(metrics) > 1 else ["model"]
    level = f"{100 * first['confidence']:g} % interval"
    return PageTable(["score", *(f"{name} [{level}]" for name in names), *baselines], rows)


def finding_table(metrics: Mapping[str, Mapping[str, Any]]) -> PageTable:
    """A row an observation: how many reports state it, precision, recall, and F1 with its interval where known.

    One model's F1 stands beside that of each baseline.
    """
    several, found = len(metrics) > 1, next(iter(metrics.values()))["clinical"]
    columns = ["finding", "reference"]
    for name in metrics:
        prefix = f"{name}: " if several else ""
        columns += [f"{prefix}{column}" for column in ("generated", "both", "precision", "recall", "F1")]
    baselines = [] if several else list(next(iter(found.values()))["baselines"])
    rows = []
    for finding, row in found.items():
        cells = [Cell(str(row["reference"]))]
        for one in metrics.values():
            mine = one["clinical"][finding]
            cells += [Cell(str(mine["generated"])), Cell(str(mine["both"]))]
            cells += [Cell(_number(mine[key], 2)) for key in ("precision", "recall")]
            cells.append(Cell(_number(mine["f1"], 2), _range(mine["interval"], 2)))
        cells += [Cell(_number(row["baselines"][name], 2)) for name in baselines]
        rows.append(Row(finding, cells))
    return PageTable([*columns, *(f"F1: {name}" for name in baselines)], rows)


def difference_table(pair: Mapping[str, Any]) -> PageTable:
    """A row for each score and observation of two systems: difference with interval, p, and p by Holm."""
    rows = []
    for name, row in {**pair["scores"], **pair["observations"]}.items():
        if row is not None:
            found = [Cell(f"{row['difference']:+.3f}", _range(row["interval"]))]
            found += [Cell("" if row[key] is None else f"{row[key]:.4f}") for key in ("p", "p_holm")]
            rows.append(Row(TITLES.get(name, name), found))
    return PageTable(["score", "difference", "p", "p, corrected (Holm)"], rows)


def coverage_table(rows: Sequence[Mapping[str, Any]]) -> PageTable:
    """A row a coverage: the studies kept, the last value among them, and the scores with their intervals."""
    found = []
    for row in rows:
        cells = [Cell(str(row["n"])), Cell(_number(row["threshold"], 2))]
        cells += [Cell(_number(value), _range(row["intervals"][name])) for name, value in row["scores"].items()]
        found.append(Row(f"{100 * row['coverage']:g} %", cells))
    names = [TITLES.get(name, name) for name in rows[0]["scores"]]
    return PageTable(["kept", "studies", "at least" if _falls(rows) else "at most", *names], found)


def _falls(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether keeping fewer studies raises the threshold: high values are the good ones."""
    known = [row["threshold"] for row in rows if row["threshold"] is not None]
    return bool(known) and known[-1] >= known[0]


def study_scores(systems: Sequence[System]) -> list[str]:
    """What is shown of a study alone: the `STUDY_SCORES` that are known, further scores, and the model's signals."""
    statistics, pairs = systems[0].evaluation.statistics, systems[0].evaluation.pairs.every
    known = statistics.per_study()
    signals = [name for name in SIGNALS if any(getattr(pair, name) is not None for pair in pairs)]
    return [*(name for name in (*STUDY_SCORES, *statistics.further) if name in known), *signals]


def _facts(metrics: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    first = next(iter(metrics.values()))
    facts = [("studies scored", str(first["n"]))]
    if first.get("n_patients"):
        facts.append(("patients", str(first["n_patients"])))
    if len(metrics) == 1:
        facts.append(("without a reference, not scored", str(first["n_without_reference"])))
    facts += [("cleaner", first["cleaner"]), ("tokenizer", first["tokenizer"])]
    for name, one in metrics.items():
        of = f" ({name})" if len(metrics) > 1 else ""
        facts.append((f"failed, counted as empty reports{of}", str(one["n_failed"])))
        facts += [(f"model{of}", model) for model in one["model"]]
    return facts


def _labeller(metrics: Mapping[str, Any]) -> str:
    quality = metrics["labeller"]
    low, high = quality["interval"]
    return f"micro-F1 {quality['micro_f1']:.3f} [{low:.3f}, {high:.3f}] against human codes of {quality['n']} reports"


def _prompts(system: System, extras: Extras) -> list[dict[str, Any]]:
    counts = Counter(pair.prompt_id for pair in system.evaluation.pairs.pairs if pair.prompt_id is not None)
    return [{"id": key, "studies": counts[key], "text": extras.prompts.get(key, "–")} for key in sorted(counts)]


def _method(metrics: Mapping[str, Any]) -> list[str]:
    unit = metrics["interval_unit"]
    versions = ", ".join(f"{name} {version}" for name, version in metrics["versions"].items())
    lines = [
        f"Each study counts once. Intervals come from {metrics['bootstrap']}"
        f" resamples of the {'patients' if unit == 'patient' else 'studies'}, seed {metrics['seed']}.",
        f"Versions: {versions}.",
    ]
    if metrics.get("constant_report"):
        lines.append(f"The constant report: {metrics['constant_report']}")
    return lines


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or value != value else f"{value:.{digits}f}"


def _range(interval: Sequence[float] | None, digits: int = 3) -> str:
    return f"[{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]" if interval else ""
