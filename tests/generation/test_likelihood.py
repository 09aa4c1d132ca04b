"""How likely a report is, and its sentences: the columns `logprob` and `sentence_logprobs`.

- the same on both backends and for a hub's model, greedy, sampled and with beams: the log-probabilities that one pass
  over the whole text gives each token, whatever penalties chose it
- a sentence's value is the mean of its tokens; there are as many as `re.split(SENTENCE_END, report)` gives, whatever
  the text; the end token belongs to the report alone
"""

from __future__ import annotations

import re
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from bare_models import SHAPES, Prompted, language_model, studies
from hub_models import hub_model
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer

from megpt.config import GenerateConfig
from megpt.generation import Decoding, EngineItem, GenerationEngine, HFBackend
from megpt.generation.image_text import ImageTextWriter
from megpt.generation.likelihood import SENTENCE_END, likelihood
from megpt.study import Study

RULES = {
    "greedy": Decoding(max_new_tokens=20, repetition_penalty=2.0, min_new_tokens=5),
    "sampled": Decoding(do_sample=True, temperature=0.6, top_p=0.9, max_new_tokens=20, seed=3),
    "beams": Decoding(num_beams=3, repetition_penalty=1.6, length_penalty=2.0, min_new_tokens=4, max_new_tokens=20),
    "short": Decoding(num_beams=2, length_penalty=-1.0, max_new_tokens=20),
}


def in_one_pass(model: Prompted, item: EngineItem, tokens: tuple[int, ...]) -> torch.Tensor:
    """The log-probability of each token, from one pass over prompt and report."""
    prefix, suffixes = model.prompt_ids()
    embed = model.language_model.get_input_embeddings()
    parts = [embed(torch.tensor(prefix)), item.tokens, embed(torch.tensor(suffixes[item.prompt_id]))]
    prompt = torch.cat([part for part in parts if len(part)])
    with torch.no_grad():
        logits = model.language_model(inputs_embeds=torch.cat((prompt, embed(torch.tensor(tokens))))[None]).logits[0]
    return logits[len(prompt) - 1 : -1].log_softmax(-1)[torch.arange(len(tokens)), list(tokens)]


@pytest.mark.parametrize("kind", list(SHAPES)[:2])
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_what_one_pass_gives(rules: Decoding, kind: str) -> None:
    model, items = language_model(kind), studies(12)
    backends = GenerationEngine(model, rules, slots=5), HFBackend(model, rules, batch_size=5)
    for backend in backends:
        found = {result.key: result for result in backend.run(items)}
        for item in items:
            result = found[item.key]
            expected = in_one_pass(model, item, result.token_ids)
            torch.testing.assert_close(torch.tensor(result.logprobs), expected, atol=2e-4, rtol=1e-3)
    assert {result.finish_reason for result in found.values()} == {"stop", "length"} or rules.num_beams > 1


@pytest.mark.parametrize("beams", [1, 3])
def test_of_a_model_of_the_hub(beams: int, tiny_llm: Path, tmp_path: Path) -> None:
    folder = hub_model("llava", tmp_path, tiny_llm)
    rules = {"num_beams": beams, "min_new_tokens": 2, "max_new_tokens": 9, "repetition_penalty": 1.4}
    writer = ImageTextWriter(str(folder), GenerateConfig(slots=3, length_penalty=1.0, **rules), 0)
    rng = np.random.default_rng(1)
    items = [(Study(f"s{n}"), [Image.fromarray(rng.integers(0, 255, (48, 40 + n), np.uint8))]) for n in range(4)]
    model: Any = AutoModelForImageTextToText.from_pretrained(folder).eval()
    for prediction, (study, films) in zip(writer.write(iter(items)), items, strict=True):
        text = writer.text(study, 1)
        begins = {"add_special_tokens": not text.startswith("<s>"), "return_tensors": "pt"}
        inputs = writer.processor(text=[text], images=[[films[0].convert("RGB")]], **begins)
        kept = model.generate(**inputs, **rules, length_penalty=1.0, output_logits=True, return_dict_in_generate=True)
        written = kept.sequences[0, inputs["input_ids"].shape[1] :]
        count = prediction.num_tokens
        whole = {**inputs, "input_ids": torch.cat((inputs["input_ids"], written[None]), 1)}
        whole["attention_mask"] = torch.ones_like(whole["input_ids"])
        with torch.no_grad():
            logits = model(**whole).logits[0, inputs["input_ids"].shape[1] - 1 :]
        expected = logits.log_softmax(-1)[torch.arange(count), written[:count]]
        assert prediction.logprob == pytest.approx(float(expected.mean()), abs=1e-4)


PIECES = ["The heart", " is normal", ".", " No", " effusion", "!", "?", " 1", ".", "5", " cm", "\n", " ", "é", "…"]


@given(st.lists(st.sampled_from(PIECES), max_size=25), st.booleans())
@settings(deadline=None)
def test_sentences(tiny_llm: Path, pieces: list[str], ended: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    ids = tokenizer("".join(pieces), add_special_tokens=False)["input_ids"]
    text = tokenizer.decode(ids, skip_special_tokens=True).strip()
    tokens = [*ids, tokenizer.eos_token_id] if ended else ids
    logprobs = [-float(n) for n in range(len(tokens))]
    found = likelihood(tokenizer, tokens, logprobs, text, ended=ended)
    if not tokens:
        assert found == {"logprob": None, "sentence_logprobs": None}
        return
    assert found["logprob"] == pytest.approx(fmean(logprobs))
    sentences = re.split(SENTENCE_END, text) if text else []
    assert len(found["sentence_logprobs"]) == len(sentences)
    if len(sentences) == 1:
        assert found["sentence_logprobs"] == (pytest.approx(fmean(logprobs[: len(ids)])),)
    # values fall with the tokens' numbers, so they fall from sentence to sentence
    assert list(found["sentence_logprobs"]) == sorted(found["sentence_logprobs"], reverse=True)


def test_which_tokens_are_a_sentence(tiny_llm: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("Clear.", " No effusion."))
    tokens = [*first, *second, tokenizer.eos_token_id]
    logprobs = [*[-1.0] * len(first), *[-3.0] * len(second), -9.0]
    text = tokenizer.decode(tokens[:-1])
    assert text == "Clear. No effusion."
    found = likelihood(tokenizer, tokens, logprobs, text, ended=True)
    assert found == {"logprob": pytest.approx(fmean(logprobs)), "sentence_logprobs": (-1.0, -3.0)}
    assert likelihood(object(), tokens, logprobs, text, ended=True)["sentence_logprobs"] is None
