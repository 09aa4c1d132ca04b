"""The whole flow at tiny size.

- `megpt demo` leaves every job's output under its folder: one report per readable or unreadable study, an honest score;
- every study of the archive is in studies/ or in failed.parquet, none in both;
- the same command again, dry or not, finds nothing to do; another config on the same output is refused;
- a job that fails ends it, and what that job took is kept;
- README's Python and its commands run as they are printed, on the demo's own output.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from huggingface_hub import ModelCard
from job_promises import check_done, check_refused
from make_films import dicom_bytes
from PIL import Image

from megpt.config import SHIPPED, Config, load_config
from megpt.data.studies import read_studies
from megpt.errors import TooManyFailed
from ray_jobs.__main__ import main
from ray_jobs.demo.job import STAGES, Demo

pytestmark = pytest.mark.slow

TINY = [
    "phantom.num_studies=100",
    "phantom.broken=3",
    "prepare.max_failed_fraction=0.3",
    "language_model.steps=4",
    "language_model.hidden_size=32",
    "language_model.num_layers=2",
    "fit_prompts.num_clusters=2",
    "train.max_steps=3",
    "train.global_batch_size=8",
    "train.save_every=3",
    "generate.max_new_tokens=12",
    "generate.max_failed_fraction=1.0",
    "evaluate.bootstrap=20",
    "evaluate.meteor=false",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Config:
    config = load_config("configs/phantom.yaml", [*TINY, f"output={tmp_path_factory.mktemp('demo') / 'out'}"])
    assert Demo.run(config) == 0
    return config


def test_every_job_has_left_its_output(finished: Config) -> None:
    root = Path(str(finished.output))
    for stage in STAGES:
        assert (root / stage.folder / "_SUCCESS").exists(), stage.name
    metrics = json.loads((root / "evaluation" / "metrics.json").read_text())
    assert metrics["unit"] == "study"
    assert set(metrics["baselines"]) == {"constant", "permuted", "nearest", "nearest_untrained"}
    assert {"BLEU_4", "ROUGE_L", "CIDEr", "clinical_micro_f1"} <= set(metrics["scores"]) & set(metrics["intervals"])
    assert (root / "evaluation" / "index.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    card = ModelCard.load(root / "checkpoint" / "README.md")
    assert {r.dataset_name for r in card.data.eval_results} == {"drawn phantom films"} and "| BLEU_4 |" in card.text


def test_each_study_stands_once_somewhere(finished: Config) -> None:
    root = Path(str(finished.output))
    good = [study.study_id for study in read_studies(str(root / "studies"), "all")]
    failed = pq.read_table(root / "studies" / "failed.parquet").column("study_id").to_pylist()
    assert len(good) == len(set(good))
    assert not set(good) & set(failed)
    assert len(good) + len(failed) == finished.phantom.num_studies
    assert failed, "some films are broken on purpose"
    reports = pq.read_table(root / "predictions" / "reports")
    ids = reports.column("study_id").to_pylist()
    assert len(ids) == len(set(ids)) == sum(1 for _ in read_studies(root / "studies", "test", columns=[]))
    rows = reports.select(["report", "error"]).to_pylist()
    assert all((row["report"] is None) == (row["error"] is not None) for row in rows)


def test_finished_and_changed(finished: Config, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", "phantom", *TINY]
    check_done(capfd, "demo", arguments, Path(str(finished.output)))
    difference = f"train.lr: {finished.train.lr} → 0.5"
    check_refused(capfd, "demo", [*arguments, "train.lr=0.5"], Path(str(finished.output)), difference)


def test_what_a_failed_job_took_is_kept(ray_cluster: None, tmp_path: Path) -> None:
    few = ["phantom.num_studies=20", "phantom.broken=3", "prepare.max_failed_fraction=0", f"output={tmp_path / 'out'}"]
    with pytest.raises(TooManyFailed, match=r"of 20 studies are unreadable"):
        Demo.run(load_config("configs/phantom.yaml", few))
    costs = json.loads((tmp_path / "out" / "costs.json").read_text())
    assert list(costs) == ["draw", "prepare"] and costs["prepare"]["seconds"] > 0


README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def beside_the_demo(finished: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder where runs/demo is the finished demo, as README's snippets expect it."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/demo").symlink_to(Path(str(finished.output)))
    (tmp_path / "configs").symlink_to(SHIPPED)
    for name in ("frontal.png", "lateral.png"):
        Image.new("L", (80, 64), 90).save(tmp_path / name)
    (tmp_path / "film.dcm").write_bytes(dicom_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_of_the_readme(beside_the_demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    exec(compile(block, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.strip().splitlines()) == 2


def test_the_commands_of_the_readme(beside_the_demo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (block,) = [block for block in re.findall(r"^```bash\n(.*?)^```", README, re.M | re.S) if "megpt generate" in block]
    lines = [line.split(" # ")[0].split() for line in block.splitlines()]
    assert len(lines) >= 3
    archive = ["source=runs/demo/archive" if word == "source=/data/archive" else word for word in lines[0]]
    assert main([*archive[1:], "--limit", "4", "generate.max_new_tokens=8", "generate.min_new_tokens=1"]) == 0
    assert pq.read_table("runs/reports/reports").num_rows == 4
    for line in lines[1:]:
        assert main(line[1:]) == 0, " ".join(line)
    assert "parameters" in capfd.readouterr().out
