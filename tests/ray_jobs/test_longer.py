"""A training run that is made longer, without training.

- more steps or epochs: told with the learning rates at the seam, the record is the longer run's, `_SUCCESS` is gone;
  a kill between these two leaves an output that the same command takes up
- the same number of steps in other words is the same run
- fewer steps are refused, and so is a longer run of which something else differs, or that has no checkpoint
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from small_runs import small_config

from megpt.config import Config
from megpt.errors import InputError
from megpt.output import claim, inspect
from megpt.training.checkpoints import CheckpointStore
from ray_jobs.train.job import Train


@pytest.fixture
def six(small_studies: Path, tiny_llm: Path, tmp_path: Path) -> Config:
    """A finished run of six steps over 22 studies in batches of 8: three steps an epoch."""
    config = small_config(tmp_path / "run", studies=small_studies, llm=tiny_llm)
    with claim(config.output, job="train", identity=job(config).identity(), config=config) as output:
        store = CheckpointStore(output.path / "steps", keep=2)
        meta = {"step": 6, "total_steps": 6, "num_samples": 22, "global_batch_size": 8}
        store.save({"master/x": torch.ones(1)}, meta)
        store.close()
        output.finish(steps=6, studies=22, missing=0, failed=0)
    return config


def job(config: Config, **changes: object) -> Train:
    made = Train(config.overridden({f"train.{key}": value for key, value in changes.items()}))
    made.open()
    return made


def found(config: Config) -> dict[str, object]:
    return yaml.safe_load((Path(str(config.output)) / "megpt.yaml").read_text())["identity"]["train"]


@pytest.mark.parametrize("changes", [{"max_steps": 9}, {"max_steps": None, "epochs": 3}])
def test_more_steps(six: Config, changes: dict[str, object], capfd: pytest.CaptureFixture[str]) -> None:
    folder, longer = Path(str(six.output)), job(six, **changes)
    assert inspect(folder, job="train", identity=longer.identity()).done and longer.has_grown(folder)
    assert longer.plan(folder)
    assert capfd.readouterr().err == (
        "train: 9 steps instead of 6, from step 6 on; the learning rate goes on at 4.40e-04 after 1.00e-06, as in a "
        "run of 9 steps\n"
    )
    assert found(six) == found(six) | changes and not (folder / "_SUCCESS").exists()
    again = job(six, **changes)
    assert again.identity() == again.own and again.plan(folder) and not again.has_grown(folder)
    (folder / "_SUCCESS").write_text("{}")
    assert not again.plan(folder)


def test_killed_between_mark_and_record(six: Config) -> None:
    folder = Path(str(six.output))
    (folder / "_SUCCESS").unlink()
    longer = job(six, max_steps=9)
    assert not inspect(folder, job="train", identity=longer.identity()).done
    assert longer.plan(folder) and found(six)["max_steps"] == 9


def test_as_many_steps_in_other_words(six: Config) -> None:
    folder, same = Path(str(six.output)), job(six, max_steps=None, epochs=2)
    assert inspect(folder, job="train", identity=same.identity()).done
    assert not same.has_grown(folder) and not same.plan(folder) and found(six)["max_steps"] == 6


def test_fewer_steps(six: Config) -> None:
    with pytest.raises(InputError) as refused:
        job(six, max_steps=4).identity()
    assert str(refused.value) == (
        f"{six.output} has 6 steps, and this would be 4\n"
        "  where: train.max_steps: 6 → 4\n"
        "  cause: a run can be made longer, not shorter: its last steps are in its weights\n"
        "  next:  train.max_steps=6 or more; or choose another output=PATH for a shorter run"
    )


@pytest.mark.parametrize("case", ["something else differs", "no checkpoint", "another job"])
def test_what_is_no_longer_run(six: Config, case: str) -> None:
    folder = Path(str(six.output))
    if case == "no checkpoint":
        (folder / "steps/step-00000006/manifest.json").unlink()
    if case == "another job":
        (folder / "megpt.yaml").write_text("job: prepare\nidentity: {}\n")
    other = job(six, max_steps=9, **({"lr": 0.5} if case == "something else differs" else {}))
    with pytest.raises(InputError, match=f"output {folder} exists from another config"):
        inspect(folder, job="train", identity=other.identity())
