"""What makes a model look at its films: rates by part, balanced draws, a loss of the observations.

- parts with a rate of their own are groups of the optimizer that keep their proportion; alike, they are one group
- a weighted epoch is as long as any and holds each sample in proportion to its weight, rounded up or down, the same on
  every start; two epochs differ
- a study is drawn as often as its rarest observation asks for
- observations are the archive's labels, or what its report says, in the samples' order; read once a node
- the label loss is the mean cross-entropy over studies and observations; rows without labels add nothing, and parts of
  a batch add up to the whole
- the language model is told what the report states, else what the films show at the threshold
- a run with all three resumes where it was killed, gives the same curve on two workers under ZeRO-3 and with kept
  features, and its checkpoint holds the head
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_runs import make_studies
from torch import nn
from training_groups import losses, run_group

from megpt.config import DataConfig, TrainConfig, load_config
from megpt.errors import InputError
from megpt.model import MeGPTForConditionalGeneration
from megpt.model.findings import FINDINGS, THRESHOLD, FindingsHead, told
from megpt.study import CHEXPERT
from megpt.training.deepspeed import check_findings
from megpt.training.engine import parameter_groups, set_learning_rate
from megpt.training.loop import make_parts, train_loop
from megpt.training.observations import FILE, open_observations, rarity
from megpt.training.order import GlobalOrder

HEART, EFFUSION = CHEXPERT.index("Cardiomegaly"), CHEXPERT.index("Pleural Effusion")


def observe(texts: list[str]) -> np.ndarray:
    """A labeller that knows two words."""
    present = np.zeros((len(texts), len(CHEXPERT)), bool)
    present[:, HEART] = ["enlarged" in text for text in texts]
    present[:, EFFUSION] = ["effusion" in text for text in texts]
    return present


def test_rates_by_part() -> None:
    model = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("vision", "projector", "language_model")})
    model["language_model"].bias.requires_grad_(False)
    assert [len(group["params"]) for group in parameter_groups(model, TrainConfig(lr=1e-3))] == [5]
    groups = parameter_groups(model, TrainConfig(lr=1e-3, lr_vision=1e-4, lr_llm=2e-3))
    assert [(len(group["params"]), group["lr"]) for group in groups] == [(2, 1e-4), (2, 1e-3), (1, 2e-3)]
    optimizer = torch.optim.AdamW(groups)
    set_learning_rate(SimpleNamespace(optimizer=optimizer), 5e-4)
    np.testing.assert_allclose([group["lr"] for group in optimizer.param_groups], [5e-5, 5e-4, 1e-3])


def test_a_weighted_epoch() -> None:
    weights = np.array([1.0, 1, 1, 1, 1, 3, 1.5, 0.5, 1, 1])
    order = GlobalOrder(10, 4, 7, weights)
    epochs = [np.concatenate([order.batch(3 * epoch + step) for step in range(3)]) for epoch in range(200)]
    expected = weights / weights.sum() * 10
    for epoch in epochs:
        count = np.bincount(epoch, minlength=10)
        assert len(epoch) == 10 and (count >= np.floor(expected)).all() and (count <= np.ceil(expected)).all()
    np.testing.assert_allclose(np.mean([np.bincount(e, minlength=10) for e in epochs], 0), expected, atol=0.1)
    assert any((epochs[0] != epoch).any() for epoch in epochs)
    again = GlobalOrder(10, 4, 7, weights)
    assert np.array_equal(again.batch(7), order.batch(7))


def test_how_often_a_study_is_drawn() -> None:
    present = np.zeros((16, 14), bool)
    present[:, 8] = True
    present[:4, HEART] = True
    present[0, EFFUSION] = True
    assert rarity(present, power=0.5).tolist() == [4.0, 2.0, 2.0, 2.0, *[1.0] * 12]
    assert rarity(present, power=1.0).tolist() == [16.0, 4.0, 4.0, 4.0, *[1.0] * 12]
    assert rarity(np.zeros((3, 14), bool), power=0.5).tolist() == [1.0] * 3


def test_observations_of_the_samples(tmp_path: Path) -> None:
    studies = make_studies(6)
    studies[3] = replace(studies[3], labels={"Edema": 1, "Cardiomegaly": -1})
    studies[4] = replace(studies[4], labels={})
    samples = SimpleNamespace(ids=["train0003", "train0002", "train0004", "train0001"])
    asked: list[str] = []

    def noted(texts: list[str]) -> np.ndarray:
        asked.extend(texts)
        return observe(texts)

    found = open_observations(samples, lambda: studies, tmp_path, DataConfig(), noted)
    named = [{CHEXPERT[column] for column in np.flatnonzero(row)} for row in found]
    assert named == [{"Edema"}, {"Cardiomegaly", "Pleural Effusion"}, {"Cardiomegaly"}, {"Pleural Effusion"}]
    count = len(asked)
    again = open_observations(samples, lambda: studies, tmp_path, DataConfig(), noted)
    assert np.array_equal(again, found) and len(asked) == count and (tmp_path / FILE).is_file()


def test_the_label_loss() -> None:
    logits, stated = torch.randn(3, 13), torch.tensor(np.eye(3, 14), dtype=torch.float32)
    told = stated[:, [column for column, name in enumerate(CHEXPERT) if name != "No Finding"]]
    head = FindingsHead(6)
    head.scale = 2.0
    expected = 2 * nn.functional.binary_cross_entropy_with_logits(logits, told)
    torch.testing.assert_close(head.loss(logits, stated, 3), expected)
    parts = [head.loss(logits[rows], stated[rows], 3) for rows in (slice(0, 1), slice(1, 3))]
    torch.testing.assert_close(sum(parts), expected)
    known = 2 * nn.functional.binary_cross_entropy_with_logits(logits[1:], told[1:])
    stated[0] = torch.nan
    torch.testing.assert_close(head.loss(logits, stated, 2), known)


def test_what_is_told() -> None:
    logits = torch.tensor([0.1, -0.1] * 6 + [0.1]).repeat(3, 1)
    stated = torch.full((3, 14), torch.nan)
    stated[0] = 0
    stated[0, EFFUSION] = 1
    found = told(logits, 0.5, stated)
    assert found[0].nonzero().flatten().tolist() == [FINDINGS.index("Pleural Effusion")]
    assert torch.equal(found[1:], logits[1:] > 0)  # nobody knows: what the films show
    assert torch.equal(told(logits, 0.5), logits > 0)
    assert told(logits, 0.0).all() and not told(logits, 1.0).any()
    assert torch.equal(told(logits, None), logits.sigmoid() >= THRESHOLD)


def test_the_loss_and_its_head_need_each_other() -> None:
    with pytest.raises(InputError, match=r"model.findings needs train.label_loss above 0"):
        check_findings(load_config(overrides=["model.findings=true"]))
    with pytest.raises(InputError, match=r"train.label_loss = 2 has no effect without model.findings"):
        check_findings(load_config(overrides=["train.label_loss=2"]))
    check_findings(load_config(overrides=["model.findings=true", "train.label_loss=2"]))


ALL = {
    "train__label_loss": 1.0,
    "model__findings": True,
    "train__balance": "findings",
    "train__lr_vision": 1e-3,
    "model__mode": "deep",
    "train__max_steps": 6,
    "train__save_every": 3,
}


def train_observing(configs: list) -> None:
    for config in configs:
        train_loop(config, lambda config=config: make_parts(config, observe), output=Path(config.output))


@pytest.mark.slow
def test_a_run_with_all_three(settings, tmp_path: Path) -> None:
    one, resumed = (settings(tmp_path / name, **ALL) for name in ("one", "resumed"))
    split = settings(tmp_path / "split", **ALL, train__zero_stage=3)
    shallow = {"model__mode": "shallow", "train__max_steps": 5}
    kept, fresh = (settings(tmp_path / str(on), **ALL | shallow, train__cache_features=on) for on in (True, False))
    run_group(1, train_observing, [one, resumed, kept, fresh])
    run_group(2, train_observing, [split])
    curve = losses(tmp_path / "one")
    assert len(curve) == 6
    np.testing.assert_allclose(losses(tmp_path / "split"), curve, rtol=1e-4)
    np.testing.assert_allclose(losses(tmp_path / "True"), losses(tmp_path / "False"), rtol=1e-5)

    rows = (tmp_path / "one" / "log.jsonl").read_text()
    assert rows.count('"label_loss": ') == 6
    weights = load_file(tmp_path / "one" / "model.safetensors")
    assert {name for name in weights if "findings" in name} == {f"findings.{n}" for n in ("head.weight", "head.bias")}
    model = MeGPTForConditionalGeneration.from_pretrained(tmp_path / "one")
    assert torch.equal(model.findings.head.weight, weights["findings.head.weight"])

    # Back to the checkpoint after three steps: the last three again, to the same weights.
    steps = tmp_path / "resumed" / "steps"
    for file in (steps / "step-00000006").iterdir():
        file.unlink()
    run_group(1, train_observing, [resumed])
    assert losses(tmp_path / "resumed") == curve
    again = load_file(tmp_path / "resumed" / "model.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())
