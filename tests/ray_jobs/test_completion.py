"""Completion of the command line, and what `--version` says.

- jobs, options, configs, the keys that a job reads and no others, words of a setting, paths of a setting or a job
- bash, zsh and fish take what `--completion` prints, and complete a job, a key and a value with it
- neither Ray nor torch is imported at a TAB
- reads.json is what the jobs declare
- `--version`: the commit of the checkout, "with changes" where there are some, or that of the build; the libraries
- a pipe gets neither colours nor bars; a terminal does, unless NO_COLOR or TERM=dumb; COLUMNS is the width
"""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from argcomplete.finders import CompletionFinder

import megpt
from megpt.config import shipped_names
from megpt.config.reference import settings_read
from ray_jobs import version
from ray_jobs.__main__ import JOBS, jobs, parser, reads_of
from ray_jobs.completion import completed, keys
from ray_jobs.docs import READS, reads_text

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finder() -> CompletionFinder:
    return CompletionFinder(completed(parser(), {name: entry.section for name, entry in jobs().items()}))


def offered(finder: CompletionFinder, line: str) -> list[str]:
    *before, prefix = line.split(" ")
    return [word.rstrip(" ") for word in finder._get_completions(["megpt", *before], prefix, "", None)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("gen", ["generate"]),
        ("--v", ["--version"]),
        ("--completion ", ["bash", "zsh", "fish"]),
        ("train --pr", ["--print-config"]),
        ("train train.zero_s", ["train.zero_stage="]),
        ("train train.zero_stage=", [f"train.zero_stage={n}" for n in range(4)]),
        ("train seed=1 model.mode=d", ["model.mode=delta", "model.mode=deep"]),
        ("train model.fem=", ["model.fem=true", "model.fem=false"]),
        ("fit-prompts fit_prompts.num_clusters=", ["fit_prompts.num_clusters=silhouette"]),
        ("generate retry=", ["retry=failed"]),
        ("evaluate train.l", []),
        ("status outp", []),
        ("export ful", ["full="]),
        ("export dtype=b", ["dtype=bf16"]),
        ("serve po", ["port="]),
        ("report film.png checkp", ["checkpoint="]),
        ("report --js", ["--json"]),
        ("train train.lr=", []),
        ("train nonsense=", []),
    ],
)
def test_words(finder: CompletionFinder, line: str, words: list[str]) -> None:
    assert offered(finder, line) == words


def test_paths(finder: CompletionFinder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "films").mkdir()
    for name in ("films/a.dcm", "films/b.dcm", "films/.hidden", "phantom.txt", "own.yaml"):
        (tmp_path / name).write_text("")
    assert offered(finder, "report films/") == ["films/a.dcm", "films/b.dcm"]
    assert offered(finder, "generate source=fi") == ["source=films/"]
    assert offered(finder, f"generate source={tmp_path}/films/a") == [f"source={tmp_path}/films/a.dcm"]
    assert offered(finder, "generate source=gone/") == []
    assert set(offered(finder, "train --config ")) == {*shipped_names(), "films/", "own.yaml"}
    assert offered(finder, "compare output=ou") == []


@pytest.mark.parametrize("job", JOBS)
def test_keys_are_those_that_a_job_reads(job: str) -> None:
    assert keys(job) == [leaf.key for leaf in settings_read(reads_of(job))]


def test_what_jobs_read_is_true() -> None:
    assert READS.read_text(encoding="utf-8") == reads_text(), "run python -m ray_jobs.docs"


def environment(**more: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **more}


BASH = """eval "$(megpt --completion bash)"
for line in "$@"; do
  COMP_LINE="$line" COMP_POINT=${#line} COMP_TYPE=9 COMPREPLY=()
  read -ra COMP_WORDS <<< "$line"; COMP_CWORD=$((${#COMP_WORDS[@]}-1))
  _python_argcomplete megpt; echo "${COMPREPLY[@]}"
done"""
FISH = "megpt --completion fish | source; for line in $argv; complete -C $line; end"
LINES = ("megpt evalu", "megpt train model.mode=sh")


def test_bash() -> None:
    done = subprocess.run(["bash", "-c", BASH, "-", *LINES], capture_output=True, text=True, env=environment())
    # bash splits a word at =, and wants what follows
    assert done.stdout.split() == ["evaluate", "shallow"]


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
def test_fish() -> None:
    done = subprocess.run(["fish", "-c", FISH, *LINES], capture_output=True, text=True, env=environment())
    words = [line.partition("\t")[0].strip() for line in done.stdout.splitlines()]  # what follows describes it
    assert words == ["evaluate", "model.mode=shallow"]


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
def test_zsh_takes_the_script() -> None:
    code = 'autoload -U compinit; compinit -u -D; eval "$(megpt --completion zsh)"; print $_comps[megpt]'
    done = subprocess.run(["zsh", "-fc", code], capture_output=True, text=True, env=environment())
    assert (done.stdout.strip(), done.stderr) == ("_python_argcomplete", "")


def test_a_tab_imports_nothing_large(tmp_path: Path) -> None:
    told = {"_ARGCOMPLETE": "1", "COMP_LINE": "megpt train train.l", "COMP_POINT": "19", "COMP_TYPE": "9"}
    output = tmp_path / "words"
    command = [sys.executable, "-X", "importtime", "-m", "ray_jobs"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment(**told, _ARGCOMPLETE_STDOUT_FILENAME=str(output), _ARGCOMPLETE_IFS="\n"),
    )
    words = output.read_text().split()
    assert "train.lr=" in words and all(word.startswith("train.l") for word in words)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argcomplete" in imported and not imported & {"ray", "torch", "transformers", "pyarrow"}


def test_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = version.text().splitlines()
    assert lines[0].startswith(f"megpt {megpt.__version__}")
    assert [line.split()[0] for line in lines[1:]] == ["python", *version.LIBRARIES]
    package = tmp_path / "megpt"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(megpt, "__file__", str(package / "__init__.py"))
    monkeypatch.setattr(version, "files", lambda name: tmp_path / name)
    (package / version.COMMIT).write_text("0123456789ab\n")
    assert version.commit() == "0123456789ab"

    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    assert re.fullmatch("[0-9a-f]{12}", version.commit())
    (package / "__init__.py").write_text("x = 1")
    assert re.fullmatch("[0-9a-f]{12}, with changes", version.commit())
    monkeypatch.setattr(version, "LIBRARIES", ("no-such-library",))
    assert version.text().endswith("no-such-library is not installed")


def shown(code: str, *, terminal: bool, **more: str) -> str:
    """What a program writes to its standard error."""
    variables = {"TERM": "xterm", "COLUMNS": "80", **more}
    unset = {"NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}
    surroundings = {k: v for k, v in environment().items() if k not in unset} | variables
    command = [sys.executable, "-c", code]
    if not terminal:
        return subprocess.run(command, capture_output=True, text=True, env=surroundings).stderr
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=surroundings)
    os.close(theirs)
    written = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not piece:
            break
        written += piece
    process.wait()
    os.close(ours)
    return written.decode()


UNKNOWN = "from ray_jobs.__main__ import main; main(['genrate'])"
BAR = "from megpt.progress import Progress\nwith Progress('generate', 4) as bar: bar.advance(4)"


@pytest.mark.parametrize(
    ("terminal", "variables", "colours", "bars"),
    [
        (False, {}, False, False),
        (True, {}, True, True),
        (True, {"NO_COLOR": "1"}, False, True),
        (True, {"TERM": "dumb"}, False, False),
    ],
)
def test_a_terminal_and_a_pipe(terminal: bool, variables: dict[str, str], colours: bool, bars: bool) -> None:
    error = shown(UNKNOWN, terminal=terminal, **variables)
    assert "unknown job 'genrate'" in error and ("\x1b[31m" in error) == colours
    bar = shown(BAR, terminal=terminal, **variables)
    assert ("━" in bar) == bars and ("4/4" in bar)
    assert bars or "\x1b" not in bar


def test_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = {}
    for columns in (60, 160):
        monkeypatch.setenv("COLUMNS", str(columns))
        widths[columns] = max(map(len, parser().format_help().splitlines()))
    assert widths[60] <= 60 < widths[160] <= 160


def test_a_reader_that_has_read_enough() -> None:
    code = f"{sys.executable} -m ray_jobs train --config phantom --print-config | head -1"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, env=environment())
    assert done.stderr == "" and done.stdout == "seed: 42\n"
