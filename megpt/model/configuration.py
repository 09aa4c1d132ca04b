"""MeGPTConfig: everything `MeGPTForConditionalGeneration` needs to know to be built, as config.json holds it."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from megpt.config import ModelConfig


class MeGPTConfig(PreTrainedConfig):
    """The model's shape. Fields named as in `megpt.config.ModelConfig` mean the same.

    Further ones: `text_config` is the language model's own config; `llm` where its weights lie; `layout` how the
    encoder lays out its features (found by a forward pass when absent); `square_kernels` the reference's FEM kernels;
    `folded` true when DOConv is stored as an ordinary convolution; `frozen` names the parts that a partial checkpoint
    leaves out, each with its source and fingerprint; `complete` true when it leaves out none; `prompts` holds the
    tokenised prompt bank and the frame it stands in.
    """

    model_type = "megpt"
    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")}  # noqa: RUF012

    vision: str = "swin_base_patch4_window7_224"
    vision_weights: str = "none"
    vision_args: dict[str, Any] | None = None
    image_size: int | None = None
    layout: dict[str, Any] | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    llm: str = ""
    mode: str = "shallow"
    fem: bool = True
    fem_domain: str = "spatial"
    fem_norm: str = "group"
    square_kernels: bool = False
    doconv: bool = True
    doconv_kernel: int = 3
    folded: bool = False
    views: str = "mean"
    dynamic_prompt: bool = True
    lora_rank: int = 16
    lora_alpha: int = 16
    lora_dropout: float = 0.0
    llm_lora: bool = False
    l2: float = 1e-5
    loss_chunk: int = 256
    prompts: dict[str, Any] | None = None
    frozen: dict[str, Any] | None = None
    complete: bool = False
    tie_word_embeddings: bool = False

    @classmethod
    def of(cls, config: ModelConfig, text_config: PreTrainedConfig, *, l2: float, **further: Any) -> MeGPTConfig:
        """The model's config from the run's `model` section and the language model's config."""
        return cls(**config.model_dump(), text_config=text_config.to_dict(), l2=l2, **further)

    @property
    def context(self) -> int | None:
        """Tokens the language model can hold; None when it says nothing."""
        value = getattr(self.text_config, "max_position_embeddings", None)
        return int(value) if value else None


AutoConfig.register(MeGPTConfig.model_type, MeGPTConfig, exist_ok=True)
