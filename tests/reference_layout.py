"""A straightforward evaluation of the reference's forward, and files in its checkpoint layout, for the import tests.

Written from the layout in docs/import_and_plan.md: Hugging Face Swin → mean over views → linear → (FEM and a 1×1
convolution on the reshaped tokens) → LayerNorm → Llama, whose weights are random everywhere, batch-norm statistics
included, so that nothing can be right by being zero or one.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM, SwinConfig, SwinModel

# transformers 5 renamed what the reference's files (transformers 4) hold.
_OLD = (
    (r"attention\.q_proj", "attention.self.query"),
    (r"attention\.k_proj", "attention.self.key"),
    (r"attention\.v_proj", "attention.self.value"),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"attention\.relative_position_bias\.relative_position_bias_table", "attention.self.relative_position_bias_table"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
)
GEOMETRY = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
IMAGE_SIZE = 32
INSTRUCTION = "Generate a comprehensive and detailed diagnosis report for this chest xray image."


def legacy_swin_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Swin's tensors under the names that transformers 4 gave them."""
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, old in _OLD:
            name = re.sub(pattern, old, name)
        renamed[name] = tensor
    return renamed


def tiny_swin() -> SwinModel:
    """A Hugging Face Swin of two stages with random weights."""
    config = SwinConfig(image_size=IMAGE_SIZE, patch_size=4, **GEOMETRY)
    return randomised(SwinModel(config))


def randomised(module: nn.Module) -> nn.Module:
    """Random values in every parameter and batch-norm statistic."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if name.endswith("running_var"):
            nn.init.uniform_(tensor, 0.5, 2.0)
        elif tensor.is_floating_point():
            nn.init.normal_(tensor.data, std=0.2)
    return module.eval()


class Basic(nn.Module):
    """The reference's BasicConv: convolution, batch norm, ReLU."""

    def __init__(self, i: int, o: int, kernel: int = 1, padding=0, dilation: int = 1, relu: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(i, o, kernel, padding=padding, dilation=dilation, bias=False)
        self.bn = nn.BatchNorm2d(o)
        self.active = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return x.relu() if self.active else x


class ReferenceFEM(nn.Module):
    """FEM with the single-integer kernels: what should be 1×3 and 3×1 is 1×1 and 3×3, under the pair's padding."""

    def __init__(self, n: int):
        super().__init__()
        c = n // 4
        m = 3 * c // 2
        self.branch0 = nn.Sequential(Basic(n, 2 * c), Basic(2 * c, 2 * c, 3, 1, relu=False))
        dilated = {"padding": 5, "dilation": 5, "relu": False}
        self.branch1 = nn.Sequential(
            Basic(n, c), Basic(c, m, 1, (0, 1)), Basic(m, 2 * c, 3, (1, 0)), Basic(2 * c, 2 * c, 3, **dilated)
        )
        self.branch2 = nn.Sequential(
            Basic(n, c), Basic(c, m, 3, (1, 0)), Basic(m, 2 * c, 1, (0, 1)), Basic(2 * c, 2 * c, 3, **dilated)
        )
        self.ConvLinear = Basic(6 * c, n, relu=False)
        narrow = max(16, n // 2)
        self.shortcut = nn.Sequential(Basic(n, narrow, relu=False), Basic(narrow, n, relu=False))
        self.scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Tensor) -> Tensor:
        merged = self.ConvLinear(torch.cat([self.branch0(x), self.branch1(x), self.branch2(x)], 1))
        return (merged * self.scale + self.shortcut(x)).relu()


class ReferenceDOConv(nn.Module):
    """DOConv with a 1×1 kernel: nothing but W."""

    def __init__(self, n: int):
        super().__init__()
        self.W = nn.Parameter(torch.empty(n, n, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.W[..., None])


class Reference(nn.Module):
    """R2GenGPT, or with `megpt` the MeGPT reference, in evaluation mode."""

    def __init__(self, llm: Path, *, megpt: bool, global_only: bool = False):
        super().__init__()
        self.megpt, self.global_only = megpt, global_only
        self.visual_encoder: nn.Module = tiny_swin()
        self.llama_model = LlamaForCausalLM.from_pretrained(llm).eval()
        hidden = self.llama_model.config.hidden_size
        self.llama_proj = nn.Linear(self.visual_encoder.num_features, hidden)
        self.layer_norm = nn.LayerNorm(hidden)
        self.side = round(hidden**0.5)
        if megpt:
            self.FEM = randomised(ReferenceFEM(self.side))
            self.DOConv2d = ReferenceDOConv(self.side)
            randomised(self.DOConv2d)
        randomised(self.llama_proj)
        randomised(self.layer_norm)

    def encode(self, views: list[Tensor]) -> Tensor:
        """Views, each (B, 3, S, S) → visual tokens (B, N, H)."""
        films = [self.visual_encoder(v) for v in views]
        features = [f.pooler_output.unsqueeze(1) if self.global_only else f.last_hidden_state for f in films]
        x = self.llama_proj(torch.stack(features).mean(0))
        if self.megpt:
            b, n, _ = x.shape
            picture = x.reshape(b, n, self.side, self.side).permute(0, 2, 1, 3)  # (B, w, N, c)
            x = self.DOConv2d(self.FEM(picture)).permute(0, 2, 1, 3).reshape(b, n, -1)
        return self.layer_norm(x)

    def logits(self, tokens: Tensor, before: Tensor, after: Tensor, report: Tensor) -> Tensor:
        """Logits (B, L, vocabulary) that predict the report's ids (B, L), given the ids around the visual tokens."""
        embed = self.llama_model.get_input_embeddings()
        b = len(tokens)
        parts = [embed(before).expand(b, -1, -1), tokens, embed(after).expand(b, -1, -1), embed(report)]
        out = self.llama_model(inputs_embeds=torch.cat(parts, 1)).logits
        return out[:, -report.shape[1] - 1 : -1]

    @torch.no_grad()
    def test_texts(self, views: list[Tensor], tokenizer: Any, **decoding: Any) -> list[str]:
        """What the reference's test writes: its label is None, for it is set in training only."""
        label = "  label:None" if self.megpt else ""
        frame = f"Human: <Img><ImageHere></Img> {INSTRUCTION}{label} \nAssistant:"
        ids = [tokenizer(part, add_special_tokens=False).input_ids for part in frame.split("<ImageHere>")]
        embed, tokens = self.llama_model.get_input_embeddings(), self.encode(views)
        around = [
            embed(torch.tensor(part)).expand(len(tokens), -1, -1)
            for part in ([tokenizer.bos_token_id, *ids[0]], ids[1])
        ]
        written = self.llama_model.generate(inputs_embeds=torch.cat([around[0], tokens, around[1]], 1), **decoding)
        texts = [tokenizer.decode(row).split(tokenizer.eos_token)[0] for row in written]
        # A trained model writes none of these; the reference would leave some of them in.
        return [re.sub("<pad>|<s>", "", text).strip() for text in texts]


def adapted(reference: Reference, *, rank: int = 4, alpha: int = 8) -> Reference:
    """Put random LoRA on the encoder's query and value, as delta mode does."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
    reference.visual_encoder = get_peft_model(reference.visual_encoder, config)
    for name, p in reference.visual_encoder.named_parameters():
        if "lora_" in name:
            nn.init.normal_(p.data, std=0.2)
    return reference.eval()


def save_reference(reference: Reference, path: Path, *, mode: str, statistics: bool = True, **settings: Any) -> Path:
    """Write the reference's `.pth`: the trained parameters of `mode`, and its `settings`.

    The reference keeps parameters only, so its own files lack the batch-norm statistics (`statistics=False`).
    """
    state = {k: v for k, v in reference.state_dict().items() if not k.startswith("llama_model.")}
    if mode == "shallow":
        state = {k: v for k, v in state.items() if not k.startswith("visual_encoder.")}
    elif mode == "delta":
        state = {k: v for k, v in state.items() if not k.startswith("visual_encoder.") or "lora_" in k}
    if not statistics:
        state = {k: v for k, v in state.items() if not re.search(r"running_|num_batches", k)}
    lora = {"vis_use_lora": mode == "delta", "vis_alpha": 8, "vis_r": 4}
    config = argparse.Namespace(**lora, max_length=60, global_only=reference.global_only, **settings)
    torch.save({"model": legacy_swin_names(state), "config": config, "epoch": 3, "step": 1200}, path)
    return path
