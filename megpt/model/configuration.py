"""MeGPTConfig: the contents of a checkpoint's config.json, from which `MeGPTForConditionalGeneration` is built."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from megpt.config import ModelConfig, TrainConfig

try:
    from transformers.configuration_utils import SubConfigSpec
except ImportError:  # an older transformers
    SubConfigSpec = None


FORMAT = 1
"""The newest layout of a checkpoint folder that this code reads, and the one that it writes."""


def _shared_fields() -> dict[str, Any]:
    """The fields that a run's config declares, with the defaults it gives them."""
    train = TrainConfig()
    return {**ModelConfig().model_dump(), "l2": train.l2, "loss_chunk": train.loss_chunk}


class MeGPTConfig(PreTrainedConfig):
    """The model's shape: every field of `megpt.config.ModelConfig`, the `l2` and `loss_chunk` of `TrainConfig`, and:

    - `text_config`: the language model's own config;
    - `layout`: how the encoder lays out its features; found by a forward pass when absent;
    - `folded`: DOConv is stored as an ordinary convolution;
    - `frozen`: source and fingerprint of each part that a partial checkpoint leaves out;
    - `complete`: the checkpoint leaves out no part;
    - `prompts`: the tokenised prompt bank with the text around it;
    - `tokenizer_fingerprint`: a hash of the vocabulary that the model was trained with;
    - `checkpoint_format`: the layout of the folder; a newer one than `FORMAT` is refused.
    """

    model_type = "megpt"
    if SubConfigSpec:
        sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")}

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    layout: dict[str, Any] | None = None
    folded: bool = False
    prompts: dict[str, Any] | None = None
    frozen: dict[str, Any] | None = None
    complete: bool = False
    tokenizer_fingerprint: str | None = None
    checkpoint_format: int = FORMAT
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if SubConfigSpec is None and not isinstance(self.text_config, PreTrainedConfig):
            self.text_config = AutoConfig.for_model(**{"model_type": "llama", **(self.text_config or {})})
        super().__post_init__(**{**_shared_fields(), **kwargs})

    @classmethod
    def of(cls, config: ModelConfig, text_config: PreTrainedConfig, **further: Any) -> MeGPTConfig:
        """The model's config from the run's `model` section and the language model's config."""
        return cls(**config.model_dump(), text_config=text_config.to_dict(), **further)

    @property
    def llm_lora_size(self) -> tuple[int, int]:
        """Rank and α of the language model's LoRA."""
        return self.llm_lora_rank or self.lora_rank, self.llm_lora_alpha or self.lora_alpha

    @property
    def longest(self) -> int | None:
        """The longest sequence of tokens that the language model takes; None when its config does not say."""
        value = getattr(self.text_config, "max_position_embeddings", None)
        return int(value) if value else None

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a film's visual tokens; known once the model is built."""
        height, width = (1, 1) if self.global_only else (self.layout or {})["grid"]
        return height, width

    @property
    def left_out(self) -> tuple[str, ...]:
        """The parts of the model whose weights a checkpoint refers to instead of holding them."""
        if self.complete:
            return ()
        # In mode deep the trained encoder is held; the frozen one is the copy that chooses the prompts.
        names = {"vision": "prompt_encoder"} if self.mode == "deep" else {}
        return tuple(names.get(part, part) for part in self.frozen or {})


if not SubConfigSpec:
    MeGPTConfig.sub_configs = {"text_config": AutoConfig}  # pyrefly: ignore[bad-assignment]
AutoConfig.register(MeGPTConfig.model_type, MeGPTConfig, exist_ok=True)
