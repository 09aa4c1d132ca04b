"""The files in examples/, as somebody runs them.

- the notebook is stored without output, has ten cells, and runs from films to the page
- every script is clean shell; every command in it names a job, a config and settings that exist, and passes the checks
  that need no input
- the overnight config differs from the published run in what a small card needs, and in nothing that changes its result
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from megpt.config import KNOWN_KEYS, load_config, refuse_unread
from ray_jobs.__main__ import JOBS, configure, parser, reads_of

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(path for path in EXAMPLES.iterdir() if path.suffix in (".sh", ".sbatch"))
NOTEBOOK = EXAMPLES / "films_to_page.ipynb"
VALUES = {"config": "examples/overnight.yaml", "workers": "2", "nodes": "2", "gpus": "4"}
"""What shell variables hold here that a setting takes as a number or a config."""


def commands(script: Path) -> list[list[str]]:
    """The words of each command of megpt, with their variables filled in."""
    text = re.sub(r"\$\(\((.*?)\)\)", "8", script.read_text(encoding="utf-8").replace("\\\n", " "))
    text = re.sub(r"\$\{?(\w+)[^\s}/\"]*\}?", lambda found: VALUES.get(found[1], f"/{found[1]}"), text)
    starts = re.findall(r"^(?:[^#\n]*python -m ray_jobs|megpt|submit) +([a-z][^\n&]*)", text, re.MULTILINE)
    return [shlex.split(line) for line in starts]


def test_every_script_is_listed() -> None:
    listed = re.findall(r"\]\(([\w.]+)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(path.name for path in EXAMPLES.iterdir() if path.name != "README.md")
    assert len(SCRIPTS) == 3


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_shell_is_clean(script: Path) -> None:
    checker = Path(sys.executable).with_name("shellcheck")
    for words in (["bash", "-n"], [str(checker), "--shell=bash", "--severity=info"]):
        done = subprocess.run([*words, str(script)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_its_commands_exist(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = commands(script)
    assert len(found) == {"submit.sh": 5, "slurm.sbatch": 1, "overnight.sh": 6}[script.name]
    for words in found:
        assert words[0] in JOBS
        options, rest = parser().parse_known_args(words)
        options.overrides += rest
        config = configure(options)
        refuse_unread(words[0], reads_of(words[0]), config.named)
        assert config.output or options.dry_run


def test_the_overnight_config_gives_the_published_run() -> None:
    ours, published = load_config(EXAMPLES / "overnight.yaml"), load_config("iu_xray_delta")
    keys = sorted({key.partition(".")[0] for key in KNOWN_KEYS})
    assert ours.identity(*keys) == published.identity(*keys)
    assert (ours.cluster.num_workers, ours.cluster.gpus_per_worker, ours.train.micro_batch_size) == (1, 1, 4)


def test_the_notebook_is_stored_without_output() -> None:
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert len(notebook.cells) == 10
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None and cell.source.startswith("#") for cell in code)
    assert len(code) == 9


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a busy machine is no wrong result
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path / "jupyter"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    runs = tmp_path / "runs/notebook"
    assert (runs / "evaluation/index.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "### phantoms" in (runs / "checkpoint/README.md").read_text(encoding="utf-8")
    picture = notebook.cells[2].outputs[-1].data
    scores = notebook.cells[8].outputs[-1].data["text/plain"]
    assert "image/png" in picture and "BLEU_4" in scores and "constant" in scores
    assert "open " in "".join(output.get("text", "") for output in notebook.cells[9].outputs)
