"""fit-prompts: studies/ → prompts/.

- One prompt per cluster with its size and example ids, on the screen and in prompts.yaml; the terms come from the
  cluster's own reports; a study without a readable film is left out.
- The same bank, bit for bit, from one worker and from two.
- An even draw by seed when there are too many studies; `--dry-run` says how many there are.
- Fewer studies than clusters, none at all, and a cleaner for scores alone (in `train` too) are bad input.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from megpt.config import Config
from megpt.data.studies import write_studies
from megpt.errors import InputError
from megpt.model.prompts import PromptBank
from megpt.study import Study, View
from ray_jobs import fit_prompts
from ray_jobs.fit_prompts import FitPrompts
from ray_jobs.job import Job
from ray_jobs.train.job import Train

SENTENCES = ("Large left pleural effusion.", "Normal heart size and clear lungs.", "Right apical pneumothorax.")


def film(kind: int, seed: int) -> bytes:
    """Three kinds of picture that any encoder tells apart."""
    noise = np.random.default_rng(seed).integers(0, 12, (48, 48))
    if kind == 0:
        noise[:, :24] += 220
    elif kind == 1:
        noise[::8] += 200
    file = io.BytesIO()
    Image.fromarray(noise.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fit_prompts") / "studies"
    for part in range(3):
        rows = []
        for n in range(part * 20, part * 20 + 20):
            view = View(f"i{n}", data=b"no film" if n == 7 else film(n % 3, n))
            rows.append(Study(f"s{n:02d}", views=(view,), report=SENTENCES[n % 3], split="train"))
        write_studies(folder, "train", rows, part)
    return folder


def config(studies: Path, output: Path, workers: int = 1, **settings: object) -> Config:
    return Config.model_validate(
        {
            "studies": str(studies),
            "output": str(output),
            "cluster": {"num_workers": workers},
            "model": {"vision": "test_vit", "vision_weights": "none", "image_size": 48},
            "fit_prompts": {"num_clusters": 3, "terms": 2, **settings},
        }
    )


def test_no_training_study(tmp_path: Path) -> None:
    write_studies(tmp_path / "studies", "train", [], 0)
    with pytest.raises(InputError, match=r"^the training split holds no study\n"):
        FitPrompts.run(config(tmp_path / "studies", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_bank_is_readable_and_the_same_on_any_number_of_workers(
    studies: Path, tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert FitPrompts.run(config(studies, tmp_path / "one")) == 0
    screen = capsys.readouterr()
    bank = PromptBank.load(tmp_path / "one")
    assert bank.sizes == (20, 20, 19) and bank.centroids is not None
    kinds = [{int(study[1:]) % 3 for study in examples} for examples in bank.examples]
    assert all(len(kind) == 1 for kind in kinds) and len(set.union(*kinds)) == 3
    for text, kind in zip(bank.texts, kinds, strict=True):
        word = ("effusion", "heart", "pneumothorax")[kind.pop()]
        assert word in text or word in "".join(bank.texts)
        assert bank.examples[0][0] in screen.err
    assert len(set(bank.texts)) == 3
    assert FitPrompts.run(config(studies, tmp_path / "two", workers=2)) == 0
    other = PromptBank.load(tmp_path / "two")
    assert other.centroids is not None and torch.equal(bank.centroids, other.centroids)
    assert (tmp_path / "one/prompts.yaml").read_bytes() == (tmp_path / "two/prompts.yaml").read_bytes()


def test_dry_run(studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert FitPrompts.run(config(studies, tmp_path / "out"), dry_run=True) == 0
    assert "60 training studies" in capsys.readouterr().err


def test_draw_is_even_and_by_seed(studies: Path, tmp_path: Path) -> None:
    settings = config(studies, tmp_path, max_studies=30)
    units = fit_prompts.choose(settings)
    assert sum(len(rows) for _, rows in units) == 30
    assert all(4 <= len(rows) <= 16 for _, rows in units)
    assert units == fit_prompts.choose(settings)
    assert units != fit_prompts.choose(settings.updated(seed=1))
    assert sum(len(rows) for _, rows in fit_prompts.choose(settings.updated(limit=25))) == 25


def test_fewer_studies_than_clusters(studies: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as told:
        FitPrompts.run(config(studies, tmp_path / "out", num_clusters=12).updated(limit=5))
    assert str(told.value) == (
        "fit_prompts.num_clusters = 12, but there are only 5 training studies\n  next:  set fit_prompts.num_clusters=2"
    )
    with pytest.raises(InputError, match=r"none is above 1 and below 2"):
        FitPrompts.run(config(studies, tmp_path / "out", num_clusters="silhouette").updated(limit=2))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("job", [FitPrompts, Train])
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_cleaner_for_scores_is_refused_at_once(studies: Path, tmp_path: Path, job: type[Job], dry_run: bool) -> None:
    settings = config(studies, tmp_path / "out").overridden(
        {"data.cleaner": "none+unk3", "model.dynamic_prompt": False}
    )
    with pytest.raises(InputError, match="is for scores only"):
        job.run(settings, dry_run=dry_run)
    assert not (tmp_path / "out").exists()
