"""Settings of the model, of its prompts, and of importing reference weights."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from megpt.settings import Fraction, Positive, Section

LOCAL_ENCODER = "local-dir:"


def divided(vision: str) -> tuple[str, str]:
    """`local-dir:PLACE` of `model.vision` as its two parts; any other encoder has no first part."""
    kind = LOCAL_ENCODER if vision.startswith(LOCAL_ENCODER) else ""
    return kind, vision.removeprefix(kind)


class ModelConfig(Section):
    """MeGPT: vision encoder → FEM + DOConv → projector → dynamic prompt → language model."""

    vision: str = "swin_base_patch4_window7_224"
    """The vision encoder: a timm name, hf-hub:NAME or local-dir:FOLDER of timm or open_clip, or a folder or hub id of a
    vision model of transformers."""
    vision_weights: str = "pretrained"
    """`pretrained` (timm's own), `none` (drawn from the seed, then saved whole), or a path to a .safetensors file: the
    encoder's, or the `model.safetensors` of a checkpoint that trained it."""
    vision_args: dict[str, Any] = Field(default_factory=dict)
    """Further keyword arguments for timm.create_model (embed_dim, depths, …)."""
    image_size: Positive | None = None
    """Side of the square to which films are resized, in pixels; the encoder's own by default."""
    llm: str = "meta-llama/Llama-2-7b-chat-hf"
    """The language model: a folder or hub id of a Hugging Face causal language model."""
    mode: Literal["shallow", "delta", "deep"] = "shallow"
    """What is trained of the encoder: nothing, LoRA on query and value, or all of it."""
    fem: bool = True
    """Whether the Feature Enhancement Module follows the encoder."""
    fem_domain: Literal["spatial", "token"] = "spatial"
    """Where FEM works: on the encoder's feature map, or on the reference's reshape of the projected tokens."""
    fem_norm: Literal["group", "batch"] = "group"
    """Normalisation inside FEM; `batch` is the reference's and depends on the number of workers."""
    square_kernels: bool = False
    """Build FEM with the reference's 1×1 and 3×3 kernels instead of 1×3 and 3×1, to load its weights."""
    doconv: bool = True
    """Whether a depthwise over-parameterised convolution follows FEM."""
    doconv_kernel: Positive = 3
    """Kernel side of DOConv (the reference has 1, which over-parameterises nothing)."""
    extra_modules: tuple[str, ...] = ()
    """Further modules that follow DOConv on the feature map, in this order: names from the group `megpt.modules`."""
    views: Literal["mean", "concat"] = "mean"
    """Whether the films of a study are averaged or kept in sequence."""
    global_only: bool = False
    """One token for a film, the mean of its feature map (R2GenGPT's setting of that name), instead of one per cell."""
    frame: Literal["reference", "chat_template", "text"] = "reference"
    """The text around the image: the reference's, the language model's own chat template, or the prompt alone."""
    dynamic_prompt: bool = True
    """One prompt per image cluster; false uses one fixed instruction."""
    context: tuple[Literal["indication", "comparison", "technique", "prior_report"], ...] = ()
    """Sections of a study that its prompt holds, in this order; a study's empty ones are left out."""
    context_tokens: Positive = 64
    """Longest section in the prompt, in tokens with its heading; the rest is cut off."""
    findings: bool = False
    """Whether a head on the encoder's features decides which of 13 observations are there, and the prompt names them;
    training teaches it with `train.label_loss`."""
    findings_threshold: Fraction | None = None
    """Probability from which an observation is told as present (`findings`); by default the one that gives the best
    micro-F1 on the validation split at the end of training, and 0.2 where there is none."""
    lora_rank: Positive = 16
    """Rank of LoRA (`mode: delta`, and `llm_lora`)."""
    lora_alpha: Positive = 16
    """Scale α of LoRA; its update is multiplied by α / rank."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout in front of LoRA's update during training."""
    llm_lora: bool = False
    """Train LoRA on the language model too."""
    llm_lora_targets: tuple[str, ...] | Literal["all-linear"] | None = None
    """Layers of the language model that get LoRA, by their last name, or `all-linear`; query and value by default."""
    llm_lora_rank: Positive | None = None
    """Rank of the language model's LoRA; `lora_rank` by default."""
    llm_lora_alpha: Positive | None = None
    """Scale α of the language model's LoRA; `lora_alpha` by default."""


class FitPromptsConfig(Section):
    """studies/ → prompts/"""

    num_clusters: Positive | Literal["silhouette"] = 12
    """Number of image clusters K, or `silhouette` to choose it from `candidates`."""
    candidates: tuple[Positive, ...] = (4, 6, 8, 12, 16, 24)
    """The values of K that `num_clusters: silhouette` compares."""
    terms: Positive = 6
    """How many terms from a cluster's reports its default prompt names."""
    max_studies: Positive = 50_000
    """Largest number of training studies to encode; a larger split is sampled by seed."""


class ExportConfig(Section):
    """checkpoint/ → a folder to share; `megpt export` takes these also without the `export.` in front."""

    full: bool = False
    """Hold the language model and the encoder too, so that the folder needs no other files."""
    merge: bool = False
    """Add every LoRA update to its weights, and fold DOConv into an ordinary convolution."""
    dtype: Literal["fp32", "bf16", "fp16"] | None = None
    """Number format of the weights that are written; that of the checkpoint by default."""
    max_shard_size: str = Field(default="5GB", pattern=r"^\d+ ?[KMGT]B$")
    """Largest size of one weights file, such as 500MB."""


class ImportConfig(Section):
    """a reference .pth → checkpoint/"""

    merge_lora: bool = False
    """Add the encoder's LoRA to its weights and store the whole encoder, instead of keeping the adapter apart."""
