"""The jobs of the command line, known without importing them, and what each reads."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from megpt.settings import Leaf


class Entry(NamedTuple):
    """A job of the command line, known without importing it."""

    home: str
    """module:class"""
    text: str
    arguments: tuple[str, ...] = ()
    """Names of its positional arguments."""
    several: bool = False
    """Whether the last of them takes any number of words."""
    section: str = ""
    """The section whose settings may be named without it: `full=true` for `export.full=true`."""
    extras: tuple[str, ...] = ()
    """Extras of megpt that it needs."""
    json: bool = False
    """Whether it takes `--json`."""
    watch: bool = False
    """Whether it takes `--watch`."""


JOBS = {
    "prepare": Entry(
        "ray_jobs.prepare:Prepare", "archive → studies/: read, check and shard an archive of films and reports"
    ),
    "fit-prompts": Entry(
        "ray_jobs.fit_prompts:FitPrompts",
        "studies/ → prompts/: cluster the films, one readable prompt per cluster",
        extras=("train",),
    ),
    "train": Entry(
        "ray_jobs.train.job:Train", "studies/ + prompts/ → checkpoint/: DeepSpeed ZeRO on Ray Train", extras=("train",)
    ),
    "generate": Entry(
        "ray_jobs.generate.job:Generate", "archive or studies/ + checkpoint/ → predictions/: sharded batch generation"
    ),
    "evaluate": Entry(
        "ray_jobs.evaluate:Evaluate", "predictions/ → metrics.json, per_study.parquet, index.html", extras=("metrics",)
    ),
    "compare": Entry(
        "ray_jobs.compare:Compare",
        "predictions/ A B … → compare.json, per_study.parquet, index.html: differences, and whether they may be chance",
        ("paths",),
        several=True,
        extras=("metrics",),
    ),
    "ablate": Entry(
        "ray_jobs.ablate.job:Ablate",
        "train, generate and evaluate variants over seeds; one table and one page",
        extras=("train", "metrics"),
    ),
    "run": Entry(
        "ray_jobs.run:WholeRun",
        "archive → everything: prepare, fit-prompts, train, generate, evaluate",
        extras=("train", "metrics"),
    ),
    "demo": Entry(
        "ray_jobs.demo.job:Demo", "the same on drawn films, in minutes, without a GPU", extras=("train", "metrics")
    ),
    "language-model": Entry(
        "ray_jobs.language_model:LanguageModel",
        "studies/ → llm/: a small language model, fitted to training reports",
    ),
    "pretrained": Entry(
        "ray_jobs.pretrained:Pretrained",
        "installed packages → a language model's folder and an encoder's weights, without a hub",
    ),
    "import-checkpoint": Entry(
        "ray_jobs.import_checkpoint:ImportCheckpoint",
        "a reference .pth → checkpoint/: R2GenGPT and MeGPT weights",
        ("file",),
    ),
    "export": Entry(
        "ray_jobs.export:Export",
        "checkpoint/ → a folder to share: self-contained, merged, in another number format",
        section="export",
    ),
    "report": Entry(
        "ray_jobs.report:Report",
        "the films of one study → its report on the screen: no cluster, no output folder",
        ("films",),
        several=True,
        json=True,
    ),
    "serve": Entry(
        "ray_jobs.serve.job:Serve",
        "films over HTTP → reports: a page and an API on Ray Serve, for this machine unless a token is set",
        section="serve",
        extras=("serve",),
    ),
    "status": Entry(
        "ray_jobs.status:Status",
        "what an output folder holds: done, failed, left, rate",
        ("folder",),
        json=True,
        watch=True,
    ),
    "doctor": Entry("ray_jobs.doctor:Doctor", "look at every node, and at what a job would upload, before a run"),
}
GROUP = "megpt.jobs"
"""Entry points of jobs from elsewhere: NAME = "module:class", a subclass of `ray_jobs.job.Job`."""
ALWAYS = ("output", "cluster")
"""What a job reads that reads any setting, unless it has an `always` of its own."""


def jobs() -> dict[str, Entry]:
    """All jobs: megpt's own, and those that installed packages add."""
    return {point.name: Entry(point.value, f"from {point.value}") for point in entry_points(group=GROUP)} | JOBS


def find(name: str) -> Any:
    """The class of a job.

    Raises:
        InputError: packages of an extra that it needs are not installed.
    """
    entry = jobs()[name]
    module, _, attribute = entry.home.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError:
        from ray_jobs.extras import require_extras

        require_extras(f"`megpt {name}`", entry.extras)
        raise


def reads_of(name: str) -> tuple[str, ...]:
    """The config keys and sections that a job reads."""
    job = find(name)
    reads = (*job.reads, *(("options",) if own_settings(name) else ()))
    return (*getattr(job, "always", ALWAYS), *reads) if reads else ()


def own_settings(name: str) -> list[Leaf]:
    """The settings that a job from another package declares, as `JOB.key`."""
    if name in JOBS:
        return []
    from megpt.settings import leaves

    return list(leaves(find(name).settings, f"{name}."))
