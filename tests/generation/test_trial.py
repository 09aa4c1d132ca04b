"""Each class of language model is tried before anything is paid for: it trains and writes, or is refused by name.

- families: the engine where it can, `hf` with a word where the engine cannot, exit code 2 where neither can
- a class that would be trained on wrong scores (a padded batch that differs) is refused before training
- what is chosen is true: each family takes a training step, and its texts are those of `hf`, one study at a time (slow)
- longrope at its switch and short attention windows: `hf` where that is right, else refused with the length to set
- a class that cannot be built small is named and used as configured
- the trial needs seconds even for shapes of gigabytes, and does not touch torch's random state
"""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from bare_models import Prompted, studies
from transformers import AutoConfig, AutoModelForCausalLM

from megpt.config import GenerateConfig
from megpt.errors import InputError
from megpt.generation import Decoding, GenerationEngine, HFBackend
from megpt.generation.limits import too_long
from megpt.generation.trial import Verdict, check_training, usable, verdict
from megpt.model.language import hidden_states, vocabulary_head

TINY = {
    **{"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"intermediate_size": 128, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2},
}
MAMBA = {"vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "eos_token_id": 1, "pad_token_id": 2}
LINEAR = {
    **{"num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 4, "full_attention_interval": 2},
    **{"linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4},
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
FAMILIES: dict[str, tuple[dict[str, Any], str | None]] = {
    "llama": ({**TINY, "num_key_value_heads": 2}, "engine"),
    "qwen3": ({**TINY, "num_key_value_heads": 2, "head_dim": 16}, "engine"),
    "gemma3_text": ({**TINY, "num_key_value_heads": 2, "head_dim": 16}, "engine"),
    "phi3": ({**TINY, "num_key_value_heads": 2}, "engine"),
    "opt": ({**TINY, "ffn_dim": 128, "word_embed_proj_dim": 64}, "engine"),
    "falcon": ({**TINY, "new_decoder_architecture": False}, "engine"),
    "mpt": ({**TINY, "max_seq_len": 256}, "hf"),
    "gemma2": ({**TINY, "num_key_value_heads": 2, "head_dim": 16}, "hf"),
    "gpt_oss": ({**TINY, "num_key_value_heads": 2, "head_dim": 16, **EXPERTS, "num_local_experts": 4}, "hf"),
    "bloom": (TINY, "hf"),
    "falcon_alibi": ({**TINY, "alibi": True}, "hf"),
    "lfm2": ({**TINY, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]}, "hf"),
    "qwen3_next": ({**TINY, **LINEAR, **EXPERTS, "shared_expert_intermediate_size": 32}, "hf"),
    "qwen3_5_text": ({**TINY, **LINEAR}, "hf"),
    "mamba": ({**MAMBA, "state_size": 8}, "hf"),
    "falcon_h1": ({**TINY, "num_key_value_heads": 2, "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_state": 8}, None),
}


def config_of(family: str) -> Any:
    return AutoConfig.for_model(family.removesuffix("_alibi"), **FAMILIES[family][0])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_backend_of_each_family(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    config, expected = config_of(family), FAMILIES[family][1]
    assert verdict(config, 3).untried is None
    rules = GenerateConfig(num_beams=3)
    if expected is None:
        with pytest.raises(
            InputError, match=r"generate\.backend=engine cannot write with a FalconH1ForCausalLM"
        ) as raised:
            usable(rules, config, to_train=True)
        assert "engine: " in str(raised.value.cause) and "hf: " in str(raised.value.cause)
        return
    assert usable(rules, config, to_train=True).backend == expected
    said = capsys.readouterr().err
    assert ("generate.backend=hf is used: the engine cannot write with a " in said) == (expected == "hf")


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name, (_, backend) in FAMILIES.items() if backend])
@pytest.mark.parametrize("beams", [1, 3])
def test_what_is_chosen_trains_and_writes(family: str, beams: int) -> None:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config_of(family)).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight *= 20
    rules = Decoding(num_beams=beams, repetition_penalty=2.0, min_new_tokens=4, max_new_tokens=12)
    prompted, items = Prompted(model), studies(6)
    chosen = usable(GenerateConfig(num_beams=beams), model.config, to_train=True).backend
    backend = {"engine": GenerationEngine, "hf": HFBackend}[chosen](prompted, rules)
    alone = HFBackend(prompted, rules, batch_size=1)
    assert {r.key: r for r in backend.run(items)} == {r.key: r for r in alone.run(items)}
    embeds = torch.randn(2, 7, 64, requires_grad=True)
    hidden = hidden_states(model, embeds, torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7]))
    vocabulary_head(model)(hidden).logsumexp(-1).mean().backward()
    assert embeds.grad is not None and embeds.grad.isfinite().all() and embeds.grad.abs().sum() > 0


def test_a_class_that_training_gets_wrong_is_refused() -> None:
    # Its scores come from a layer between the hidden states and the output embeddings.
    small = {**TINY, "global_attn_every_n_layers": 1, "cls_token_id": 0, "sep_token_id": 1}
    config = AutoConfig.for_model("modernbert-decoder", **small)
    with pytest.raises(
        InputError, match="a ModernBertDecoderForCausalLM cannot be the language model of MeGPT"
    ) as raised:
        usable(GenerateConfig(), config, to_train=True)
    assert raised.value.cause == "a padded batch gives other scores than a study alone"


def test_hf_that_cannot_is_sent_to_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megpt.generation.trial.verdict", lambda *_: Verdict(hf="it takes no embeddings"))
    with pytest.raises(InputError, match="backend=hf cannot write with a LlamaForCausalLM") as raised:
        usable(GenerateConfig(backend="hf"), config_of("llama"))
    assert raised.value.next == "set generate.backend=engine"


def test_lengths_that_a_class_cannot_write(capsys: pytest.CaptureFixture[str]) -> None:
    mistral = AutoConfig.for_model("mistral", **TINY, num_key_value_heads=2, sliding_window=100)
    rules = GenerateConfig(num_beams=1, min_new_tokens=0, max_new_tokens=60)
    assert usable(rules, mistral, prompt=40).backend == "engine"
    assert usable(rules, mistral, prompt=41).backend == "hf"
    assert "101 tokens exceed its attention window of 100" in capsys.readouterr().err

    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "original_max_position_embeddings": 100}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, **factors}
    shape = {**TINY, "num_key_value_heads": 2, "max_position_embeddings": 400}
    phi = AutoConfig.for_model("phi3", **shape, original_max_position_embeddings=100, rope_parameters=rope)
    assert usable(rules, phi, prompt=40).backend == "engine"
    assert usable(rules, phi, prompt=101).backend == "hf"
    with pytest.raises(InputError, match="cannot write with a Phi3ForCausalLM") as raised:
        usable(rules, phi, prompt=60)
    assert raised.value.next == "set generate.max_new_tokens=40 or less"
    assert too_long(phi, 60, 40) == {}


def test_a_class_that_cannot_be_tried_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    config = AutoConfig.for_model("deepseek_v2", **TINY)  # without a number of experts for a token it computes nothing
    assert usable(GenerateConfig(), config, to_train=True).backend == "engine"
    assert "DeepseekV2ForCausalLM cannot be tried at a small size" in capsys.readouterr().err


def test_the_trial_of_a_large_model_is_short_and_leaves_no_trace() -> None:
    config = AutoConfig.for_model("llama", hidden_size=8192, intermediate_size=28672, num_hidden_layers=80)
    config.num_attention_heads, config.num_key_value_heads = 64, 8
    state, began = torch.get_rng_state(), time.process_time()
    assert verdict(config, 3) == Verdict()
    assert time.process_time() - began < 10
    assert torch.equal(torch.get_rng_state(), state)
    assert config.num_hidden_layers == 80


def test_a_padded_batch_is_really_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    from megpt.generation import trial
    from megpt.model.reduced import reduced_language_model

    model = trial._Tried(reduced_language_model(config_of("llama")))
    check_training(model)
    monkeypatch.setattr(trial, "hidden_states", lambda lm, e, m: hidden_states(lm, e, torch.ones_like(m)))
    with pytest.raises(trial.Disagreement):
        check_training(model)
