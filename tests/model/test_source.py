"""What `model.llm` may name, beside the folder of a causal language model.

- a model of images and text (Gemma 3, Llama 4, Gemma 4, LLaVA): its decoder is taken, with equal scores; LoRA goes
  there alone; a checkpoint made on it loads again
- one whose decoder transformers does not have by itself is refused, and so are bitsandbytes, pickles and a tokenizer
  with more tokens than the embedding has rows: each says what to do
- a GGUF file loads dequantised, trains, is saved by its path and hash, and loads again
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import MakeModel, films, labels_for
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from megpt.errors import InputError
from megpt.model import MeGPTForConditionalGeneration
from megpt.model.language import check_folder, load_language_model
from megpt.model.source import language_config

TEXT = {
    **{"vocab_size": 400, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512},
    **{"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2},
}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
SIGHT = {**VISION, "image_size": 32, "patch_size": 8}
GEMMA4 = {
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "layer_types": ["sliding_attention", "full_attention"],
}
LLAMA4 = {"num_local_experts": 2, "intermediate_size_mlp": 128, "attn_temperature_tuning": False}
WHOLE: dict[str, dict[str, Any]] = {
    "gemma3": {"text_config": TEXT, "vision_config": SIGHT, "mm_tokens_per_image": 4},
    "llava": {
        "text_config": {"model_type": "llama", **TEXT},
        "vision_config": {"model_type": "clip_vision_model", **SIGHT},
    },
    "llama4": {"text_config": {**TEXT, **LLAMA4}, "vision_config": {**SIGHT, "vision_output_dim": 32}},
    "gemma4": {"text_config": {**TEXT, **GEMMA4, "global_head_dim": 16}, "vision_config": {**VISION, "head_dim": 16}},
}


def folder_of(kind: str, folder: Path, tokenizer: Path) -> Any:
    """A model of images and text with random weights, as a folder; the model too."""
    torch.manual_seed(0)
    model: Any = AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **WHOLE[kind])).eval()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", WHOLE)
def test_the_decoder_of_a_model_of_images_and_text(kind: str, tiny_llm: Path, tmp_path: Path) -> None:
    whole = folder_of(kind, tmp_path, tiny_llm)
    assert check_folder(str(tmp_path)).model_type == whole.config.get_text_config().model_type
    inner = load_language_model(str(tmp_path), torch.float32)
    ids = torch.arange(5, 20)[None]
    with torch.no_grad():
        assert torch.equal(inner(input_ids=ids).logits, whole(input_ids=ids).logits)
    assert type(inner).__name__.endswith("ForCausalLM")
    assert sum(p.numel() for p in inner.parameters()) < sum(p.numel() for p in whole.parameters())


def test_a_checkpoint_on_such_a_decoder(tiny_llm: Path, tmp_path: Path, make_model: MakeModel) -> None:
    folder_of("gemma3", tmp_path / "gemma", tiny_llm)
    model, processor = make_model(llm=str(tmp_path / "gemma"), llm_lora=True)
    adapted = [name for name, _ in model.language_model.named_modules() if name.endswith("lora_A")]
    assert len(adapted) == 4 and not any("vision" in name for name in adapted)
    inputs = processor(images=[films(1)])
    model(**inputs, labels=labels_for(processor, ["The heart is normal."])).loss.backward()
    model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    again = MeGPTForConditionalGeneration.from_pretrained(tmp_path / "checkpoint")
    assert again.generate(**inputs, max_new_tokens=8).equal(model.eval().generate(**inputs, max_new_tokens=8))


def test_a_decoder_that_is_none_by_itself(tmp_path: Path) -> None:
    AutoConfig.for_model("qwen2_vl").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is a qwen2_vl model, and no language model can be taken from it"):
        language_config(str(tmp_path))


@pytest.fixture
def copied(tiny_llm: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llm, tmp_path / "llm"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_pickles_only(copied: Path) -> None:
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    with pytest.raises(InputError, match="holds its weights as pickles only") as raised:
        check_folder(str(copied))
    assert f"M.from_pretrained('{copied}').save_pretrained('{copied}-safetensors')" in str(raised.value.next)


def test_bitsandbytes(copied: Path) -> None:
    edit(copied / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    for load in (check_folder, lambda name: load_language_model(name, torch.float32)):
        with pytest.raises(InputError, match="is quantised with bitsandbytes, which megpt does not support"):
            load(str(copied))


def test_more_tokens_than_rows(copied: Path, make_model: MakeModel) -> None:
    tokenizer = AutoTokenizer.from_pretrained(copied)
    rows = len(tokenizer)
    check_folder(str(copied))
    tokenizer.add_tokens(["<image>"])
    tokenizer.save_pretrained(copied)
    text = f"the tokenizer of model.llm = '{copied}' has {rows + 1} tokens, and its embedding {rows} rows"
    for use in (lambda: check_folder(str(copied)), lambda: make_model(llm=str(copied))):
        with pytest.raises(InputError) as raised:
            use()
        assert raised.value.what == text
        assert "resize_token_embeddings" in str(raised.value.next)


def gguf_of(llm: Path, path: Path) -> None:
    """A Llama folder as a GGUF file of float32 tensors, with a byte-level tokenizer."""
    gguf = pytest.importorskip("gguf")
    model: Any = AutoModelForCausalLM.from_pretrained(llm)
    config, tokenizer = model.config, json.loads((llm / "tokenizer.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    words = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3 if n < 3 else 1 for n in range(len(words))])
    writer.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads:  # llama.cpp turns the two halves of each head into pairs
            tensor = tensor.view(heads, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf(tiny_llm: Path, tmp_path: Path, make_model: MakeModel) -> None:
    file = tmp_path / "model.gguf"
    gguf_of(tiny_llm, file)
    check_folder(str(file))
    plain, ids = AutoModelForCausalLM.from_pretrained(tiny_llm), torch.arange(5, 20)[None]
    with torch.no_grad():
        found = load_language_model(str(file), torch.float32)(input_ids=ids).logits
        assert (found - plain(input_ids=ids).logits).abs().max() < 1e-5
    model, processor = make_model(llm=str(file))
    inputs = processor(images=[films(1)])
    for full in (False, True):
        folder = tmp_path / f"checkpoint-{full}"
        model.save_pretrained(folder, full=full)
        processor.save_pretrained(folder)
        again = MeGPTForConditionalGeneration.from_pretrained(folder)
        assert again.generate(**inputs, max_new_tokens=8).equal(model.eval().generate(**inputs, max_new_tokens=8))
    assert json.loads((tmp_path / "checkpoint-False" / "config.json").read_text())["llm"] == "../model.gguf"
    with file.open("r+b") as opened:
        opened.seek(-4, 2)
        opened.write(b"\0\0\0\1")
    with pytest.raises(InputError, match="the frozen language model differs"):
        MeGPTForConditionalGeneration.from_pretrained(tmp_path / "checkpoint-False")
