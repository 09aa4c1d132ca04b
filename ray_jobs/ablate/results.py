"""What an ablation writes: ablation.parquet (a row a run), summary.parquet (a row a variant and score), index.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from megpt.config import Config
from megpt.data.studies import COMPRESSION
from megpt.errors import MegptError
from megpt.evaluation.page.ablation import AblationPage, write_ablation_page
from megpt.evaluation.seeds import OverSeeds, over_seeds, paired
from megpt.evaluation.statistics import SCORES
from megpt.output import write_aside
from ray_jobs.ablate.plan import BASE, Plan
from ray_jobs.evaluate import HEADLINE, Evaluate
from ray_jobs.evaluate import PAGE as RUN_PAGE

TABLE, SUMMARY, PAGE = "ablation.parquet", "summary.parquet", "index.html"

SUMMARY_SCHEMA = pa.schema(
    [
        pa.field("variant", pa.string(), nullable=False),
        pa.field("score", pa.string(), nullable=False),
        ("seeds", pa.int32()),
        *((name, pa.float64()) for name in ("mean", "sd", "low", "high")),
        ("paired_seeds", pa.int32()),
        *((name, pa.float64()) for name in ("difference", "difference_low", "difference_high", "difference_p")),
        *((name, pa.float64()) for name in ("patients_difference", "patients_low", "patients_high")),
        *((name, pa.float64()) for name in ("patients_p", "patients_p_holm")),
    ]
)
"""`difference…`: variant minus base, paired by seed. `patients_…`: the same over patients, from all seeds' reports."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `done`; `poor`, with scores, though more studies failed than allowed; `failed`; or `waiting`."""

    status: str
    error: str | None = None
    metrics: dict[str, Any] | None = None
    raised: MegptError | None = None


WAITING = Outcome("waiting")


@dataclass(frozen=True)
class Results:
    """The runs so far, by their titles.

    `patients`: variant → the differences of `differences_over_patients`, or why there are none.
    """

    planned: Plan
    outcomes: dict[str, Outcome]
    config: Config
    patients: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def scores(self) -> list[str]:
        """Every score that a run has, in the order of metrics.json."""
        found = [name for outcome in self.outcomes.values() if outcome.metrics for name in outcome.metrics["scores"]]
        return list(dict.fromkeys([*SCORES, *found]))

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """One row a run."""
        changes = {variant.name: "; ".join(variant.changes) for variant in self.planned.variants}
        rows = []
        for run in self.planned.runs:
            outcome = self.outcomes.get(run.title, WAITING)
            metrics = outcome.metrics or {"scores": {}}
            rows.append(
                {
                    **{"variant": run.variant, "seed": run.seed, "status": outcome.status, "error": outcome.error},
                    "changes": changes[run.variant],
                    "folder": self._relative(run.folder(Evaluate).parent),
                    "n": metrics.get("n"),
                    "n_failed": metrics.get("n_failed"),
                    **{name: metrics["scores"].get(name) for name in self.scores},
                }
            )
        return rows

    @cached_property
    def summary(self) -> list[dict[str, Any]]:
        """One row a variant and score."""
        return [self._summary(variant.name, score) for variant in self.planned.variants for score in self.scores]

    def write(self, folder: Path) -> None:
        """Both tables, then the page; each whole or absent."""
        kinds = {"variant": pa.string(), "seed": pa.int64(), "n": pa.int64(), "n_failed": pa.int64()}
        names = ("variant", "seed", "status", "error", "changes", "folder", "n", "n_failed")
        schema = pa.schema(
            [(name, kinds.get(name, pa.string())) for name in names] + [(name, pa.float64()) for name in self.scores]
        )
        _write(folder / TABLE, self.rows, schema)
        _write(folder / SUMMARY, self.summary, SUMMARY_SCHEMA)
        write_ablation_page(folder / PAGE, self._page())

    def _summary(self, variant: str, score: str) -> dict[str, Any]:
        confidence = self.config.evaluate.confidence
        ours, theirs = self._by_seed(variant, score), self._by_seed(BASE, score)
        own = over_seeds(list(ours.values()), confidence=confidence)
        gap = over_seeds(paired(ours, theirs), confidence=confidence) if variant != BASE else None
        known = self.patients.get(variant)
        row = known.get(score) if isinstance(known, dict) else None
        low, high = (row or {}).get("interval") or (None, None)
        return {
            "variant": variant,
            "score": score,
            **_columns(own, {"n": "seeds", "mean": "mean", "sd": "sd", "low": "low", "high": "high"}),
            **_columns(
                gap,
                {"n": "paired_seeds", "mean": "difference", "p": "difference_p"}
                | {name: f"difference_{name}" for name in ("low", "high")},
            ),
            "patients_difference": row and row["difference"],
            "patients_low": low,
            "patients_high": high,
            "patients_p": row and row["p"],
            "patients_p_holm": row and row["p_holm"],
        }

    def _by_seed(self, variant: str, score: str) -> dict[int, float]:
        rows = [row for row in self.rows if row["variant"] == variant]
        return {row["seed"]: row[score] for row in rows if row[score] is not None}

    def _page(self) -> AblationPage:
        pages = [run.folder(Evaluate) / RUN_PAGE for run in self.planned.runs]
        links = [self._relative(page) if page.is_file() else None for page in pages]
        return AblationPage(
            changes={variant.name: variant.changes for variant in self.planned.variants},
            runs=[{**row, "page": link} for row, link in zip(self.rows, links, strict=True)],
            summary=self.summary,
            scores=[name for name in HEADLINE if any(row[name] is not None for row in self.rows)],
            confidence=self.config.evaluate.confidence,
            baselines=self._baselines(),
            notes=[*self._notes(), self.planned.counts(), *self.planned.done_once()],
            signatures=sorted({s for o in self.outcomes.values() if (s := (o.metrics or {}).get("signature"))}),
        )

    def _baselines(self) -> dict[str, dict[str, OverSeeds | None]]:
        """Baseline → score → its mean over the seeds of the base, which is read beside the variants."""
        runs = [self.outcomes.get(run.title, WAITING) for run in self.planned.runs if run.variant == BASE]
        metrics = [outcome.metrics for outcome in runs if outcome.metrics]
        names = dict.fromkeys(name for one in metrics for name, values in one["baselines"].items() if values)
        return {
            name: {
                score: over_seeds(
                    [v for one in metrics if (v := (one["baselines"].get(name) or {}).get(score)) is not None],
                    confidence=self.config.evaluate.confidence,
                )
                for score in self.scores
            }
            for name in names
        }

    def _notes(self) -> list[str]:
        reasons = {reason for reason in self.patients.values() if isinstance(reason, str)}
        return [f"No comparison over patients: {reason}" for reason in sorted(reasons)]

    def _relative(self, path: Path) -> str:
        return path.relative_to(str(self.config.output)).as_posix()


def read_summary(folder: Path) -> list[dict[str, Any]]:
    """The rows of summary.parquet."""
    return list(pq.read_table(folder / SUMMARY).to_pylist())


def screen_table(summary: Sequence[dict[str, Any]], confidence: float) -> Table:
    """Means and paired differences, for the screen."""
    shown = [name for name in HEADLINE if any(row["score"] == name and row["mean"] is not None for row in summary)]
    table = Table(title=f"ablation: mean over seeds; below it the difference from base [{100 * confidence:g} %]")
    for heading in ("variant", *shown):
        table.add_column(heading, no_wrap=heading == "variant")
    for variant in dict.fromkeys(row["variant"] for row in summary):
        rows = {row["score"]: row for row in summary if row["variant"] == variant}
        table.add_row(variant, *(_screen_cell(rows[name]) for name in shown))
    return table


def _screen_cell(row: dict[str, Any]) -> str:
    if row["mean"] is None:
        return "–"
    text = f"{row['mean']:.3f}"
    if row["difference"] is not None:
        text += f"\n{row['difference']:+z.3f}"
    if row["difference_low"] is not None:
        text += f" \\[{row['difference_low']:+z.3f}, {row['difference_high']:+z.3f}]"
    return text


def _columns(estimate: OverSeeds | None, names: dict[str, str]) -> dict[str, Any]:
    return {column: getattr(estimate, name) if estimate else None for name, column in names.items()}


def _write(path: Path, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
    with write_aside(path) as temporary:
        pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), temporary, **COMPRESSION)
