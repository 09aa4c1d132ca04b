"""What every job promises, each promise one test over all jobs.

- a key that the job does not read is refused by name
- a dry run writes nothing; it ends as the run would: with what would be done, or with the same error and exit code
- a bad input, and workers that this machine cannot hold, are exit code 2 with one screen, and nothing is left behind
- files that megpt did not write, and an output that another job writes now, are not touched
- a finished job says so, changes nothing, and has the verdict that it had
- another config on its output, and an input that has changed or grown, are refused with the difference, dry or not
- a finished training run is made longer: its losses up to the old end stay
- of two inputs that exclude each other the one named last is read
- stopped by Ctrl-C (130) or SIGTERM (143) it says so in one line without a traceback; after that, and after SIGKILL,
  the same command gives the result of an uninterrupted run, and what was finished is not done again
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from job_cases import CASES, make_world
from job_promises import check_done, check_refused, contents
from packaged import install_encoder

from megpt.config import load_config
from megpt.output import claim
from ray_jobs.__main__ import JOBS, find, main

RESUMED = "interrupted; run the same command again to resume"
ENCODER = ["model.vision=test_vit", "model.vision_weights=none", "model.image_size=32"]


READ_ONLY = {"status", "report", "serve", "doctor"}
TOO_MANY, WORKERS = "cluster.cpus_per_worker=1000", ("fit-prompts", "train", "generate", "ablate", "run", "demo")
RUN = [pytest.param(name, marks=pytest.mark.slow) for name, case in CASES.items() if case.changed[0]]
every_job = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_llm: Path, tiny_checkpoint: Path) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder, tiny_llm, tiny_checkpoint)
    return folder


@pytest.fixture(autouse=True)
def _here(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)


@pytest.fixture(autouse=True)
def _packages(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `pretrained` takes is not among the packages that tests need."""
    if "[pretrained" in request.node.name or "-pretrained" in request.node.name:
        monkeypatch.setattr("megpt.model.pretrained.ENCODER", install_encoder(tmp_path / "packages", monkeypatch))


@dataclass
class Run:
    code: int
    error: str
    """Everything on standard error."""

    @property
    def screen(self) -> str:
        return self.error[self.error.find("error: ") :] if "error: " in self.error else ""


def run(capfd: pytest.CaptureFixture[str], name: str, *more: str, output: str = "out") -> Run:
    capfd.readouterr()
    code = main([name, *CASES[name].arguments, f"output={output}", *more])
    return Run(code, capfd.readouterr().err)


def test_every_job_is_here() -> None:
    assert set(CASES) | READ_ONLY == set(JOBS)
    assert all(find(name).name == name for name in JOBS)


@every_job
def test_an_unread_key_is_refused(name: str, world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done, key = run(capfd, name, CASES[name].unread, output="unread"), CASES[name].unread.partition("=")[0]
    assert done.code == 2 and done.error.startswith(f"error: {name} does not read {key}\n  where: the command line\n")
    assert not (world / "unread").exists()


@every_job
def test_bad_input_leaves_nothing_behind(name: str, world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    argument, text = CASES[name].bad
    dry = run(capfd, name, argument, "--dry-run", output="bad")
    wet = run(capfd, name, argument, output="bad")
    assert (dry.code, wet.code) == (2, 2), (dry.error, wet.error)
    assert wet.screen.startswith(f"error: {text}") and wet.screen == dry.screen
    assert "Traceback" not in wet.error and len(wet.screen.splitlines()) <= 5
    assert not (world / "bad").exists()


@every_job
def test_a_dry_run_knows_what_cannot_be_placed(name: str, world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = run(capfd, name, TOO_MANY, "--dry-run", output="unplaced")
    if name in WORKERS:
        assert done.code == 2 and done.screen.startswith("error: cluster.cpus_per_worker = 1000 × 1 workers, but ")
        assert done.screen.endswith("\n  next:  set a smaller cluster.cpus_per_worker, or add a node\n")
    else:  # one CPU for each task is enough
        assert done.code == 0
    assert not (world / "unplaced").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKERS)
def test_workers_that_cannot_be_placed(
    name: str, world: Path, ray_cluster: None, capfd: pytest.CaptureFixture[str]
) -> None:
    dry, wet = (run(capfd, name, TOO_MANY, *more, output="unplaced") for more in (["--dry-run"], []))
    assert wet.code == 2 and wet.screen == dry.screen
    assert not (world / "unplaced").exists()


@every_job
def test_a_dry_run_writes_nothing(name: str, world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = contents(world)
    done = run(capfd, name, "--dry-run", output="dry")
    assert done.code == 0, done.error
    assert contents(world) == before and not (world / "dry").exists()


@every_job
@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry"])
def test_what_is_not_its_own_is_not_touched(
    name: str, dry: tuple[str, ...], world: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (world / "foreign").mkdir(exist_ok=True)
    (world / "foreign" / "thesis.txt").write_text("x")
    before = contents(world / "foreign")
    done = run(capfd, name, *dry, output="foreign")
    assert done.code == 2 and done.screen.startswith("error: output foreign exists and was not written by megpt\n")
    assert contents(world / "foreign") == before
    busy = f"busy-{name}{''.join(dry)}"
    with claim(busy, job=name, identity={}, config=load_config()):
        done = run(capfd, name, *dry, output=busy)
    assert done.code == 2 and done.screen.startswith(f"error: another job is writing {busy} now\n")
    done = run(capfd, name, *dry, output="archive/manifest.csv/below")
    assert done.code == 2 and done.screen.startswith("error: archive/manifest.csv/below cannot be written\n")


@pytest.fixture(scope="module")
def finished(world: Path, ray_cluster: None) -> Callable[[str], Path]:
    """The output of a job that nothing happened to."""

    def finish(name: str) -> Path:
        folder = world / f"finished-{name}"
        if not folder.exists():
            assert main([name, *CASES[name].arguments, f"output={folder.name}"]) == 0
        return folder

    return finish


@pytest.mark.parametrize("name", RUN)
def test_finished_and_changed(
    name: str, world: Path, finished: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    output, case = Path(finished(name).name), CASES[name]
    assert json.loads((output / "_SUCCESS").read_text())
    check_done(capfd, name, [*case.arguments], output)
    argument, difference = case.changed
    check_refused(capfd, name, [*case.arguments, argument], output, difference)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.spoil])
def test_an_input_that_has_changed(
    name: str, world: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, here = CASES[name], tmp_path / "world"
    shutil.copytree(world, here, symlinks=True, ignore=shutil.ignore_patterns("finished-*", "stopped-*"))
    monkeypatch.chdir(here)
    paths = [word for word in case.arguments if "=" not in word]
    job = find(name)(load_config(None, [*(w for w in case.arguments if w not in paths), "output=out"]), *paths)
    job.open()
    with claim("out", job=name, identity=job.identity(), config=job.config):
        pass  # stopped as soon as it had begun
    assert case.spoil
    case.spoil(here)
    check_refused(capfd, name, [*case.arguments], Path("out"), "")


@pytest.mark.parametrize(("name", "first"), [("generate", "studies"), ("train", "source")])
def test_what_is_named_last_is_read(name: str, first: str, world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    other = {"studies": "source", "source": "studies"}[first]
    paths = {"studies": "studies", "source": "nowhere"}
    (world / "both.yaml").write_text(f"{first}: {paths[first]}\n")
    given = [word for word in CASES[name].arguments if not word.startswith(("studies=", "source="))]
    for last, code in ((other, int(other == "source") * 2), (first, int(first == "source") * 2)):
        words = [f"{key}={paths[key]}" for key in sorted(paths, key=lambda key: key == last)]
        done = main([name, "--config", "both.yaml", *given, *words, "output=last", "--dry-run"])
        assert done == code, capfd.readouterr().err


STOPS = {
    "prepare": signal.SIGKILL,
    "fit-prompts": signal.SIGTERM,
    "train": signal.SIGINT,
    "generate": signal.SIGKILL,
    "evaluate": signal.SIGINT,
}
"""import-checkpoint is not here: its work is done in milliseconds."""
IN_FLIGHT = 2
"""Files that may have been begun when a job was stopped, and are written again."""


@pytest.mark.slow
@pytest.mark.parametrize("name", STOPS)
def test_stopped_and_run_again(
    name: str, world: Path, finished: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    whole, output, case, stop = finished(name), world / f"stopped-{name}", CASES[name], STOPS[name]
    command = [sys.executable, "-m", "ray_jobs", name, *case.arguments, f"output={output.name}"]
    process = subprocess.Popen(command, cwd=world, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not list(output.glob(case.began)):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.005)
    process.send_signal(stop)
    if stop == signal.SIGKILL:
        process.wait()  # its workers, which end soon after it, hold the other end of its standard error
    else:
        error = process.communicate(timeout=120)[1]
        assert process.returncode == 128 + stop, error
        assert error.splitlines()[-1] == RESUMED and "Traceback" not in error, error
    assert not (output / "_SUCCESS").exists()
    kept = contents(output, *case.results)

    assert run(capfd, name, output=output.name).code == 0
    found, expected = contents(output, *case.results), contents(whole, *case.results)
    assert {name: text for name, (_, text) in found.items()} == {name: text for name, (_, text) in expected.items()}
    assert found and sum(found[path] != kept[path] for path in kept) <= IN_FLIGHT
    assert not list(output.rglob("*.tmp"))


@pytest.mark.slow
def test_a_finished_run_is_made_longer(
    world: Path, finished: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished("train"), world / "longer")
    dry = run(capfd, "train", "train.max_steps=14", "--dry-run", output="longer")
    wet = run(capfd, "train", "train.max_steps=14", output="longer")
    said = "14 steps instead of 12, from step 12 on; the learning rate goes on at "
    assert (dry.code, wet.code) == (0, 0), dry.error + wet.error
    assert f"train: would be {said}" in dry.error and f"train: {said}" in wet.error
    logs = [(world / name / "log.jsonl").read_text().splitlines() for name in ("finished-train", "longer")]
    assert logs[1][:12] == logs[0] and [json.loads(row)["step"] for row in logs[1][12:]] == [13, 14]
    assert json.loads((world / "longer/_SUCCESS").read_text())["steps"] == 14
    assert "nothing to do" in run(capfd, "train", "train.max_steps=14", output="longer").error
    assert run(capfd, "train", output="longer").code == 2
