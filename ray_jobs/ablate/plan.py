"""Which runs an ablation has, and which work they share.

    planned = plan(config)
    planned.runs[0].steps       # fit-prompts, train, generate, evaluate of base with the first seed

A run is a variant with a seed. Each of its steps is an ordinary job with an output folder of its own. Two steps whose
settings, and those of the steps before them, give the same result are one step: variants that differ in
`generate.num_beams` alone share a checkpoint, and variants with the same encoder share their prompts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from megpt.config import Config
from megpt.config.reading import keys_of
from megpt.config.run import SETTINGS
from megpt.errors import InputError
from megpt.settings import covers, difference
from ray_jobs.evaluate import Evaluate
from ray_jobs.fit_prompts import FitPrompts
from ray_jobs.generate.job import Generate, held_out
from ray_jobs.job import Job
from ray_jobs.train.job import Train

BASE = "base"
"""The unchanged config, from which the others are subtracted."""
SECTIONS = ("data", "model", "fit_prompts", "train", "generate", "evaluate")
"""What a variant may change, but for `SAME`."""
SAME = ("data.section", "data.cleaner", "generate.split", "evaluate")
"""What all variants have in common: scores of other references, studies or recipes cannot be compared."""
MOST_RUNS = 1000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")


@dataclass(frozen=True)
class Variant:
    """A config under a name; `changes` has a line for each setting that differs from the base."""

    name: str
    config: Config
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """One job with its output folder; `owner` is the run under whose name the folder lies."""

    job: type[Job]
    folder: Path
    config: Config
    owner: str


@dataclass(frozen=True)
class AblationRun:
    """A variant with one seed: its own steps, and those it shares with an earlier run."""

    variant: str
    seed: int
    steps: tuple[Step, ...]

    @property
    def title(self) -> str:
        return f"{self.variant}, seed {self.seed}"

    def folder(self, job: type[Job]) -> Path:
        """Where the output of one of its jobs is."""
        return next(step.folder for step in self.steps if step.job is job)

    @property
    def shared(self) -> list[Step]:
        """Steps that an earlier run does."""
        return [step for step in self.steps if step.owner != self.title]


@dataclass(frozen=True)
class Plan:
    """All variants, and all runs in their order: every variant with the first seed, then with the next."""

    variants: list[Variant]
    runs: list[AblationRun]
    merged: dict[str, str] = field(default_factory=dict)
    """Combination of the grid → the variant that it equals, and is therefore not run again."""

    @cached_property
    def steps(self) -> dict[str, int]:
        """Job → how often it runs."""
        counts = Counter({step.folder: step.job.name for run in self.runs for step in run.steps}.values())
        return {job.name: counts[job.name] for job in (FitPrompts, Train, Generate, Evaluate) if counts[job.name]}

    def counts(self) -> str:
        """How many runs there are, and how often each job runs for them."""
        seeds = sorted({run.seed for run in self.runs})
        counts = ", ".join(f"{name} {'once' if n == 1 else f'{n} times'}" for name, n in self.steps.items())
        return (
            f"{len(self.runs)} runs: {len(self.variants)} variants × {len(seeds)} seed{'s' if len(seeds) > 1 else ''} "
            f"({', '.join(map(str, seeds))}); {counts}"
        )

    def done_once(self) -> list[str]:
        """What is not done again, in words. A step's result depends on the seed, so sharing runs have the same one."""
        shared: dict[tuple[str, str], dict[str, None]] = {}
        for run in self.runs:
            for step in run.shared:
                shared.setdefault((run.variant, _variant_of(step)), {})[step.folder.name] = None
        return [
            *(f"{name} equals {other} and is not run again" for name, other in self.merged.items()),
            *(f"{one} shares {', '.join(names)} with {owner}, seed by seed" for (one, owner), names in shared.items()),
        ]


def plan(config: Config) -> Plan:
    """The runs of `config.ablate`.

    Raises:
        InputError: nothing to compare, too many runs, a name that cannot be a folder, an override that the config
            refuses or that would make scores incomparable, or a named variant that changes nothing.
    """
    seeds = config.ablate.seeds
    variants = [Variant(BASE, config), *_named(config)]
    cells = list(_cells(config, {variant.name for variant in variants}))
    if len(variants) + len(cells) == 1:
        raise InputError(
            "`ablate.variants` and `ablate.grid` are empty",
            cause="an ablation compares the config with at least one variant of it",
            next="add `ablate: {variants: {no_fem: {model.fem: false}}}` to the config",
        )
    work = _Work(config)
    kept: list[Variant] = []
    merged: dict[str, str] = {}
    for variant in [*variants, *cells]:
        twin = work.twin(variant, seeds[0])
        if twin is None:
            kept.append(variant)
        elif variant in cells:
            merged[variant.name] = twin
        else:
            raise InputError(
                f"ablate.variants: {variant.name!r} gives the same result as {twin!r}",
                cause="; ".join(variant.changes) or "it changes no setting",
                next="delete it, or change a setting that a result depends on",
            )
    if len(kept) == 1:
        raise InputError("ablate.grid: every combination equals the base", next="add values that differ from it")
    runs = [AblationRun(variant.name, seed, work.steps(variant, seed)) for seed in seeds for variant in kept]
    return Plan(kept, runs, merged)


def _named(config: Config) -> Iterator[Variant]:
    for name, changes in config.ablate.variants.items():
        if name == BASE and not changes:
            continue
        if name == BASE or not _NAME.fullmatch(name):
            raise InputError(
                f"ablate.variants: {name!r} cannot name a variant",
                cause=f"{BASE!r} is the unchanged config" if name == BASE else "it names a folder",
                next="choose another name, of letters, digits and . _ + -",
            )
        yield _variant(config, name, changes, where=f"ablate.variants.{name}")


def _cells(config: Config, names: set[str]) -> Iterator[Variant]:
    """A variant for each combination of the grid."""
    grid, taken = config.ablate.grid, set(names)
    count = len(config.ablate.seeds)
    for values in grid.values():
        count *= len(values)
    if count > MOST_RUNS:
        raise InputError(f"ablate.grid means {count} runs, more than {MOST_RUNS}", next="leave values or seeds out")
    last = Counter(key.rpartition(".")[2] for key in grid)
    for values in product(*grid.values()) if grid else ():
        changes = dict(zip(grid, values, strict=True))
        parts = [(k.rpartition(".")[2] if last[k.rpartition(".")[2]] == 1 else k, v) for k, v in changes.items()]
        text = "_".join(f"{key}-{json.dumps(value, default=str)}" for key, value in parts)
        stem = re.sub(r"[^A-Za-z0-9._+-]+", "", text)[:90]
        name = next(n for k in range(len(taken) + 2) if (n := f"{stem}-{k}" if k else stem) not in taken)
        taken.add(name)
        yield _variant(config, name, changes, where="ablate.grid")


def _variant(config: Config, name: str, changes: Mapping[str, Any], *, where: str) -> Variant:
    for key, value in changes.items():
        for setting in keys_of(key, value, SETTINGS):
            inside = any(covers(section, setting) for section in SECTIONS)
            if inside and not any(covers(same, setting) for same in SAME):
                continue
            raise InputError(
                f"{setting} cannot differ between variants",
                where=where,
                cause="scores of other references or recipes cannot be compared"
                if inside
                else f"a variant changes settings of {', '.join(SECTIONS)}",
                next="list the seeds in ablate.seeds" if setting == "seed" else f"set {setting} for all of them",
            )
    try:
        own = config.overridden(dict(changes))
    except InputError as error:
        raise InputError(error.what, where=where, cause=error.cause, next=error.next) from None
    return Variant(name, own, tuple(difference(config.model_dump(mode="json"), own.model_dump(mode="json"))))


class _Work:
    """Steps by what their results depend on."""

    def __init__(self, config: Config):
        self.config = config
        self.root = Path(str(config.output))
        self._by_result: dict[str, Step] = {}

    def twin(self, variant: Variant, seed: int) -> str | None:
        """The earlier variant that has the same result; None, with this one's steps planned, where there is none."""
        last = self.steps(variant, seed)[-1]
        return None if last.owner == _title(variant, seed) else _variant_of(last)

    def steps(self, variant: Variant, seed: int) -> tuple[Step, ...]:
        config = held_out(variant.config)
        config = config.updated(seed=seed, source=None, references=None, training=None, prompts=None)
        steps: list[Step] = []
        result = ""

        def add(job: type[Job], folder: str, **inputs: Any) -> Step:
            nonlocal result
            own = self.root / variant.name / f"seed-{seed}" / folder
            result = _digest(job.name, settings_of(job, config), result)
            step = Step(job, own, config.updated(output=str(own), **inputs), _title(variant, seed))
            steps.append(self._by_result.setdefault(result, step))
            return steps[-1]

        prompts = None
        if config.model.dynamic_prompt:
            given = takes_given_prompts(self.config, variant.config, seed)
            prompts = str(self.config.prompts) if given else str(add(FitPrompts, "prompts").folder)
        result = _digest(prompts, result)
        checkpoint = add(Train, "checkpoint", prompts=prompts).folder
        predictions = add(Generate, "predictions", checkpoint=str(checkpoint)).folder
        add(Evaluate, "evaluation", predictions=str(predictions))
        return tuple(steps)


def takes_given_prompts(config: Config, variant: Config, seed: int) -> bool:
    """Whether a run can use the prompts that `config.prompts` names: they belong to the encoder that made them.

    An encoder without weights of its own is drawn from the seed, so that each seed has another.
    """
    if config.prompts is None:
        return False
    drawn = config.model.vision_weights == "none"
    own, given = variant.updated(seed=seed if drawn else config.seed), config
    return settings_of(FitPrompts, own) == settings_of(FitPrompts, given)


def settings_of(job: type[Job], config: Config) -> dict[str, Any]:
    """The settings that a job's result depends on, without its inputs, which may not be there yet."""
    return type(job.__name__, (job,), {"inputs": lambda self: {}})(config).identity()


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _variant_of(step: Step) -> str:
    return step.owner.rpartition(",")[0]


def _title(variant: Variant, seed: int) -> str:
    return AblationRun(variant.name, seed, ()).title
