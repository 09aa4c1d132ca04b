"""One train → generate → evaluate per variant, and one table of what each part of the model is worth.

    megpt ablate --config configs/phantom.yaml studies=runs/demo/studies output=runs/ablation

`ablate.variants` maps a name to dotted overrides (`no_fem: {model.fem: false}`); the unchanged config always runs as
`full`. Each variant keeps its own folder, so a killed ablation resumes where it stopped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from megpt.config import Config
from megpt.data.studies import study_files
from megpt.errors import InputError
from megpt.output import Output, write_json, write_text
from megpt.progress import console, log
from ray_jobs.evaluate import HEADLINE, Evaluate, read_metrics
from ray_jobs.fit_prompts import FitPrompts
from ray_jobs.generate.job import Generate
from ray_jobs.job import Job
from ray_jobs.train.job import Train, check
from ray_jobs.train.validate import check_validation

FULL = "full"
RESULT = "ablation.json"
SECTIONS = ("data", "model", "fit_prompts", "train", "generate", "evaluate")


class Ablate(Job):
    name = "ablate"
    reads = ("ablate", "studies", "prompts", "limit", "seed", *SECTIONS)
    needs = ("studies",)

    def open(self) -> None:
        self.variants = resolve(self.config)
        study_files(str(self.config.studies), "train")
        for variant in self.variants.values():
            check(variant)
            check_validation(variant)

    def inputs(self) -> dict[str, Any]:
        return Train(self.config).inputs()

    def preview(self, folder: Path) -> None:
        for name, variant in self.variants.items():
            log(f"{name}: would train, generate and evaluate under {variant.output}")

    def work(self, folder: Path) -> None:
        self.rows = {}
        for number, (name, variant) in enumerate(self.variants.items(), start=1):
            log(f"ablate: {name} ({number} of {len(self.variants)})")
            own = _changes_clusters(self.config, variant) or (name == FULL and self.config.prompts is None)
            shared = self.config.prompts or folder / FULL / "prompts"
            prompts = Path(str(variant.output)) / "prompts" if own else shared
            self.rows[name] = run_variant(variant.updated(prompts=str(prompts)), fit=own)

    def finish(self, folder: Path) -> dict[str, Any]:
        write_results(folder, self.rows)
        return {"variants": list(self.rows)}

    def kept(self, folder: Path) -> bool:
        return any(path.is_dir() for path in folder.iterdir())

    def tell(self, folder: Path, summary: dict[str, Any]) -> None:
        console.print(table(json.loads((folder / RESULT).read_text())))
        log(f"ablate: {folder / 'ablation.md'}")

    def nothing_to_do(self, output: Output) -> None:
        super().nothing_to_do(output)
        self.tell(output.path, output.summary())


def resolve(config: Config) -> dict[str, Config]:
    """The config of each variant; each is checked before the first one starts.

    Raises:
        InputError: no variants, a name that cannot be a folder, or an override that the config refuses.
    """
    if not config.ablate.variants:
        raise InputError(
            "`ablate.variants` is empty",
            cause="an ablation compares the full model with at least one variant of it",
            next="add `ablate: {variants: {no_fem: {model.fem: false}}}` to the config",
        )
    root = Path(str(config.output))
    variants = {}
    for name, changes in {FULL: {}, **config.ablate.variants}.items():
        if not name.replace("_", "").replace("-", "").isalnum() or (name == FULL and changes):
            raise InputError(f"ablate.variants: {name!r} cannot name a variant", next="use letters, digits, - and _")
        variants[name] = config.overridden(changes).updated(output=str(root / name), source=None)
    return variants


def run_variant(config: Config, *, fit: bool) -> dict[str, Any]:
    """Train, generate and evaluate one variant; returns its metrics.

    Args:
        fit: first fit `prompts`. Clusters belong to the encoder that made them, so only a variant with another
            encoder needs its own.
    """
    folder = Path(str(config.output))
    if fit and config.model.dynamic_prompt:
        FitPrompts.run(config.updated(output=config.prompts))
    checkpoint, predictions, evaluation = (str(folder / n) for n in ("checkpoint", "predictions", "evaluation"))
    Train.run(config.updated(output=checkpoint))
    Generate.run(held_out(config).updated(output=predictions, checkpoint=checkpoint))
    Evaluate.run(config.updated(output=evaluation, predictions=predictions))
    return read_metrics(Path(evaluation))


def held_out(config: Config) -> Config:
    """The config with the test split where no single one is asked for: a score of training studies says nothing."""
    return config.overridden({"generate.split": "test"}) if config.generate.split == "all" else config


def _changes_clusters(config: Config, variant: Config) -> bool:
    encoder = ("vision", "vision_weights", "vision_args", "image_size")
    moved = any(getattr(config.model, key) != getattr(variant.model, key) for key in encoder)
    return moved or config.fit_prompts != variant.fit_prompts or config.seed != variant.seed


def table_rows(rows: dict[str, dict[str, Any]]) -> list[list[str]]:
    """A line of cells for each variant, the scores with their intervals, and for each baseline beneath."""
    lines = [
        [name, *(_cell(metrics["scores"].get(score), metrics["intervals"].get(score)) for score in HEADLINE)]
        for name, metrics in rows.items()
    ]
    for name, scores in (rows[FULL].get("baselines") or {}).items():
        if scores:
            lines.append([f"baseline: {name}", *(_cell(scores.get(score)) for score in HEADLINE)])
    return lines


def _cell(value: float | None, interval: list[float] | None = None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def table(rows: dict[str, dict[str, Any]]) -> Table:
    """The variants' scores, for the screen."""
    result = Table(title=f"ablation, n = {rows[FULL]['n']} studies")
    for heading in ("variant", *HEADLINE):
        result.add_column(heading, no_wrap=heading == "variant")
    for cells in table_rows(rows):
        result.add_row(*cells)
    return result


def write_results(folder: Path, rows: dict[str, dict[str, Any]]) -> None:
    """ablation.json (the full metrics of each variant) and ablation.md (the table)."""
    write_json(folder / RESULT, rows)
    first = rows[FULL]
    table = [["variant", *HEADLINE], ["---"] * (len(HEADLINE) + 1), *table_rows(rows)]
    lines = [
        *(f"| {' | '.join(cells)} |" for cells in table),
        "",
        f"n = {first['n']} {first['unit']}s, cleaner {first['cleaner']}, tokenizer {first['tokenizer']}.",
        "Brackets: bootstrap interval over studies. Not for clinical decisions.",
    ]
    write_text(folder / "ablation.md", "\n".join(lines) + "\n")
