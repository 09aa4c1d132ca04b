"""What the head sees is told to the language model: `model.findings`.

- a study's report is the same alone and in a batch, on both backends and from `model.generate`, before and after the
  checkpoint is saved; with all findings told it is another one than with none
- they are named in words of the vocabulary, inside the prompt's frame, and the longest sentence has room
- `generate.findings_threshold` replaces the checkpoint's, and is refused where none are told
- `megpt export` carries the head; the estimate of a run counts its tokens
- the threshold of the best micro-F1 is found, of equal ones the middle one
- after training it is chosen on the validation split, and kept in config.json; a set one stays; without that split the
  default is said
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from small_runs import make_studies
from tiny_models import MakeModel, films

from megpt.config import GenerateConfig, load_config
from megpt.data.studies import write_studies
from megpt.errors import InputError
from megpt.generation.limits import longest_prompt
from megpt.generation.writer import ReportWriter
from megpt.model import MeGPTForConditionalGeneration
from megpt.model.context import suffix_with
from megpt.model.findings import FINDINGS, THRESHOLD, best_threshold, longest_sentence, sentence
from megpt.model.vision import VisualFeatures
from megpt.study import CHEXPERT, Study
from ray_jobs.train.threshold import threshold_setter

RULES: dict[str, Any] = {"repetition_penalty": 1.5, "length_penalty": 1.0, "num_beams": 3}
RULES |= {"min_new_tokens": 3, "max_new_tokens": 12}


@pytest.mark.parametrize("views", ["mean", "concat"])
def test_alone_and_in_a_batch(make_model: MakeModel, tmp_path: Path, views: str) -> None:
    model, processor = make_model("vit", findings=True, views=views)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = MeGPTForConditionalGeneration.from_pretrained(tmp_path)
    pictures = films(5, seed=3)
    studies = [pictures[:2], [pictures[2]], [pictures[3]], [pictures[4]]]

    def written(threshold: float, which: list[int]) -> list[str]:
        loaded.config.findings_threshold = threshold
        return processor.batch_decode(loaded.generate(**processor(images=[studies[n] for n in which]), **RULES))

    none, some, every = (written(threshold, [0, 1, 2, 3]) for threshold in (1.0, 0.5, 0.0))
    assert [written(0.5, [n])[0] for n in range(4)] == some
    assert none != every and some not in (none, every)
    for backend in ("engine", "hf"):
        for threshold, expected in ((0.5, some), (0.0, every)):
            rules = GenerateConfig(backend=backend, slots=3, findings_threshold=threshold, **RULES)
            writer = ReportWriter(tmp_path, rules, 0)
            reports = {p.study.study_id: p.report for p in writer.write(zip(map(Study, "0123"), studies, strict=True))}
            assert [reports[n] for n in "0123"] == expected


def test_no_threshold_where_nothing_is_told(make_model: MakeModel, tmp_path: Path) -> None:
    parts = make_model("vit")
    with pytest.raises(InputError, match=r"generate.findings_threshold = 0.3: this checkpoint tells no findings"):
        ReportWriter(parts, GenerateConfig(findings_threshold=0.3), 0)


def test_the_best_threshold() -> None:
    rng = np.random.default_rng(5)
    stated = torch.from_numpy(rng.random((60, 14)) < 0.2)
    told = stated[:, [CHEXPERT.index(name) for name in FINDINGS]]
    probabilities = (0.3 * told + torch.from_numpy(rng.random((60, 13))) * 0.6).float()
    threshold, f1 = best_threshold(probabilities, stated)
    scores = {
        t / 100: f1_score(told.numpy(), (probabilities >= t / 100).numpy(), average="micro", zero_division=0)
        for t in range(1, 100)
    }
    assert f1 == pytest.approx(max(scores.values())) == pytest.approx(scores[threshold])
    # all between 0.41 and 0.60 part them alike
    assert best_threshold(torch.where(told, 0.605, 0.405), stated) == (0.51, 1.0)


def observe(texts: list[str]) -> np.ndarray:
    present = np.zeros((len(texts), len(CHEXPERT)), bool)
    present[:, CHEXPERT.index("Cardiomegaly")] = ["enlarged" in text for text in texts]
    return present


def test_chosen_on_validation(make_model: MakeModel, tmp_path: Path) -> None:
    model, processor = make_model("vit", findings=True)
    write_studies(tmp_path / "studies", "val", make_studies(9, split="val"), 0)
    write_studies(tmp_path / "train_only", "train", make_studies(3), 0)
    config = load_config(overrides=["model.findings=true", f"studies={tmp_path / 'studies'}", "generate.slots=4"])

    def chosen(**changes: Any) -> dict[str, Any]:
        return threshold_setter(config.overridden(changes), observe)(model, processor)

    assert chosen(**{"model.findings_threshold": 0.4}) == {} and model.config.findings_threshold == 0.4
    assert chosen(**{"generate.findings_threshold": 0.3, "model.findings_threshold": 0.4}) == {}
    assert model.config.findings_threshold == 0.3  # as in validation
    model.config.findings_threshold = None
    assert chosen(**{"model.findings": False}) == {}
    assert chosen(studies=str(tmp_path / "train_only"))["findings"] == {
        "threshold": THRESHOLD,
        "micro_f1": None,
        "studies": 0,
    }
    found = chosen()["findings"]
    assert found["studies"] == 9 and 0 < found["micro_f1"] <= 1
    assert model.config.findings_threshold == found["threshold"]
    model.save_pretrained(tmp_path / "checkpoint")
    again = MeGPTForConditionalGeneration.from_pretrained(tmp_path / "checkpoint")
    assert again.config.findings_threshold == found["threshold"]


def test_the_words(make_model: MakeModel) -> None:
    model, processor = make_model("vit", findings=True)
    ids = lambda text: processor.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    shown = [name in ("Cardiomegaly", "Pleural Effusion") for name in FINDINGS]
    said = [*ids(" Findings:"), *ids(" cardiomegaly"), *ids(","), *ids(" pleural effusion"), *ids(".")]
    vocabulary = model.config.prompts["findings"]
    assert sentence(vocabulary, shown) == said
    assert sentence(vocabulary, [False] * 13) == [*ids(" Findings:"), *ids(" none"), *ids(".")]
    # inside the prompt's frame, behind the context
    frame = model.config.prompts["openings"][0], model.config.prompts["close"]
    assert suffix_with(model.config.prompts, 0, [5, 6], shown) == [*frame[0], 5, 6, *said, *frame[1]]
    visual = VisualFeatures(torch.zeros(2, 3, model.get_input_embeddings().embedding_dim), torch.ones(2, 3).bool(),
                            torch.zeros(2).long(), told=torch.tensor([shown, [False] * 13]))  # fmt: skip
    embeds, mask = model.assemble(visual)
    prefix = model.config.prompts["prefix"]
    whole = [*frame[0], *said, *frame[1]]
    assert mask.sum(1)[0] == len(prefix) + 3 + len(whole) == embeds.shape[1]
    torch.testing.assert_close(embeds[0, -len(whole) :], model.get_input_embeddings()(torch.tensor(whole)))
    # the longest counts for the room in the language model's context, on both backends
    assert longest_sentence(model.config.prompts) == len(sentence(vocabulary, [True] * 13))
    without, _ = make_model("vit")
    told_longest, ordinary = longest_prompt(model.config, 1), longest_prompt(without.config, 1)
    assert told_longest is not None and ordinary is not None
    assert told_longest - ordinary == longest_sentence(model.config.prompts)
    assert longest_sentence(without.config.prompts) == 0
