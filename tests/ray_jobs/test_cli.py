"""The command line: its surface frozen, its errors one screen each, its exit codes kept.

- The jobs, their options and positionals are exactly these; `--help` and `--version` answer without starting anything.
- Options and overrides come in any order; `--print-config` prints what `--config` accepts.
- `megpt JOB --help` lists the settings that the job reads; several `--config` are merged; a job may come from an entry
  point of another package, with settings of its own.
- Bad input is exit code 2, one screen, no traceback, nothing written: no job, an unknown job (the nearest is named), an
  unknown option, an unknown key, `--limit 0`, a folder as config, a relative output inside a submitted job, an object
  store.
- A full disk is exit code 1, and the next run works.
- An unforeseen error shows its type and never its message, which may quote a report; `--debug` shows all.
- Ctrl-C and SIGTERM are exit codes 130 and 143, and say how to resume.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
import yaml

from megpt import __version__
from megpt.config import load_config
from megpt.config.reference import settings_read
from megpt.errors import InputError, TooManyFailed
from megpt.settings import Indifferent, Section
from ray_jobs import entries
from ray_jobs.__main__ import main, parser
from ray_jobs.entries import JOBS, find, reads_of
from ray_jobs.job import Job
from ray_jobs.stopping import Terminated

SURFACE = {
    "prepare",
    "fit-prompts",
    "train",
    "generate",
    "evaluate",
    "compare",
    "ablate",
    "run",
    "demo",
    "doctor",
    "language-model",
    "pretrained",
    "import-checkpoint",
    "export",
    "report",
    "serve",
    "status",
}
OPTIONS = {"-h", "--help", "--config", "--limit", "--print-config", "--dry-run", "--debug", "--log-format"}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, (captured.out + captured.err).strip()


class Own(Job):
    """A job of the test's own: `todo` is its work."""

    name, reads = "own", ("seed", "limit", "evaluate")
    todo: ClassVar[Callable[[Job, Path], None]]

    def demand(self) -> None:
        return None

    def work(self, folder: Path) -> None:
        type(self).todo(self, folder)

    def finish(self, folder: Path) -> dict[str, Any]:
        return {}


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> type[Own]:
    """`megpt own`, as an installed package adds it by an entry point."""
    point = EntryPoint("own", f"{__name__}:Own", "megpt.jobs")
    monkeypatch.setattr(entries, "entry_points", lambda group: [point] if group == "megpt.jobs" else [])
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Own.__module__])
    return Own


def test_the_surface() -> None:
    assert set(JOBS) == SURFACE
    positionals = {name: entry.arguments for name, entry in JOBS.items() if entry.arguments}
    several = {"compare": ("paths",), "report": ("films",)}
    assert positionals == {"import-checkpoint": ("file",), "status": ("folder",), **several}
    assert [name for name, entry in JOBS.items() if entry.several] == list(several)
    choices = parser()._subparsers._group_actions[0].choices
    for name, sub in choices.items():
        more = {"report": {"--json"}, "status": {"--json", "--watch"}}.get(name, set())
        assert {option for action in sub._actions for option in action.option_strings} == OPTIONS | more, name
        positional = [action.dest for action in sub._actions if not action.option_strings]
        assert positional == [*positionals.get(name, ()), "overrides"]


@pytest.mark.parametrize("name", sorted(SURFACE))
def test_help_lists_what_a_job_reads(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    text = capsys.readouterr().out
    assert not ended.value.code and JOBS[name].text.split(":")[0] in text.replace("\n", " ")
    listed = {line.strip().partition(":")[0] for line in text.partition("settings:\n")[2].splitlines()[::2]}
    assert listed == {leaf.key for leaf in settings_read(reads_of(name))}


def test_several_configs_are_merged(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("seed: 1\ntrain: {lr: 1, l2: 1}\n")
    (tmp_path / "b.yaml").write_text("train: {lr: 2}\n")
    files = [word for name in ("a.yaml", "b.yaml") for word in ("--config", str(tmp_path / name))]
    code, text = run(capsys, "train", *files, "train.l2=3", "--print-config")
    tree = yaml.safe_load(text)
    assert (code, tree["seed"], tree["train"]["lr"], tree["train"]["l2"]) == (0, 1, 2, 3)


def test_a_job_from_elsewhere(own: type[Own], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own.todo = lambda job, folder: (folder / "seed").write_text(str(job.config.seed))
    assert find("own") is own
    assert run(capsys, "own", "seed=3", f"output={tmp_path / 'out'}") == (0, "")
    assert (tmp_path / "out" / "seed").read_text() == "3"
    assert "nothing to do" in run(capsys, "own", "seed=3", f"output={tmp_path / 'out'}")[1]


class OwnSettings(Section):
    """Settings of the test's own job."""

    to: str | None = None
    """Where to."""
    fast: Annotated[bool, Indifferent] = False
    """How."""


def test_settings_of_a_job_from_elsewhere(
    own: type[Own], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "settings", OwnSettings)
    own.todo = lambda job, folder: (folder / "told").write_text(f"{job.options.to} {job.options.fast}")
    out = f"output={tmp_path / 'out'}"
    assert run(capsys, "own", "to=pacs://x", "own.fast=true", out) == (0, "")
    assert (tmp_path / "out" / "told").read_text() == "pacs://x True"
    # one that is marked may change, another may not
    assert "nothing to do" in run(capsys, "own", "own.to=pacs://x", out)[1]
    code, text = run(capsys, "own", "own.to=pacs://y", out)
    assert code == 2 and "options.to: 'pacs://x' → 'pacs://y'" in text
    # the same from a file, and a command line wins
    (tmp_path / "a.yaml").write_text("options: {own: {to: a, fast: true}, other: {depth: 1}}\n")
    code, text = run(capsys, "own", "--config", str(tmp_path / "a.yaml"), "to=b", "--print-config")
    assert yaml.safe_load(text)["options"] == {"own": {"to": "b", "fast": True}, "other": {"depth": 1}}
    code, text = run(capsys, "own", "own.tow=a", f"output={tmp_path / 'new'}")
    assert code == 2 and text.startswith("error: unknown key 'own.tow'\n") and "did you mean own.to?" in text
    code, text = run(capsys, "own", "fast=maybe", f"output={tmp_path / 'new'}")
    assert code == 2 and text.startswith("error: own.fast = 'maybe': ") and "own.fast takes true or false. How." in text
    with pytest.raises(SystemExit):
        main(["own", "--help"])
    text = capsys.readouterr().out
    assert "A job of the test's own: `todo` is its work." in text
    assert "  own.to: text or null; default null\n      Where to.\n" in text
    assert run(capsys, "evaluate", "to=a")[1].startswith("error: unknown key 'to'")


def test_version_and_help_need_no_cluster() -> None:
    code = "import sys; from ray_jobs.__main__ import main; main(sys.argv[1:])"
    checked = "import atexit; atexit.register(lambda: print('ray' in sys.modules, 'torch' in sys.modules))"
    for argument, text in (("--version", f"megpt {__version__}"), ("--help", "import-checkpoint")):
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; {checked}; {code}", argument], capture_output=True, text=True
        )
        assert done.returncode == 0 and text in done.stdout
        assert done.stdout.endswith("False False\n")


def test_help_is_quick() -> None:
    # Seconds of work, which do not depend on what else the machine does.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "ray_jobs", "--help"], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.6


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


def test_a_full_disk_is_exit_code_1(capsys: pytest.CaptureFixture[str], own: type[Own], tmp_path: Path) -> None:
    own.todo = lambda job, folder: Path("/dev/full").write_text("x")
    code, text = run(capsys, "own", f"output={tmp_path / 'x'}")
    assert code == 1 and text.startswith(f"error: no space left to write {tmp_path / 'x'}\n  where: ")
    assert text.endswith("  next:  free space and run the same command again: it resumes")
    own.todo = lambda job, folder: None
    assert run(capsys, "own", f"output={tmp_path / 'x'}") == (0, "")


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
    code, text = run(capsys, "train", "output=ftp://bucket/x")
    assert code == 2 and text.startswith("error: output = 'ftp://bucket/x': unknown kind of address ftp://")


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
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to resume"),
        (Terminated(), 143, "interrupted; run the same command again to resume"),
    ],
)
def test_exit_codes(
    capsys: pytest.CaptureFixture[str],
    own: type[Own],
    error: BaseException,
    code: int,
    text: str,
    tmp_path: Path,
) -> None:
    def fail(job: Job, folder: Path) -> None:
        raise error

    own.todo = fail
    assert run(capsys, "own", f"output={tmp_path / 'x'}") == (code, text)
    assert (tmp_path / "x").exists() == (code != 2)
    if isinstance(error, Exception):
        with pytest.raises(type(error)):
            main(["own", "--debug", f"output={tmp_path / 'x'}"])


def test_sigterm_is_as_before_when_the_command_is_over(own: type[Own], tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    own.todo = lambda job, folder: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(5)
    assert main(["own", f"output={tmp_path / 'x'}"]) == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_both_names_of_the_command() -> None:
    megpt = Path(sys.executable).with_name("megpt")
    for command in ([str(megpt)], [sys.executable, "-m", "ray_jobs"]):
        done = subprocess.run([*command, "genrate"], capture_output=True, text=True, env={**os.environ, "TERM": "dumb"})
        assert (done.returncode, done.stderr) == (
            2,
            "error: unknown job 'genrate'\n  next:  did you mean generate?\n",
        )
