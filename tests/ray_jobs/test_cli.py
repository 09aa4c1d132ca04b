"""The command line: its surface frozen, its errors one screen each, its exit codes kept.

- The jobs, their options and positionals are exactly these; `--help` and `--version` answer without starting anything.
- Options and overrides come in any order; `--print-config` prints what `--config` accepts.
- Bad input is exit code 2, one screen, no traceback, nothing written: no job, an unknown job (the nearest is named), an
  unknown option, an unknown key, a missing archive, an archive without a readable study, an output from another config,
  zero GPUs asked as one, `--limit 0`, a folder as config, a relative output inside a submitted job, an object store.
- A full disk is exit code 1, and the next run works.
- An unforeseen error shows its type and never its message, which may quote a report; `--debug` shows all.
- Ctrl-C says how to resume.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from megpt import __version__
from megpt.config import Config, load_config
from megpt.errors import InputError, TooManyFailed
from megpt.output import claim
from ray_jobs.__main__ import JOBS, POSITIONAL, main, parser

SURFACE = {
    "prepare",
    "fit-prompts",
    "train",
    "generate",
    "evaluate",
    "compare",
    "ablate",
    "demo",
    "import-checkpoint",
    "status",
}
OPTIONS = {"-h", "--help", "--config", "--limit", "--print-config", "--dry-run", "--debug"}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, (captured.out + captured.err).strip()


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A job of the test's own under the name `evaluate`: `job.run` is what the command runs."""
    module = ModuleType("ray_jobs.evaluate")
    monkeypatch.setitem(sys.modules, "ray_jobs.evaluate", module)
    return module


def test_the_surface() -> None:
    assert set(JOBS) == SURFACE
    assert POSITIONAL == {"import-checkpoint": "file", "status": "folder", "compare": "paths"}
    choices = parser()._subparsers._group_actions[0].choices
    for name, sub in choices.items():
        assert {option for action in sub._actions for option in action.option_strings} == OPTIONS, name
        positional = [action.dest for action in sub._actions if not action.option_strings]
        assert positional == ([POSITIONAL[name]] if name in POSITIONAL else []) + ["overrides"]


def test_every_job_exists_and_takes_a_config() -> None:
    for name in SURFACE:
        assert find_spec(f"ray_jobs.{name.replace('-', '_')}"), name


def test_version_and_help_need_no_cluster() -> None:
    code = "import sys; from ray_jobs.__main__ import main; main(sys.argv[1:])"
    checked = "import atexit; atexit.register(lambda: print('ray' in sys.modules, 'torch' in sys.modules))"
    for argument, text in (("--version", f"megpt {__version__}"), ("--help", "import-checkpoint")):
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; {checked}; {code}", argument], capture_output=True, text=True
        )
        assert done.returncode == 0 and text in done.stdout
        assert done.stdout.endswith("False False\n")


def test_print_config_is_a_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["train.lr=3e-4", "--print-config", "seed=1", "--limit", "5", "model.fem=false"]
    code, text = run(capsys, "train", *arguments)
    assert code == 0
    (tmp_path / "a.yaml").write_text(text)
    assert load_config(tmp_path / "a.yaml") == load_config(None, ["train.lr=3e-4", "seed=1", "limit=5", "model.fem=no"])
    assert yaml.safe_load(text)["train"]["lr"] == 3e-4


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "error: the following arguments are required: JOB\n  next:  megpt --help"),
        (["genrate"], "error: unknown job 'genrate'\n  next:  did you mean generate?"),
        (["train", "--foo"], "error: cannot read '--foo'\n  cause: an override is section.key=value"),
        (["train", "runs/x"], "error: cannot read 'runs/x'\n  cause: an override is section.key=value"),
        (["train", "--limit", "few"], "error: argument --limit: invalid int value: 'few'\n  next:  megpt --help"),
        (["train", "--limit", "0"], "error: limit = 0: Input should be greater than 0\n  where: the command line"),
        (
            ["train", "train.learning_rate=1"],
            "error: unknown key 'train.learning_rate'\n  where: the command line\n  next:  did you mean train.lr?",
        ),
        (["status"], "error: the following arguments are required: folder"),
    ],
)
def test_a_bad_command(capsys: pytest.CaptureFixture[str], arguments: list[str], text: str) -> None:
    code, shown = run(capsys, *arguments)
    assert code == 2 and shown.startswith(text) and len(shown.splitlines()) <= 5


def test_a_folder_as_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, text = run(capsys, "train", "--config", str(tmp_path))
    assert code == 2 and text.startswith(f"error: {tmp_path} cannot be read as YAML") and "Is a directory" in text


def test_a_missing_archive(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, text = run(capsys, "prepare", f"source={tmp_path / 'nowhere'}", f"output={out}")
    assert code == 2 and not out.exists()
    assert str(tmp_path / "nowhere") in text and "Traceback" not in text and len(text.splitlines()) <= 5


def test_an_archive_without_a_readable_study(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    archive, out = tmp_path / "archive", tmp_path / "out"
    archive.mkdir()
    (archive / "notes.txt").write_text("no film here")
    code, text = run(capsys, "prepare", f"source={archive}", f"output={out}")
    assert code == 2 and not (out / "_SUCCESS").exists()
    assert str(archive) in text and "Traceback" not in text and len(text.splitlines()) <= 5


def test_an_output_from_another_config(capsys: pytest.CaptureFixture[str], tmp_path: Path, job: ModuleType) -> None:
    def take(config: Config, *, dry_run: bool = False) -> int:
        with claim(config.output, job="evaluate", identity={"seed": config.seed}, config=config):
            return 0

    job.run = take
    out = tmp_path / "out"
    assert run(capsys, "evaluate", "seed=1", f"output={out}") == (0, "")
    before = {p: p.read_bytes() for p in out.iterdir()}
    assert run(capsys, "evaluate", "seed=2", f"output={out}") == (
        2,
        f"error: output {out} exists from another config\n"
        "  where: seed: 1 → 2\n"
        "  cause: mixing two configs in one output would give numbers that belong to neither\n"
        "  next:  choose another output=PATH, or delete the folder",
    )
    assert {p: p.read_bytes() for p in out.iterdir()} == before


def test_zero_gpus_asked_as_one(capsys: pytest.CaptureFixture[str], job: ModuleType, ray_cluster: None) -> None:
    from ray_jobs.runtime import cluster, require_resources

    def place(config: Config, *, dry_run: bool = False) -> int:
        with cluster(config.cluster):
            require_resources(config.cluster)
        return 0

    job.run = place
    assert run(capsys, "evaluate", "cluster.gpus_per_worker=1") == (
        2,
        "error: cluster.gpus_per_worker = 1 × 1 workers, but the cluster has 0 GPUs\n"
        "  where: this machine\n"
        "  cause: no GPU is there\n"
        "  next:  set cluster.gpus_per_worker=0",
    )


def test_a_full_disk_is_exit_code_1(capsys: pytest.CaptureFixture[str], job: ModuleType) -> None:
    def fill(config: Config, *, dry_run: bool = False) -> int:
        Path("/dev/full").write_text("x")
        return 0

    job.run = fill
    code, text = run(capsys, "evaluate", "output=/dev/shm/x")
    assert code == 1 and text.startswith("error: no space left to write /dev/shm/x\n  where: ")
    assert text.endswith("  next:  free space and run the same command again: it resumes")


@pytest.mark.parametrize("output", ["runs/x", "x", "./x", "../x"])
def test_a_relative_output_in_a_submitted_job(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    code, text = run(capsys, "train", f"output={output}")
    assert (code, text) == (
        2,
        f"error: output = {output!r} is relative inside a submitted job\n"
        f"  where: {Path.cwd()}, the uploaded copy that Ray deletes after the job\n"
        "  cause: the results would be lost with it\n"
        "  next:  choose an absolute path on storage that every node mounts: output=/shared/…",
    )


def test_an_object_store_as_output(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = run(capsys, "train", "output=s3://bucket/x")
    assert code == 2 and text.startswith("error: output = 's3://bucket/x' is an address, not a path")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (InputError("what", next="do"), 2, "error: what\n  next:  do"),
        (TooManyFailed("3 of 10 failed"), 3, "error: 3 of 10 failed"),
        (
            ValueError("report: effusion of Ms Doe"),
            1,
            "error: unexpected ValueError\n  next:  the same command with --debug shows where",
        ),
        (KeyboardInterrupt(), 1, "interrupted; run the same command again to resume"),
    ],
)
def test_exit_codes(
    capsys: pytest.CaptureFixture[str], job: ModuleType, error: BaseException, code: int, text: str
) -> None:
    def fail(config: Config, *, dry_run: bool = False) -> int:
        raise error

    job.run = fail
    assert run(capsys, "evaluate") == (code, text)
    if isinstance(error, Exception):
        with pytest.raises(type(error)):
            main(["evaluate", "--debug"])


def test_the_job_gets_the_config_and_its_code_is_the_exit_code(job: ModuleType) -> None:
    seen: list[tuple[Config, bool]] = []

    def take(config: Config, *, dry_run: bool = False) -> int:
        seen.append((config, dry_run))
        return 3

    job.run = take
    assert main(["evaluate", "--dry-run", "--limit", "7", "evaluate.bootstrap=5"]) == 3
    ((config, dry_run),) = seen
    assert dry_run and config.limit == 7 and config.evaluate.bootstrap == 5


def test_both_names_of_the_command() -> None:
    megpt = Path(sys.executable).with_name("megpt")
    for command in ([str(megpt)], [sys.executable, "-m", "ray_jobs"]):
        done = subprocess.run([*command, "genrate"], capture_output=True, text=True, env={**os.environ, "TERM": "dumb"})
        assert (done.returncode, done.stderr) == (
            2,
            "error: unknown job 'genrate'\n  next:  did you mean generate?\n",
        )
