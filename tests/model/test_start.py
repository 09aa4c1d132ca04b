"""Training from a checkpoint.

- The same model: every trained module is taken, and the model computes what the checkpoint does.
- Another encoder mode, rank or feature module: what fits is taken whole, the rest begins anew, and both are named.
- Where nothing fits the run is refused; so is a full export whose language model has no place.
- Settings of the model, decoding and prompts that the config leaves open are the checkpoint's.
- From the command line only: the `checkpoint` of a file is what `train` writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import make_studies, small_config
from tiny_models import MakeModel, films
from torch import nn

from megpt.config import GenerateConfig, load_config
from megpt.data.studies import write_studies
from megpt.errors import InputError
from megpt.model import MeGPTForConditionalGeneration
from megpt.model.checkpoint.decoding import carried, carry
from megpt.model.checkpoint.start import inherited, start_from
from ray_jobs.train.job import started

MODULES = ("projector.enhancer.doconv", "projector.enhancer.fem", "projector.linear", "projector.norm")


def shaken(model: Any) -> Any:
    """Trained parts away from where they start, so that taking them shows."""
    torch.manual_seed(11)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def logits(model: Any, processor: Any) -> torch.Tensor:
    return model.eval()(**processor(images=[films(2)])).logits


@pytest.mark.parametrize("mode", ["shallow", "delta", "deep"])
def test_the_same_model_is_taken_whole(make_model: MakeModel, tmp_path: Path, mode: str) -> None:
    old, processor = make_model("vit", mode=mode, llm_lora=mode == "delta")
    shaken(old).save_pretrained(tmp_path)
    new, _ = make_model("vit", mode=mode, llm_lora=mode == "delta")
    assert not torch.allclose(logits(new, processor), logits(old, processor), atol=1e-3)
    start = start_from(new, tmp_path)
    assert torch.equal(logits(new, processor), logits(old, processor))
    assert set(MODULES) <= set(start.taken) and not start.anew and not start.unused and not start.remarks
    adapters = {"adapter_vision", "adapter_language_model"} if mode == "delta" else set()
    assert adapters == {name for name in start.taken if name.startswith("adapter")}
    trained = [p.requires_grad for p in new.parameters()]
    assert trained == [p.requires_grad for p in old.parameters()]


def test_some_modules_are_taken(make_model: MakeModel, tmp_path: Path) -> None:
    old, _ = make_model("vit", mode="deep", doconv=False)
    shaken(old).save_pretrained(tmp_path)
    new, _ = make_model("vit", mode="delta", lora_rank=4)
    before = new.projector.enhancer.doconv.weight.detach().clone()
    start = start_from(new, tmp_path)
    assert start.lines() == [
        f"from {tmp_path}: projector.enhancer.fem, projector.linear, projector.norm",
        "begin anew: projector.enhancer.doconv, adapter_vision",
        "not used of the checkpoint: prompt_encoder, vision",
    ]
    assert torch.equal(new.projector.linear.weight, old.projector.linear.weight)
    assert torch.equal(new.projector.enhancer.doconv.weight, before)
    other, _ = make_model("vit", mode="delta", lora_rank=8)
    shaken(other).save_pretrained(tmp_path / "rank8")
    assert "adapter_vision (rank 8 and alpha 16 in the checkpoint)" in start_from(new, tmp_path / "rank8").anew


def test_where_nothing_fits(make_model: MakeModel, tmp_path: Path) -> None:
    old, _ = make_model("vit", fem=False, doconv=False, dynamic_prompt=False)
    shaken(old).save_pretrained(tmp_path)
    new, _ = make_model("resnet", fem=False, doconv=False, dynamic_prompt=False)
    old.projector.norm = None  # what remains has other shapes
    tensors = {k: v for k, v in old.state_dict().items() if k.startswith("projector.linear.weight")}
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"no trained module of this model fits the checkpoint .*\n  where: projector"):
        start_from(new, tmp_path)


def test_open_settings_are_the_checkpoint_s(make_model: MakeModel, tiny_llm: Path, tmp_path: Path) -> None:
    old, _ = make_model("vit", mode="delta", lora_rank=4)
    carry(old.generation_config, GenerateConfig(num_beams=2, max_new_tokens=55, min_new_tokens=7))
    old.save_pretrained(tmp_path)
    config = inherited(load_config(None, ["model.lora_rank=8", "generate.min_new_tokens=9"]), tmp_path)
    assert (config.model.vision, config.model.mode, config.model.image_size) == ("test_vit", "delta", 64)
    assert (config.model.lora_rank, config.model.llm) == (8, str(tiny_llm))
    generate = config.generate
    assert (generate.num_beams, generate.max_new_tokens, generate.min_new_tokens) == (2, 55, 9)
    assert config.prompts == str(tmp_path)
    old.save_pretrained(tmp_path / "full", full=True)
    with pytest.raises(InputError, match="does not say where its language model is"):
        inherited(load_config(), tmp_path / "full")
    assert inherited(load_config(None, [f"model.llm={tiny_llm}"]), tmp_path / "full").model.llm == str(tiny_llm)


def test_only_the_command_line_names_a_start(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"checkpoint: {tiny_checkpoint}\n")
    assert started(load_config(tmp_path / "a.yaml")).checkpoint is None
    line = [f"checkpoint={tiny_checkpoint}", f"output={tmp_path / 'out'}"]
    assert started(load_config(None, line)).checkpoint == str(tiny_checkpoint)
    with pytest.raises(InputError, match="checkpoint and output are the same folder"):
        started(load_config(None, [line[0], f"output={tiny_checkpoint}"]))
    with pytest.raises(InputError, match="no checkpoint at 'nowhere'"):
        started(load_config(None, ["checkpoint=nowhere", "output=x"]))


@pytest.mark.slow
def test_a_run_from_a_finished_one(tiny_llm: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from megpt.training.loop import make_parts, train_loop

    write_studies(tmp_path / "studies", "train", make_studies(10), 0)
    decoding = {"generate__num_beams": 2, "generate__max_new_tokens": 30, "generate__min_new_tokens": 3}
    first = small_config(tmp_path / "first", studies=tmp_path / "studies", llm=tiny_llm, **decoding)
    train_loop(first, lambda: make_parts(first), output=tmp_path / "first")
    assert carried(tmp_path / "first") == {
        **{"num_beams": 2, "max_new_tokens": 30, "min_new_tokens": 3},
        **{"repetition_penalty": 2.0, "length_penalty": 2.0, "do_sample": False},
    }
    line = [f"checkpoint={tmp_path / 'first'}", f"studies={tmp_path / 'studies'}", f"output={tmp_path / 'second'}"]
    line += ["train.max_steps=1", "train.lr=1e-9", "train.global_batch_size=8", "train.loggers=[]"]
    second = started(load_config(None, line))
    train_loop(second, lambda: make_parts(second), output=tmp_path / "second")
    assert f"train: from {tmp_path / 'first'}: {', '.join(MODULES)}" in capfd.readouterr().err
    one, two = (MeGPTForConditionalGeneration.from_pretrained(tmp_path / name) for name in ("first", "second"))
    assert torch.allclose(one.projector.linear.weight, two.projector.linear.weight, atol=1e-6)
    assert carried(tmp_path / "second") == carried(tmp_path / "first")
