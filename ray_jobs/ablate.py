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
from megpt.errors import InputError
from megpt.output import claim, write_aside
from megpt.progress import console, log
from ray_jobs import evaluate, fit_prompts, generate, train
from ray_jobs.runtime import cluster

FULL = "full"
SCORES = ("BLEU_1", "BLEU_4", "METEOR", "ROUGE_L", "CIDEr", "clinical_micro_f1", "clinical_macro_f1")

# Sections and keys that this job reads; `output` and `cluster` go without saying.
reads = (
    *("studies", "prompts", "limit", "seed", "ablate", "data", "model"),
    *("fit_prompts", "train", "generate", "evaluate"),
)


def run(config: Config, *, dry_run: bool = False) -> int:
    """Run every variant; writes OUT/NAME/{prompts,checkpoint,predictions,evaluation} and OUT/ablation.{json,md}."""
    config.require("output", "studies")
    variants = resolve(config)
    if dry_run:
        for name, variant in variants.items():
            log(f"{name}: would train, generate and evaluate under {variant.output}")
        return 0
    identity = {"variants": config.ablate.variants, "studies": config.studies, "seed": config.seed}
    with claim(config.output, job="ablate", identity=identity, config=config) as output, cluster(config.cluster):
        rows = {}
        for number, (name, variant) in enumerate(variants.items(), start=1):
            log(f"ablate: {name} ({number} of {len(variants)})")
            own = _changes_clusters(config, variant) or (name == FULL and config.prompts is None)
            prompts = Path(str(variant.output)) / "prompts" if own else config.prompts or output.path / FULL / "prompts"
            rows[name] = run_variant(variant.updated(prompts=str(prompts)), fit=own)
        write_results(output.path, rows)
        output.finish(variants=list(rows))
    console.print(table(rows))
    log(f"ablate: {output.path / 'ablation.md'}")
    return 0


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
        variants[name] = config.overridden(changes).updated(output=str(root / name))
    return variants


def run_variant(config: Config, *, fit: bool) -> dict[str, Any]:
    """Train, generate and evaluate one variant; returns its metrics.

    Args:
        fit: first fit `prompts`. Clusters belong to the encoder that made them, so only a variant with another
            encoder needs its own.
    """
    folder = Path(str(config.output))
    if fit and config.model.dynamic_prompt:
        fit_prompts.run(config.updated(output=config.prompts))
    checkpoint, predictions, evaluation = (str(folder / n) for n in ("checkpoint", "predictions", "evaluation"))
    train.run(config.updated(output=checkpoint))
    generate.run(config.updated(output=predictions, checkpoint=checkpoint))
    evaluate.run(config.updated(output=evaluation, predictions=predictions))
    return dict(json.loads((Path(evaluation) / "metrics.json").read_text()))


def _changes_clusters(config: Config, variant: Config) -> bool:
    encoder = ("vision", "vision_weights", "vision_args", "image_size")
    moved = any(getattr(config.model, key) != getattr(variant.model, key) for key in encoder)
    return moved or config.fit_prompts != variant.fit_prompts or config.seed != variant.seed


def _cells(rows: dict[str, dict[str, Any]]) -> list[list[str]]:
    lines = []
    for name, metrics in rows.items():
        cells = [name]
        for score in SCORES:
            value, interval = metrics["scores"].get(score), metrics["intervals"].get(score)
            cells.append(
                "–"
                if value is None
                else f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
            )
        lines.append(cells)
    baselines = rows[FULL].get("baselines") or {}
    for name, scores in baselines.items():
        if scores:
            cells = [f"{scores[s]:.3f}" if scores.get(s) is not None else "–" for s in SCORES]
            lines.append([f"baseline: {name}", *cells])
    return lines


def table(rows: dict[str, dict[str, Any]]) -> Table:
    """The variants' scores with their intervals, the baselines beneath."""
    result = Table(title=f"ablation, n = {rows[FULL]['n']} studies")
    for heading in ("variant", *SCORES):
        result.add_column(heading, no_wrap=heading == "variant")
    for cells in _cells(rows):
        result.add_row(*cells)
    return result


def write_results(folder: Path, rows: dict[str, dict[str, Any]]) -> None:
    """ablation.json (the full metrics of each variant) and ablation.md (the table)."""
    with write_aside(folder / "ablation.json") as temporary:
        temporary.write_text(json.dumps(rows, indent=1) + "\n")
    first = rows[FULL]
    lines = [
        "| variant | " + " | ".join(SCORES) + " |",
        "|" + " --- |" * (len(SCORES) + 1),
        *("| " + " | ".join(cells) + " |" for cells in _cells(rows)),
        "",
        f"n = {first['n']} {first['unit']}s, cleaner {first['cleaner']}, tokenizer {first['tokenizer']}.",
        "Brackets: bootstrap interval over studies. Not for clinical decisions.",
    ]
    with write_aside(folder / "ablation.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n")
