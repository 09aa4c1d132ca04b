"""Image-text models of random weights as the hub has them: a folder with weights, tokenizer, processor and template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TEXT = {
    **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 2048, "initializer_range": 0.3},
    **{"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2},
}
SIGHT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL = {"image_size": 32, "patch_size": 8}
IMAGE = {
    "llava": "<image>",
    "qwen2_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "gemma3": "<start_of_image>",
    "paligemma": "",
}
TOKENS = {
    "llava": ["<image>"],
    "qwen2_vl": ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"],
    "gemma3": ["<start_of_image>", "<end_of_image>", "<image_soft_token>"],
    "paligemma": ["<image>"],
}
FAMILIES = tuple(TOKENS)


def hub_model(kind: str, folder: Path, llm: Path) -> Path:
    """Write the folder; the tokenizer is that of `llm` with the family's own tokens."""
    tokenizer: Any = hf.AutoTokenizer.from_pretrained(llm)
    tokenizer.add_special_tokens({"additional_special_tokens": TOKENS[kind]})
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in TOKENS[kind]}
    size = {"vocab_size": len(tokenizer)}
    template = TEMPLATE.replace("IMAGE", IMAGE[kind])
    processor, fields = _parts(kind, tokenizer, ids, size, template)
    torch.manual_seed(0)
    config = hf.AutoConfig.for_model(kind, **fields)
    model: Any = hf.AutoModelForImageTextToText.from_config(config).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 1, 2
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _parts(kind: str, tokenizer: Any, ids: dict[str, int], size: dict[str, int], template: str) -> tuple[Any, Any]:
    square = {"height": 32, "width": 32}
    if kind == "llava":
        pixels = hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square)
        processor = hf.LlavaProcessor(
            pixels,
            tokenizer,
            patch_size=8,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=template,
        )
        text, vision = {"model_type": "llama", **TEXT, **size}, {"model_type": "clip_vision_model", **SIGHT, **SMALL}
        return processor, {"text_config": text, "vision_config": vision, "image_token_index": ids["<image>"]}
    if kind == "qwen2_vl":
        pixels = hf.Qwen2VLImageProcessor(patch_size=4, min_pixels=256, max_pixels=1024)
        processor = hf.Qwen2VLProcessor(
            pixels, tokenizer, hf.Qwen2VLVideoProcessor(patch_size=4), chat_template=template
        )
        vision = {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2}
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
        return processor, {
            "text_config": {**TEXT, **size, "rope_parameters": rope},
            "vision_config": vision,
            "image_token_id": ids["<|image_pad|>"],
            "video_token_id": ids["<|video_pad|>"],
            "vision_start_token_id": ids["<|vision_start|>"],
            "vision_end_token_id": ids["<|vision_end|>"],
        }
    if kind == "gemma3":
        names = ("boi_token", "eoi_token", "image_token")
        tokenizer.add_special_tokens({}, replace_extra_special_tokens=False)
        tokenizer._set_model_specific_special_tokens(dict(zip(names, TOKENS[kind], strict=True)))
        pixels = hf.Gemma3ImageProcessor(size=square, image_seq_length=4)
        processor = hf.Gemma3Processor(pixels, tokenizer, chat_template=template, image_seq_length=4)
        return processor, {
            "text_config": {**TEXT, **size, "head_dim": 16, "tie_word_embeddings": False},
            "tie_word_embeddings": False,
            "vision_config": {**SIGHT, **SMALL},
            "mm_tokens_per_image": 4,
            "boi_token_index": ids["<start_of_image>"],
            "eoi_token_index": ids["<end_of_image>"],
            "image_token_id": ids["<image_soft_token>"],
            "image_token_index": ids["<image_soft_token>"],
        }
    pixels = hf.SiglipImageProcessor(size=square)
    pixels.image_seq_length = 16
    return hf.PaliGemmaProcessor(pixels, tokenizer), {
        "text_config": {"model_type": "gemma", **TEXT, **size, "head_dim": 16},
        "vision_config": {**SIGHT, **SMALL, "projection_dim": 64},
        "image_token_index": ids["<image>"],
        "projection_dim": 64,
    }
