"""Train, generate and evaluate each variant with several seeds: what is each part of the model worth?

    megpt ablate --config ablation output=runs/ablation

`ablate.variants` maps a name to dotted overrides (`no_fem: {model.fem: false}`), `ablate.grid` lists values whose
combinations are variants too; the unchanged config runs as `base`. Each of `ablate.seeds` trains every variant once.

Every run is made of ordinary jobs with output folders of their own (OUT/VARIANT/seed-N/checkpoint, …), so the same
command goes on where a killed one stopped. A run that fails is named, and the others go on; the same command tries it
again. OUT/ablation.parquet has a row a run, OUT/summary.parquet a row a variant and score, OUT/index.html both.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megpt.config import Config
from megpt.data.studies import fingerprint as studies_fingerprint
from megpt.data.studies import study_files
from megpt.errors import InputError, MegptError, TooManyFailed
from megpt.output import SUCCESS, Output
from megpt.progress import console, log
from megpt.training.samples import weights_fingerprint
from ray_jobs.ablate.patients import differences_over_patients
from ray_jobs.ablate.plan import BASE, SECTIONS, AblationRun, Plan, Step, plan, takes_given_prompts
from ray_jobs.ablate.results import PAGE, Outcome, Results, read_summary, screen_table
from ray_jobs.evaluate import Evaluate, read_metrics
from ray_jobs.failures import known_failure
from ray_jobs.fit_prompts import FitPrompts
from ray_jobs.generate.job import Generate
from ray_jobs.job import Job
from ray_jobs.train.job import check, prompts_fingerprint
from ray_jobs.train.validate import check_validation


class Ablate(Job):
    name = "ablate"
    reads = ("ablate", "studies", "prompts", "limit", "seed", *SECTIONS)
    needs = ("studies",)

    def open(self) -> None:
        self.planned = plan(self.config)
        studies = str(self.config.studies)
        for split in ("train", self.config.generate.split):
            study_files(studies, split)
        for variant in self.planned.variants:
            check(variant.config)
            check_validation(variant.config.updated(source=None))
        self.given = _given_prompts(self.config, self.planned)

    def inputs(self) -> dict[str, Any]:
        models = [variant.config.model for variant in self.planned.variants]
        files = sorted({name for model in models for name in (model.llm, model.vision_weights)})
        return {
            "studies": studies_fingerprint(str(self.config.studies)),
            "weights": {name: known for name in files if (known := weights_fingerprint(name))},
            "prompts": prompts_fingerprint(self.config.overridden({"model.dynamic_prompt": True}))
            if self.given
            else None,
        }

    def preview(self, folder: Path) -> None:
        self._tell_plan()
        finished = sum((run.folder(Evaluate) / SUCCESS).exists() for run in self.planned.runs)
        log(f"ablate: would do {len(self.planned.runs) - finished} runs under {folder}, {finished} are finished")

    def plan(self, folder: Path) -> bool:
        self._tell_plan()
        return True

    def work(self, folder: Path) -> None:
        """Do every run that is not finished, then compare the variants study by study."""
        self.outcomes: dict[str, Outcome] = {}
        steps = _Steps()
        for number, run in enumerate(self.planned.runs, start=1):
            log(f"ablate: {run.title} ({number} of {len(self.planned.runs)})")
            self.outcomes[run.title] = outcome = steps.through(run)
            if outcome.error:
                log(f"ablate: {run.title}: {outcome.status}: {outcome.error}")
            self._results().write(folder)
        self.patients = dict(self._compared())

    def finish(self, folder: Path) -> dict[str, Any]:
        """Write the tables and the page.

        Raises:
            InputError: every run failed by it.
            TooManyFailed: a run failed. The output stays unfinished, so that the same command tries it again.
        """
        failures = [outcome.raised for outcome in self.outcomes.values() if outcome.raised]
        if len(failures) == len(self.outcomes) and len({str(error) for error in failures}) == 1:
            raise failures[0]
        results = self._results(self.patients)
        results.write(folder)
        if failures:
            console.print(screen_table(results.summary, self.config.evaluate.confidence))
            failed = [title for title, outcome in self.outcomes.items() if outcome.raised]
            raise TooManyFailed(
                f"{len(failed)} of {len(self.outcomes)} runs failed: {_listed(failed)}",
                where=str(folder / PAGE),
                cause=failures[0].what,
                next="repair the cause and run the same command again: it tries the failed runs only",
            )
        poor = [title for title, outcome in self.outcomes.items() if outcome.error]
        return {"runs": len(self.outcomes), "poor": poor}

    def kept(self, folder: Path) -> bool:
        # A step that met a bad input has deleted its own folder; whatever is left there is work.
        return any(folder.glob("*/*/*/*"))

    def tell(self, folder: Path, summary: dict[str, Any]) -> None:
        console.print(screen_table(read_summary(folder), self.config.evaluate.confidence))
        log(f"ablate: open {(folder / PAGE).absolute()}")

    def verdict(self, folder: Path, summary: dict[str, Any]) -> None:
        if poor := summary["poor"]:
            raise TooManyFailed(
                f"in {len(poor)} of {summary['runs']} runs more studies failed than allowed: {_listed(poor)}",
                where=str(folder / PAGE),
                cause="films are missing or damaged; a failed study counts as an empty report",
                next="see failed.parquet in the run's folders; the scores are computed",
            )

    def nothing_to_do(self, output: Output) -> None:
        log(f"{self.name}: {output.path} is finished, nothing to do")
        self.tell(output.path, output.summary())
        self.verdict(output.path, output.summary())

    def _tell_plan(self) -> None:
        log(f"ablate: {self.planned.counts()}")
        for variant in self.planned.variants:
            log(f"ablate: {variant.name}: {'; '.join(variant.changes) or 'the config as it is'}")
        for line in self.planned.done_once():
            log(f"ablate: {line}")
        if self.config.prompts is not None and not self.given:
            dynamic = any(variant.config.model.dynamic_prompt for variant in self.planned.variants)
            reason = "they belong to another encoder" if dynamic else "no variant has model.dynamic_prompt"
            log(f"ablate: no run uses prompts={self.config.prompts}: {reason}")

    def _results(self, patients: dict[str, Any] | None = None) -> Results:
        return Results(self.planned, self.outcomes, self.config, patients or {})

    def _compared(self) -> Iterator[tuple[str, Any]]:
        """Variant → its difference from the base over patients, from the seeds that both have."""
        done = {(run.variant, run.seed): run for run in self.planned.runs if self.outcomes[run.title].metrics}
        for variant in self.planned.variants[1:]:
            seeds = [seed for name, seed in done if name == variant.name and (BASE, seed) in done]
            if seeds:
                folders = [{seed: done[name, seed].folder(Generate) for seed in seeds} for name in (variant.name, BASE)]
                yield variant.name, differences_over_patients(*folders, config=self.config)


class _Steps:
    """Does steps, each once, and remembers how it ended: a run that shares a failed step has failed too."""

    def __init__(self) -> None:
        self._ended: dict[Path, MegptError | None] = {}

    def through(self, run: AblationRun) -> Outcome:
        """All steps of a run. More failed studies than allowed do not end it: they count as empty reports."""
        poor = None
        for step in run.steps:
            if step.folder not in self._ended:
                self._ended[step.folder] = _attempt(step)
            error = self._ended[step.folder]
            if isinstance(error, TooManyFailed):
                poor = poor or error
            elif error is not None:
                return Outcome("failed", error=f"{step.job.name}: {error.what}", raised=error)
        status, text = ("done", None) if poor is None else ("poor", poor.what)
        return Outcome(status, error=text, metrics=read_metrics(run.folder(Evaluate)))


def _attempt(step: Step) -> MegptError | None:
    """Do one step, or find it finished; returns what it failed by."""
    try:
        step.job.run(step.config)
    except Exception as error:
        # The message of an unforeseen error may quote its input, so only its type is kept.
        return known_failure(error, str(step.folder)) or MegptError(
            f"unexpected {type(error).__name__}", where=str(step.folder), next="see the logs of Ray's session"
        )
    return None


def _given_prompts(config: Config, planned: Plan) -> bool:
    """Whether a run uses `config.prompts`.

    Raises:
        InputError: it does, and there is no such folder.
    """
    variants = {variant.name: variant.config for variant in planned.variants}
    used = any(
        variants[run.variant].model.dynamic_prompt and takes_given_prompts(config, variants[run.variant], run.seed)
        for run in planned.runs
    )
    if used and not Path(str(config.prompts)).is_dir():
        raise InputError(
            f"no folder at prompts={config.prompts}", next=f"run {FitPrompts.name} first, or leave `prompts` out"
        )
    return used


def _listed(names: list[str], most: int = 5) -> str:
    return "; ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
