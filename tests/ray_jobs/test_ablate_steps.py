"""How the steps of an ablation end.

- a shared step is done once; where it fails, each run that shares it has failed, and it is not tried again
- of an unforeseen error only the type is told, since its text may quote a report
- more failed studies than allowed do not end a run: it has scores, and is poor
- a finished ablation with poor runs has exit code 3; one in which every run met the same bad input is that error, and
  leaves nothing behind unless a step holds work
- the reports of all seeds are compared over patients: a variant that writes the same differs by 0
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
from job_cases import write_predictions

from megpt.config import Config, load_config
from megpt.errors import InputError, MegptError, TooManyFailed
from megpt.output import write_json
from ray_jobs.ablate.job import Ablate, _Steps
from ray_jobs.ablate.patients import differences_over_patients
from ray_jobs.ablate.plan import AblationRun, Step, plan
from ray_jobs.ablate.results import Outcome
from ray_jobs.evaluate import Evaluate
from ray_jobs.job import Job


def ending(name: str, error: Exception | None = None) -> Any:
    """A job that ends so; `done` lists the folders it was run for."""

    class Ending(Job):
        done: ClassVar[list[str]] = []

        @classmethod
        def run(cls, config: Config, *arguments: str, dry_run: bool = False) -> int:
            cls.done.append(str(config.output))
            if error:
                raise error
            return 0

    Ending.name = name
    return Ending


def step(job: Any, folder: Path, owner: str = "base, seed 1") -> Step:
    return Step(job, folder, load_config(None, [f"output={folder}"]), owner)


def test_a_shared_step_is_done_once(tmp_path: Path) -> None:
    train = ending("train", MegptError("no space left"))
    shared, steps = step(train, tmp_path / "checkpoint"), _Steps()
    outcomes = [steps.through(AblationRun(name, 1, (shared,))) for name in ("base", "beams")]
    assert [(o.status, o.error) for o in outcomes] == [("failed", "train: no space left")] * 2
    assert train.done == [str(tmp_path / "checkpoint")]


def test_an_unforeseen_error_is_its_type(tmp_path: Path) -> None:
    run = AblationRun("base", 1, (step(ending("train", KeyError("Mrs Smith has effusions")), tmp_path / "x"),))
    outcome = _Steps().through(run)
    assert (outcome.status, outcome.error) == ("failed", "train: unexpected KeyError")
    assert "Smith" not in str(outcome.raised)


def test_too_many_failed_studies_do_not_end_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(tmp_path / "evaluation" / "metrics.json", {"n": 5, "scores": {"ROUGE_L": 0.5}})
    monkeypatch.setattr(Evaluate, "run", ending("evaluate").run)
    generate = ending("generate", TooManyFailed("4 of 5 studies failed"))
    run = AblationRun("base", 1, (step(generate, tmp_path / "p"), step(Evaluate, tmp_path / "evaluation")))
    outcome = _Steps().through(run)
    assert (outcome.status, outcome.error, outcome.raised) == ("poor", "4 of 5 studies failed", None)
    assert outcome.metrics == {"n": 5, "scores": {"ROUGE_L": 0.5}}


def ablation(folder: Path) -> Ablate:
    config = load_config(None, [f"output={folder}", "studies=s", "ablate.variants={lr: {train.lr: 0.5}}"])
    job = Ablate(config)
    job.planned, job.patients = plan(config), {}
    return job


def test_poor_runs_are_exit_code_3(tmp_path: Path) -> None:
    job, metrics = ablation(tmp_path), {"scores": {"ROUGE_L": 0.5}, "baselines": {}}
    job.outcomes = {run.title: Outcome("done", metrics=metrics) for run in job.planned.runs}
    job.verdict(tmp_path, job.finish(tmp_path))
    job.outcomes["lr, seed 2"] = Outcome("poor", error="4 of 5 studies failed", metrics=metrics)
    with pytest.raises(TooManyFailed, match=r"in 1 of 6 runs more studies failed than allowed: lr, seed 2"):
        job.verdict(tmp_path, job.finish(tmp_path))


def test_the_same_bad_input_in_every_run(tmp_path: Path) -> None:
    job, error = ablation(tmp_path), InputError("no model at x")
    job.outcomes = {run.title: Outcome("failed", error=error.what, raised=error) for run in job.planned.runs}
    with pytest.raises(InputError, match="no model at x"):
        job.finish(tmp_path)
    (tmp_path / "base" / "seed-1").mkdir(parents=True)
    assert not job.kept(tmp_path)
    (tmp_path / "base" / "seed-1" / "checkpoint" / "steps").mkdir(parents=True)
    assert job.kept(tmp_path)
    job.outcomes["lr, seed 2"] = Outcome("failed", error="another", raised=MegptError("another"))
    with pytest.raises(TooManyFailed, match=r"6 of 6 runs failed: base, seed 1; .* and 1 more"):
        job.finish(tmp_path)


@pytest.mark.slow
def test_a_variant_that_writes_the_same_differs_by_nothing(tmp_path: Path, ray_cluster: None) -> None:
    pytest.importorskip("megpt.evaluation.compare")
    folders = {}
    for name in ("base", "variant"):
        folders[name] = {seed: tmp_path / name / str(seed) for seed in (1, 2)}
        for folder in folders[name].values():
            write_predictions(folder)
    config = load_config(None, ["evaluate.meteor=false", "evaluate.bootstrap=20"])
    found = differences_over_patients(folders["variant"], folders["base"], config=config)
    assert isinstance(found, dict)
    assert {key: found["ROUGE_L"][key] for key in ("difference", "interval", "p")} == {
        "difference": 0.0,
        "interval": [0.0, 0.0],
        "p": 1.0,
    }
    write_json(folders["base"][1] / "other", {})
    (folders["base"][1] / "_SUCCESS").unlink()
    said = differences_over_patients(folders["variant"], folders["base"], config=config)
    assert isinstance(said, str) and "are not finished" in said
