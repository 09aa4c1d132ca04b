"""The small language model: an ordinary Hugging Face folder, the same for the same seed, that reads its digest.

- the folder loads through the Auto classes, and its tokenizer spells any text;
- equal seeds give equal weights, without touching torch's own random state;
- a digest holds the words of its sentences, fewer of them and more noise the harder it is;
- the estimate of the shipped config knows its shapes before it is trained;
- with reports held out the weights with the lowest loss on them are kept, and training stops when it only rises; the
  steps taken are those that it would take without;
- no text at all is refused.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from megpt.config import LanguageModelConfig, load_config
from megpt.demo.language_model import SLOTS, digest, make_lesson, new_model, train_language_model, train_tokenizer
from megpt.errors import InputError
from megpt.model.cost.architectures import language_model_config

TEXTS = [
    f"There is a {size} {side} effusion. No {other}."
    for size in ("small", "large")
    for side in ("left", "right")
    for other in ("nodule", "pneumothorax", "edema")
]
TINY = LanguageModelConfig(vocab_size=300, hidden_size=32, num_layers=2, num_heads=2, steps=6, batch_size=4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    folder, losses = tmp_path_factory.mktemp("llm"), []
    train_language_model(TEXTS, TINY, folder, seed=1, on_step=lambda step, loss: losses.append(loss))
    return folder, losses


def test_it_is_an_ordinary_folder(trained: tuple[Path, list[float]]) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained[0]), AutoTokenizer.from_pretrained(trained[0])
    ids = tokenizer("There is a small left effusion.", return_tensors="pt").input_ids
    assert model(ids).logits.shape == (1, ids.shape[1], len(tokenizer))
    assert tokenizer.eos_token_id == model.config.eos_token_id
    assert len(trained[1]) == TINY.steps and trained[1][-1] < trained[1][0]


def test_the_estimate_knows_it_before_it_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where no demo has run
    config = load_config("phantom")
    made = new_model(config.language_model.model_copy(update={"vocab_size": len(_tokenizer())}), _tokenizer()).config
    known = language_model_config(config.model.llm).to_dict()
    differing = {key for key, value in made.to_dict().items() if known.get(key) != value}
    assert known["vocab_size"] == config.language_model.vocab_size and differing <= {"vocab_size", "dtype"}


def test_equal_seeds_give_equal_weights(trained: tuple[Path, list[float]], tmp_path: Path) -> None:
    state = torch.get_rng_state()
    train_language_model(TEXTS, TINY, tmp_path, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    first, second = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (trained[0], tmp_path))
    assert all(torch.equal(first[name], second[name]) for name in first)


@given(st.text(st.characters(blacklist_categories=("Cs",)), max_size=40))
def test_the_tokenizer_spells_any_text(text: str) -> None:
    tokenizer = _tokenizer()
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_a_harder_digest_holds_more_noise_and_fewer_words() -> None:
    tokenizer = _tokenizer()
    lessons = [make_lesson("Large left effusion.", tokenizer)]
    table = torch.eye(len(tokenizer))  # with one axis a token, a vector shows which words it was made of
    words = {t for part, _ in lessons[0].sentences for word in part for t in word}

    def shown(difficulty: float) -> float:
        noise = torch.randn(1, SLOTS, len(tokenizer), generator=torch.Generator().manual_seed(0))
        vectors = digest(lessons, table, random.Random(0), noise, difficulty)[0]
        assert vectors.shape == (SLOTS, len(tokenizer))
        return float(vectors[:, sorted(words)].max(1).values.max() / vectors.std())

    assert shown(0.0) > 2 * shown(1.0)


def test_the_lowest_loss_held_out_is_kept(tmp_path: Path) -> None:
    # A rate at which so small a model gets worse again, so that the first look is the best.
    settings = TINY.model_copy(update={"steps": 40, "val_every": 2, "patience": 2, "lr": 1.0})
    losses: list[float] = []
    fit = train_language_model(
        *(TEXTS, settings, tmp_path / "a"), seed=1, held_out=TEXTS[::5], on_step=lambda step, loss: losses.append(loss)
    )
    looks = list(fit.val_losses)
    assert looks == list(range(2, fit.steps + 1, 2)) and len(losses) == fit.steps < 40
    assert fit.val_losses[fit.kept] == min(fit.val_losses.values())
    assert looks.index(fit.kept) == len(looks) - 3  # and two without a lower one

    # The same weights again at the kept step: looking changes nothing of the training itself.
    plain: list[float] = []
    train_language_model(
        *(TEXTS, settings.model_copy(update={"val_every": None}), tmp_path / "b"),
        seed=1,
        on_step=lambda step, loss: plain.append(loss),
    )
    assert plain[: len(losses)] == losses
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / "a").state_dict()
    last = AutoModelForCausalLM.from_pretrained(tmp_path / "b").state_dict()
    assert not all(torch.equal(kept[name], last[name]) for name in kept)


def test_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no report text to train a language model on"):
        train_language_model([" ", ""], TINY, tmp_path / "out", seed=1)
    assert not (tmp_path / "out").exists()


def _tokenizer():
    return train_tokenizer(TEXTS, 300)
