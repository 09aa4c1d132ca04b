"""The prompt bank.

- Fitted once: the same for any order of the studies; K given, or chosen by silhouette; every cluster has a study.
- A default text names the terms that set its cluster's reports apart, and none that all share.
- `assign` is the nearest centre, each row alone; clusters that rounding alone tells apart resolve to the first.
- The frame around the image is the reference's, the tokenizer's chat template, or none; it travels with a checkpoint.
- Of 100 studies that it was fitted with, one has a novelty above 1; a picture that is no film has one too.
- It saves to text that a person can edit; fewer studies than clusters, and features that are not finite, are refused.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_models import MakeModel, films
from transformers import AutoTokenizer

from megpt.config import FitPromptsConfig
from megpt.errors import InputError
from megpt.model import MeGPTForConditionalGeneration, PromptBank, fit_prompt_bank
from megpt.model.prompts import INSTRUCTION, tokenise_bank
from megpt.model.vision import prompt_features

REPORTS = (
    "The lungs show a large left pleural effusion.",
    "The lungs show a right apical pneumothorax.",
    "The lungs show marked cardiomegaly.",
    "The lungs show nothing unusual.",
)


def blobs(clusters: int, each: int = 30) -> tuple[np.ndarray, list[str], list[str]]:
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(clusters, 8)) * 20
    x = np.concatenate([c + draw.normal(size=(each, 8)) for c in centres]).astype(np.float32)
    return x, [REPORTS[n // each] for n in range(len(x))], [f"s{n:03d}" for n in range(len(x))]


def test_fit_is_the_same_for_any_order() -> None:
    x, reports, ids = blobs(4)
    settings = FitPromptsConfig(num_clusters=4, terms=3)
    bank = fit_prompt_bank(x, reports, ids, settings, seed=1, encoder="abc")
    order = np.random.default_rng(3).permutation(len(x))
    other = fit_prompt_bank(x[order], [reports[i] for i in order], [ids[i] for i in order], settings, seed=1)
    assert bank.centroids is not None and other.centroids is not None
    assert torch.equal(bank.centroids, other.centroids) and bank.texts == other.texts
    assert bank.sizes == (30, 30, 30, 30) and bank.encoder == "abc"
    for text, examples in zip(bank.texts, bank.examples, strict=True):
        kinds = {int(study[1:]) // 30 for study in examples}
        assert len(kinds) == 1
        word = ("effusion", "pneumothorax", "cardiomegaly", "unusual")[kinds.pop()]
        assert text.startswith(INSTRUCTION) and word in text.removeprefix(INSTRUCTION)
        assert "lungs" not in text.removeprefix(INSTRUCTION)


def test_silhouette_finds_the_number() -> None:
    x, reports, ids = blobs(3)
    settings = FitPromptsConfig(num_clusters="silhouette", candidates=(2, 3, 5, 8))
    assert len(fit_prompt_bank(x, reports, ids, settings, seed=1)) == 3


def test_assign_is_the_nearest_centre_of_each_row() -> None:
    centres = torch.randn(5, 8)
    bank = PromptBank(texts=tuple("abcde"), centroids=centres)
    x = torch.randn(64, 8)
    nearest = torch.cdist(x.double(), centres.double()).argmin(1)
    assert torch.equal(bank.assign(x), nearest)
    assert torch.equal(torch.cat([bank.assign(row[None]) for row in x]), nearest)
    tie = PromptBank(texts=("a", "b"), centroids=torch.tensor([[0.0], [2.0]]))
    assert tie.assign(torch.tensor([[1.0], [1.0 + 1e-7], [1.0 - 1e-7], [1.01]])).tolist() == [0, 0, 0, 1]


def test_saved_text_is_plain(tmp_path: Path) -> None:
    x, reports, ids = blobs(2)
    bank = fit_prompt_bank(x, reports, ids, FitPromptsConfig(num_clusters=2), seed=1, encoder="abc")
    bank.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["centroids.safetensors", "prompts.yaml"]
    tree = yaml.safe_load((tmp_path / "prompts.yaml").read_text())
    assert [entry["text"] for entry in tree["prompts"]] == list(bank.texts)
    assert [entry["studies"] for entry in tree["prompts"]] == [30, 30] and len(tree["prompts"][0]["examples"]) == 5
    loaded = PromptBank.load(tmp_path)
    assert loaded.texts == bank.texts and loaded.sizes == bank.sizes and loaded.examples == bank.examples
    assert loaded.encoder == "abc" and torch.equal(loaded.centroids, bank.centroids)


def test_reports_without_words() -> None:
    x, _, ids = blobs(2)
    bank = fit_prompt_bank(x, [""] * len(x), ids, FitPromptsConfig(num_clusters=2), seed=1)
    assert set(bank.texts) == {INSTRUCTION}


def test_bad_input(tmp_path: Path) -> None:
    x, reports, ids = blobs(2, each=3)
    with pytest.raises(InputError, match=r"fit_prompts\.num_clusters = 12"):
        fit_prompt_bank(x, reports, ids, FitPromptsConfig(num_clusters=12), seed=1)
    with pytest.raises(InputError, match=r"fit_prompts\.candidates"):
        fit_prompt_bank(x, reports, ids, FitPromptsConfig(num_clusters="silhouette", candidates=(12,)), seed=1)
    x[0, 0] = np.nan
    with pytest.raises(InputError, match="not finite"):
        fit_prompt_bank(x, reports, ids, FitPromptsConfig(num_clusters=2), seed=1)
    with pytest.raises(InputError, match="a text for every cluster"):
        PromptBank(texts=("a", " "), centroids=torch.zeros(2, 3))
    with pytest.raises(InputError, match=r"no prompts\.yaml"):
        PromptBank.load(tmp_path)


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def test_the_frame_around_the_image(tiny_llm: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    bank = PromptBank(texts=("Describe the heart.", "Report."), centroids=torch.zeros(2, 3))

    def framed(frame: str) -> list[str]:
        found = tokenise_bank(bank, tokenizer, frame)
        return [tokenizer.decode(found["prefix"]) + "|" + tokenizer.decode(ids) for ids in found["suffixes"]]

    assert framed("reference")[1] == "<s>Human: <Img>|</Img> Report. \nAssistant:"
    assert framed("text") == ["<s>|Describe the heart.\n", "<s>|Report.\n"]
    with pytest.raises(InputError, match=r"the tokenizer of model\.llm has no chat template"):
        framed("chat_template")
    tokenizer.chat_template = TEMPLATE
    assert framed("chat_template")[0] == "<s>[user] |Describe the heart.\n[assistant] "
    tokenizer.chat_template = TEMPLATE.replace("| trim", "| upper")
    with pytest.raises(InputError, match="changes the user's message"):
        framed("chat_template")


def test_the_frame_travels_with_the_checkpoint(tiny_llm: Path, tmp_path: Path, make_model: Any) -> None:
    llm = Path(shutil.copytree(tiny_llm, tmp_path / "llm"))
    tokenizer = AutoTokenizer.from_pretrained(llm)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(llm)
    model, processor = make_model(llm=str(llm), frame="chat_template")
    model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    bank = PromptBank.load(tmp_path / "checkpoint")
    bank.with_texts([f"{text} Briefly." for text in bank.texts]).save(tmp_path / "checkpoint")  # as a person edits it
    again = MeGPTForConditionalGeneration.from_pretrained(tmp_path / "checkpoint")
    prefix, suffixes = again.prompt_ids()
    assert tokenizer.decode(prefix) == "<s>[user] "
    assert tokenizer.decode(suffixes[0]) == "Describe the heart. Briefly.\n[assistant] "


def test_novelty(make_model: MakeModel) -> None:
    model, processor = make_model("vit")
    rng = np.random.default_rng(0)
    usual = [[film] for film in films(6, seed=1)]
    with torch.no_grad():
        features = prompt_features(model.vision, **processor(images=usual, return_tensors="pt"))
        ids = model.bank.assign(features)
        assert model.encode(**processor(images=usual, return_tensors="pt")).novelty is None  # an older bank
        far = (features - model.bank.centroids[ids]).norm(dim=1)
        model.bank = replace(model.bank, reach=float(far.max()))
        odd = [[Image.fromarray(rng.integers(0, 2, (64, 64), np.uint8) * 255)]]
        found = model.encode(**processor(images=[*usual, *odd], return_tensors="pt")).novelty
        alone = model.encode(**processor(images=odd, return_tensors="pt")).novelty
    torch.testing.assert_close(found[:6], far / far.max(), atol=1e-5, rtol=1e-5)
    assert found[:6].max() == pytest.approx(1, abs=1e-5) and found[6] > 1
    torch.testing.assert_close(found[6:], alone)


def test_the_reach_of_a_bank(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(400, 5)).astype(np.float32)
    ids = [f"s{n:03d}" for n in range(400)]
    bank = fit_prompt_bank(x, ["Clear lungs."] * 400, ids, FitPromptsConfig(num_clusters=3), 0, encoder="e")
    bank.save(tmp_path)
    again = PromptBank.load(tmp_path)
    novelty = again.novelty(torch.from_numpy(x), again.assign(torch.from_numpy(x)))
    assert novelty is not None and (novelty > 1).sum() == 4  # one in a hundred
    assert again.reach == pytest.approx(bank.reach) and PromptBank.fixed().novelty(torch.zeros(1, 5), ids) is None
