"""The page of an ablation: means and intervals over seeds, differences from the base, and a link to each run.

It needs no program: plain tables with the style sheet of the evaluation's page, one file that loads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from megpt.evaluation.page import HERE, template
from megpt.evaluation.page.summary import Cell, PageTable, Row
from megpt.evaluation.page.titles import TITLES
from megpt.evaluation.seeds import OverSeeds
from megpt.output import write_text


@dataclass(frozen=True)
class AblationPage:
    """What the page shows.

    changes: variant → its settings that differ from the first variant's, the base; runs: rows of ablation.parquet
    with `page`, the address of the run's own page or None; summary: rows of summary.parquet; scores: those shown.
    """

    changes: Mapping[str, Sequence[str]]
    runs: Sequence[Mapping[str, Any]]
    summary: Sequence[Mapping[str, Any]]
    scores: Sequence[str]
    confidence: float
    baselines: Mapping[str, Mapping[str, OverSeeds | None]]
    notes: Sequence[str]
    signatures: Sequence[str]


def write_ablation_page(path: str | Path, page: AblationPage) -> None:
    """Write the page, whole or not at all."""
    states = [run["status"] for run in page.runs]
    counts = [(name, states.count(name)) for name in ("done", "poor", "failed", "waiting")]
    base = next(iter(page.changes))
    html = template("ablation.html.j2").render(
        title=f"megpt: ablation of {len(page.changes)} variants, {len({run['seed'] for run in page.runs})} seeds",
        base=base,
        facts=[("runs", len(states)), *((name, count) for name, count in counts if count or name == "done")],
        warnings=warnings(page),
        level=f"{100 * page.confidence:g} %",
        tables=tables(page),
        variants=page.changes,
        runs=page.runs,
        titles=[_title(name) for name in page.scores],
        scores=page.scores,
        number=_number,
        notes=page.notes,
        signatures=page.signatures,
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
    )
    write_text(path, html)


def warnings(page: AblationPage) -> list[str]:
    """What a reader must know before quoting a number."""
    found = []
    for status, text in (
        ("failed", "failed, and counted nowhere"),
        ("poor", "more studies failed than allowed"),
        ("waiting", "not done yet"),
    ):
        named = [f"{run['variant']} with seed {run['seed']}" for run in page.runs if run["status"] == status]
        if named:
            found.append(f"{text}: {', '.join(named)}")
    behind = [variant for variant in page.changes if any(_behind(page, variant, score) for score in page.scores)]
    if behind:
        found.append(f"not above every baseline in each score, see the red means: {', '.join(behind)}")
    if len({run["seed"] for run in page.runs}) == 1:
        found.append("one seed only: whether another training run would give the same is not known")
    if len(page.signatures) > 1:
        found.append("the runs were scored in different ways: their signatures differ")
    return found


def tables(page: AblationPage) -> list[tuple[str, str, str, PageTable]]:
    """(anchor, heading, explanation, table) of each table that has anything to show."""
    rows = {(row["variant"], row["score"]): row for row in page.summary}
    variants, base = list(page.changes), next(iter(page.changes))
    level = f"{100 * page.confidence:g} %"
    columns = ["variant", *(_title(name) for name in page.scores)]

    def table(names: Sequence[str], value: str, low: str, high: str, p: str | None = None) -> PageTable:
        sign = "" if p is None else "+"
        return PageTable(
            columns,
            [
                Row(name, [_cell(rows[name, score], value, low, high, p, sign=sign) for score in page.scores])
                for name in names
            ],
        )

    means = table(variants, "mean", "low", "high")
    for row in means.rows:
        marks = ["bad" if _behind(page, row.title, score) else "" for score in page.scores]
        row.cells[:] = [replace(cell, mark=mark) for cell, mark in zip(row.cells, marks, strict=True)]
    means.rows.extend(
        Row(f"baseline: {name}", [Cell(_number(one.mean if (one := scores.get(s)) else None)) for s in page.scores])
        for name, scores in page.baselines.items()
    )
    found = [
        (
            "means",
            "Means over seeds",
            f"Mean of the runs, with Student's t interval of {level} over seeds: where another training run would end."
            f" Baselines are those of the {base} runs, constant being the same for all; red: not above every baseline.",
            means,
        ),
        (
            "seeds",
            f"Difference from {base}, paired by seed",
            f"Variant minus {base} with the same seed: mean, t interval of {level}, p of the paired t test. Green or"
            " red: the interval excludes 0. With few seeds the intervals are wide. The p values are not corrected for"
            " their number.",
            table(variants[1:], "difference", "difference_low", "difference_high", "difference_p"),
        ),
    ]
    if any(row["patients_difference"] is not None for row in page.summary):
        found.append(
            (
                "patients",
                f"Difference from {base} over patients",
                f"Variant minus {base} in the reports of all seeds together: interval of {level} over patients, p by"
                " paired randomisation over patients, corrected over the scores by Holm's method. It tells whether"
                " other patients would show the difference too, with these very training runs.",
                table(variants[1:], "patients_difference", "patients_low", "patients_high", "patients_p_holm"),
            )
        )
    return found


def _behind(page: AblationPage, variant: str, score: str) -> bool:
    """Whether the mean of a variant's runs is not above every baseline."""
    mean = next(row["mean"] for row in page.summary if (row["variant"], row["score"]) == (variant, score))
    against = [one.mean for scores in page.baselines.values() if (one := scores.get(score)) is not None]
    return mean is not None and bool(against) and mean <= max(against)


def _cell(row: Mapping[str, Any], value: str, low: str, high: str, p: str | None, *, sign: str) -> Cell:
    ends = (row[low], row[high])
    text = _number(row[value], sign)
    parts = [f"[{_number(ends[0], sign)}, {_number(ends[1], sign)}]"] if None not in ends else []
    mark = ""
    if p is not None and row[p] is not None:
        parts.append(f"p = {row[p]:.3f}" if row[p] >= 0.001 else "p < 0.001")
    if p is not None and None not in ends:
        mark = "good" if ends[0] > 0 else "bad" if ends[1] < 0 else ""
    return Cell(text, ", ".join(parts), mark)


def _title(score: str) -> str:
    return TITLES.get(score, score)


def _number(value: float | None, sign: str = "") -> str:
    return "–" if value is None or value != value else f"{value:{sign}z.3f}"
