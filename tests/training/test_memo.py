"""A study's prompt is chosen once, by an encoder that does not learn.

- what is known is taken, what is not is chosen from that study's films alone
- in the second epoch the frozen encoder does not run, and the losses are those of a run that chooses every time
- a study whose films could not be read is asked again, and so is one of a damaged file
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_groups import losses, run_group, train

from megpt.model import PromptBank
from megpt.model.build import build_encoder, build_model
from megpt.training.memo import PromptMemo


@pytest.fixture
def prompts(settings, tmp_path):
    """A bank of three prompts for the encoder of `settings`."""
    config = settings(tmp_path / "unused")
    encoder, identity = build_encoder(config.model, seed=config.seed)
    centroids = torch.randn(3, encoder.channels, generator=torch.Generator().manual_seed(0))
    bank = PromptBank(texts=("heart", "lungs", "report"), centroids=centroids, encoder=identity)
    return str(bank.save(tmp_path / "prompts"))


@pytest.mark.parametrize("mode", ["delta", "deep"])
def test_known_and_unknown(settings, tmp_path, prompts, mode):
    config = settings(tmp_path / "out", model__mode=mode, model__dynamic_prompt=True)
    model, _ = build_model(config.model, bank=PromptBank.load(prompts), seed=config.seed)
    pixels = torch.randn(4, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[True, True], [True, False], [True, True], [True, False]])
    chosen = model.encode(pixels, mask).prompt_id
    other = (chosen + 1) % 3
    known = torch.stack((other[0], torch.tensor(-1), other[2], torch.tensor(-1)))
    assert model.encode(pixels, mask, known).prompt_id.tolist() == [other[0], chosen[1], other[2], chosen[3]]
    assert model(pixels, mask, torch.tensor([[3, 1]] * 4), prompt_id=other).prompt_id.tolist() == other.tolist()


def test_what_is_remembered(tmp_path):
    memo = PromptMemo(tmp_path / "memo.bin", 5, 8)
    assert memo.known(np.array([0, 4])).tolist() == [-1, -1]
    memo.keep(np.array([4, 0, 2]), torch.tensor([0, 7, 1]), failed={2})
    assert PromptMemo(tmp_path / "memo.bin", 5, 8).known(np.arange(5)).tolist() == [7, -1, -1, -1, 0]


@given(st.binary(min_size=20, max_size=20))
def test_a_damaged_memory(tmp_path_factory, bits):
    path = tmp_path_factory.mktemp("memo") / "memo.bin"
    path.write_bytes(bits)
    known = PromptMemo(path, 5, 3).known(np.arange(5))
    assert all(-1 <= prompt < 3 for prompt in known.tolist())


def counted(config):
    """Train, and count the films that the frozen encoder sees."""
    from megpt.model import MeGPTForConditionalGeneration

    films, plain = [], MeGPTForConditionalGeneration._maps_for_prompts

    def count(self, its_films, maps):
        films.append(len(its_films))
        return plain(self, its_films, maps)

    MeGPTForConditionalGeneration._maps_for_prompts = count
    train(config)
    return sum(films)


@pytest.mark.slow
def test_chosen_once(settings, tmp_path, prompts):
    common = {"model__mode": "deep", "model__dynamic_prompt": True, "prompts": prompts, "train__max_steps": 7}
    once = settings(tmp_path / "once", **common)
    always = settings(tmp_path / "always", **common, train__zero_stage=3)
    films = sum(run_group(2, counted, once))
    # 22 studies have 33 films; the third step of three ends the first epoch, and 7 steps see 22 + 22 + 8 studies.
    assert films == 33
    assert sum(run_group(2, counted, always)) > 2 * films
    np.testing.assert_allclose(losses(Path(always.output)), losses(Path(once.output)), rtol=1e-4)
