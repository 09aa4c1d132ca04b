"""Do the intervals hold what they promise? Sets of 289 patients with some 3,851 studies, from a known population.

    python benchmarks/interval_coverage.py --reports annotation.json --out benchmarks/results/coverage-DATE.json

`--reports` is R2Gen's annotation.json of IU X-Ray. A population of patients is made of its sentences: each patient has
a few favourite reports and a model that is more or less right about this very patient, so that studies of one patient
resemble each other; the number of studies has a long tail. Sets of patients are drawn from it, each is scored as
`evaluate` would score it, and counted is how often the interval of nominally 95 % holds the population's score.
Beside it: the same by plain percentiles, and by percentiles over studies, as is usual in the field.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from record import record, save

from megpt.evaluation import nlg
from megpt.evaluation.clinical import label_findings
from megpt.evaluation.intervals import Bootstrap
from megpt.evaluation.meteor import meteor_statistics
from megpt.evaluation.statistics import SCORES, Rows, Statistics
from megpt.evaluation.texts import scored_text

NOMINAL, TARGET = 0.95, 0.90
MEAN_STUDIES, LONG_TAIL = 13.3, 1.1


@dataclass(frozen=True)
class Population:
    """Studies of many patients: `starts` (P + 1,) delimits each patient's rows of `statistics` and of the texts."""

    generated: list[str]
    references: list[str]
    starts: np.ndarray
    statistics: Statistics


def population(reports: list[str], patients: int, rng: np.random.Generator, *, meteor: bool) -> Population:
    """Patients with favourite reports, and a model that knows some patients better than others."""
    spread = rng.lognormal(0, LONG_TAIL, patients)
    sizes = np.clip(np.rint(spread / spread.mean() * MEAN_STUDIES), 1, 200).astype(int)
    usual = reports[: len(reports) // 20]  # what the model says when it does not know
    generated, references = [], []
    for size in sizes:
        favourites = rng.choice(len(reports), 3)
        skill = rng.beta(0.6, 1.2)
        own_usual = usual[rng.integers(len(usual))]
        for _ in range(size):
            report = reports[favourites[rng.integers(3)] if rng.random() < 0.7 else rng.integers(len(reports))]
            references.append(report)
            sentences = report.split(" .")
            kept = [s for s in sentences if s.strip() and rng.random() < 0.8]
            right = " .".join(kept).strip() + " ." if kept else own_usual
            generated.append(right if rng.random() < skill else own_usual)
    texts = nlg.text_statistics(generated, references, np.arange(len(references))[None])
    found, truth = label_findings(generated), label_findings(references)
    counted = meteor_statistics(generated, references) if meteor else None
    statistics = Statistics(texts.bleu[0], texts.rouge[0], texts.cider[0], counted, found, truth)
    return Population(generated, references, np.concatenate([[0], np.cumsum(sizes)]), statistics)


def draw(people: Population, patients: int, rng: np.random.Generator) -> tuple[Rows, np.ndarray]:
    """The rows of a set of patients, scored by itself (CIDEr's word weights are the set's), and their patients."""
    chosen = rng.integers(len(people.starts) - 1, size=patients)
    spans = [np.arange(people.starts[p], people.starts[p + 1]) for p in chosen]
    rows, groups = np.concatenate(spans), np.repeat(np.arange(patients), [len(s) for s in spans])
    texts = ([side[i] for i in rows] for side in (people.generated, people.references))
    own = people.statistics
    parts = {
        name: None if (column := getattr(own, name)) is None else column[rows]
        for name in ("bleu", "rouge", "meteor", "found", "truth")
    }
    return replace(own, **parts, cider=nlg.cider(*texts)).rows(), groups


def percentiles(rows: Rows, *, resamples: int, seed: int) -> dict[str, tuple[float, float] | None]:
    """The usual interval over whatever the rows are."""
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[np.ndarray]] = {}
    count = len(rows.matrix)
    for _ in range(resamples // 100):
        weights = rng.multinomial(count, np.full(count, 1 / count), size=100)
        for name, values in rows.score(weights @ rows.matrix).items():
            drawn.setdefault(name, []).append(values)
    return {name: tuple(np.nanpercentile(np.concatenate(v), [2.5, 97.5])) for name, v in drawn.items()}


def coverage(people: Population, *, patients: int, draws: int, resamples: int, seed: int) -> dict[str, Any]:
    """How often each kind of interval holds the population's score, by score."""
    truth = people.statistics.scores()
    rng = np.random.default_rng(seed)
    held: dict[str, dict[str, list[bool]]] = {k: {} for k in ("patients_shipped", "patients_percentile", "studies")}
    width: dict[str, list[float]] = {}
    bias: dict[str, list[float]] = {}
    sizes = []
    for number in range(draws):
        rows, groups = draw(people, patients, rng)
        sizes.append(len(rows.matrix))
        grouped = rows.grouped(groups)
        bootstrap = Bootstrap({"generated": grouped}, resamples=resamples, seed=seed + number)
        plain = percentiles(grouped, resamples=resamples, seed=number)
        studies = percentiles(rows, resamples=200, seed=number)
        values = rows.scores()
        for name, value in truth.items():
            ours = bootstrap.interval(name, NOMINAL, of="generated")
            if value is None or ours is None:
                continue
            for kind, interval in (
                ("patients_shipped", ours),
                ("patients_percentile", plain[name]),
                ("studies", studies[name]),
            ):
                held[kind].setdefault(name, []).append(bool(interval[0] <= value <= interval[1]))
            width.setdefault(name, []).append((ours[1] - ours[0]) / max(studies[name][1] - studies[name][0], 1e-9))
            bias.setdefault(name, []).append(values[name] - value)
    names = [name for name in SCORES if name in width]
    return {
        "studies_mean": round(float(np.mean(sizes)), 1),
        "population": {name: round(truth[name], 4) for name in names},
        "bias": {name: round(float(np.mean(bias[name])), 4) for name in names},
        "coverage": {kind: {n: round(float(np.mean(held[kind][n])), 4) for n in names} for kind in held},
        "width_over_studies": {name: round(float(np.mean(width[name])), 2) for name in names},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=Path, required=True)
    parser.add_argument("--population", type=int, default=4_000, help="patients")
    parser.add_argument("--patients", type=int, default=289)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--resamples", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-meteor", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    splits = json.loads(options.reports.read_text())
    reports = [scored_text(s["report"], "r2gen-iu") for split in splits.values() for s in split]
    began = time.monotonic()
    people = population(
        [r for r in reports if r], options.population, np.random.default_rng(options.seed), meteor=not options.no_meteor
    )
    found = coverage(
        people, patients=options.patients, draws=options.draws, resamples=options.resamples, seed=options.seed
    )
    result = record("interval_coverage.py", "numpy", "scipy", "rapidfuzz", "pycocoevalcap") | {
        "patients": options.patients,
        "draws": options.draws,
        "resamples": options.resamples,
        "nominal": NOMINAL,
        **found,
        "seconds": round(time.monotonic() - began),
        "target": f"patients_shipped at least {TARGET} for every score",
    }
    save(result, options.out)
    return int(min(found["coverage"]["patients_shipped"].values()) < TARGET)


if __name__ == "__main__":
    sys.exit(main())
