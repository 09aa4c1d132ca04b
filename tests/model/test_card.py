"""The model card.

- Scores become a table with intervals and the best baseline, and model-index metadata that huggingface_hub reads.
- The same data again replaces its figures; other data is added; the rest of the card and the fingerprint stay.
- The card names data agreements, licence and research use, and no path of this machine.
- No scores, or a card that cannot be read, are refused.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from megpt.errors import InputError
from megpt.model.checkpoint.card import add_scores, keep_scores
from megpt.model.checkpoint.fingerprint import fingerprint


def metrics(bleu: float) -> dict[str, Any]:
    return {
        "n": 590,
        "n_patients": 580,
        "cleaner": "r2gen-iu",
        "signature": "megpt|r2gen-iu",
        "scores": {"BLEU_4": bleu, "CIDEr": 0.4, "METEOR": None, "clinical_micro_f1": float("nan")},
        "intervals": {"BLEU_4": [bleu - 0.01, bleu + 0.01], "CIDEr": None},
        "baselines": {"constant": {"BLEU_4": 0.174, "CIDEr": None}, "permuted": {"BLEU_4": 0.1}},
    }


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "a-model"))


def test_scores_in_the_card(folder: Path) -> None:
    before, mark = (folder / "README.md").read_text(), fingerprint(folder)
    add_scores(folder, metrics(0.2), dataset="IU X-Ray")
    add_scores(folder, metrics(0.3), dataset="IU X-Ray")
    add_scores(folder, metrics(0.1), dataset="MIMIC-CXR")
    text = (folder / "README.md").read_text()
    assert "| BLEU_4 | 0.3000 | 0.2900 to 0.3100 | 0.1740 (constant) |\n| CIDEr | 0.4000 |  |  |" in text
    assert text.count("### IU X-Ray") == 1 and text.count("### MIMIC-CXR") == 1 and "0.2000" not in text
    assert "590 studies of 580 patients; reports cleaned by `r2gen-iu`" in text and "Not measured yet" not in text
    data = ModelCard(text).data
    found = {(r.dataset_name, r.metric_type): r.metric_value for r in data.eval_results}
    assert found == {
        ("IU X-Ray", "bleu_4"): 0.3,
        ("IU X-Ray", "cider"): 0.4,
        ("MIMIC-CXR", "bleu_4"): 0.1,
        ("MIMIC-CXR", "cider"): 0.4,
    }
    assert data.model_name == "a-model" and data.pipeline_tag == "image-text-to-text"
    assert {r.task_type for r in data.eval_results} == {"image-text-to-text"}
    body = before.split("---\n", 2)[2].split("## Scores")[0]
    assert body.strip() in text and "PhysioNet" in text and "research" in text
    assert fingerprint(folder) == mark


def test_scores_move_to_another_folder(folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_checkpoint, tmp_path / "other"))
    keep_scores(folder, other)
    assert "Not measured yet" in (other / "README.md").read_text()
    add_scores(folder, metrics(0.2))
    keep_scores(folder, other)
    assert "### unnamed chest X-ray studies" in (other / "README.md").read_text()
    assert len(ModelCard.load(other / "README.md").data.eval_results) == 2


def test_what_cannot_be_written(folder: Path) -> None:
    with pytest.raises(InputError, match="no scores for the model card"):
        add_scores(folder, {"scores": {"METEOR": None}})
    (folder / "README.md").write_text("---\nmodel-index: 3\n---\n")
    with pytest.raises(InputError, match="the model card .* cannot be read"):
        add_scores(folder, metrics(0.1))
    (folder / "README.md").unlink()
    with pytest.raises(InputError, match="cannot be read\n  cause: FileNotFoundError"):
        add_scores(folder, metrics(0.1))
