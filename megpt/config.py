"""Every setting, once.

A run is described by one YAML file plus dotted overrides (`train.lr=3e-4`), both checked here:

    config = load_config("configs/phantom.yaml", ["output=runs/demo", "train.max_steps=100"])

An unknown key names the nearest known one; a value out of range names its field. Nothing below reads a file other
than the YAML.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from megpt.errors import InputError
from megpt.recipe import parse_recipe
from megpt.settings import Section, apply_override, as_input_error, known_keys, read_yaml, set_key

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class ClusterConfig(Section):
    """What the job asks of Ray."""

    num_workers: Positive | tuple[Positive, Positive] = 1
    """Workers (training ranks, or generating actors); `[min, max]` lets the job run with what there is."""
    gpus_per_worker: float = Field(default=0, ge=0)
    """GPUs of one worker; a fraction shares a GPU between generating actors."""
    cpus_per_worker: float = Field(default=1, gt=0)
    """Logical CPUs of one worker."""
    wait_s: float = Field(default=300, ge=0)
    """How long to wait for workers that the cluster cannot place (yet, or after a lost node), before an error."""

    @property
    def min_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def max_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @model_validator(mode="after")
    def _ordered(self) -> ClusterConfig:
        if self.min_workers > self.max_workers:
            raise ValueError("num_workers: [min, max] needs min ≤ max")
        return self


class DataConfig(Section):
    """How an archive is read."""

    format: str = "auto"
    """Layout of `source`: auto, or a name that `megpt.data.sources.FORMATS` lists."""
    reports: str | None = None
    """Where the reports lie when they are not inside the archive (MIMIC-CXR keeps them apart)."""
    annotations: str | None = None
    """A table or JSON of studies to use instead of the archive's own."""
    cleaner: str = "none"
    """How report text is normalised before it is used or scored (names: `megpt.recipe`); a score names its cleaner."""
    section: Literal["report", "findings", "impression"] = "report"
    """The text that is learnt and scored."""
    max_views: Positive | None = None
    """Films of a study that are used at most, in the archive's order; all of them by default."""
    max_pixels: Positive = 200_000_000
    """A film that says it holds more pixels is refused unread (a decompression bomb)."""

    @field_validator("cleaner")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            return str(parse_recipe(name))
        except InputError as error:
            raise ValueError(f"{error.what}; {error.next}") from None


class PrepareConfig(Section):
    """archive → studies/"""

    films: Literal["resize", "embed", "link"] = "resize"
    """resize: films decoded once, shrunk and stored in the table; embed: stored as they are; link: only their path."""
    image_size: Positive = 512
    """Shorter side of a stored film, in pixels (`films: resize`)."""
    jpeg_quality: int = Field(default=95, ge=50, le=100)
    """Quality of a stored film (`films: resize`)."""
    shard_size: Positive = 500
    """Studies in one Parquet file."""
    max_failed_fraction: Fraction = 0.05
    """More unreadable studies than this end the job with exit code 3."""


class ModelConfig(Section):
    """MeGPT: vision encoder → FEM + DOConv → projector → dynamic prompt → language model."""

    vision: str = "swin_base_patch4_window7_224"
    """A timm model name."""
    vision_weights: str = "pretrained"
    """pretrained (timm's own), none (random from the seed, then saved whole), or a path to a .safetensors file."""
    vision_args: dict[str, Any] = Field(default_factory=dict)
    """Further keyword arguments for timm.create_model (embed_dim, depths, …)."""
    image_size: Positive | None = None
    """Side of the square the films are resized to; the encoder's own by default."""
    llm: str = "meta-llama/Llama-2-7b-chat-hf"
    """A Hugging Face causal language model: a folder or a hub id."""
    mode: Literal["shallow", "delta", "deep"] = "shallow"
    """What is trained of the encoder: nothing, LoRA on query and value, or all of it."""
    fem: bool = True
    """Feature Enhancement Module."""
    fem_domain: Literal["spatial", "token"] = "spatial"
    """spatial: on the encoder's feature map; token: the reference's reshape of the projected tokens."""
    fem_norm: Literal["group", "batch"] = "group"
    """Normalisation inside FEM; `batch` is the reference's and depends on the number of workers."""
    square_kernels: bool = False
    """FEM with the reference's kernels, 1×1 and 3×3 where 1×3 and 3×1 were meant: for its weights only."""
    doconv: bool = True
    """Depthwise over-parameterised convolution behind FEM."""
    doconv_kernel: Positive = 3
    """Kernel side of DOConv (the reference has 1, where nothing is over-parameterised)."""
    views: Literal["mean", "concat"] = "mean"
    """Several films of a study: averaged, or kept in sequence."""
    dynamic_prompt: bool = True
    """One prompt per image cluster; false: the one fixed instruction."""
    lora_rank: Positive = 16
    lora_alpha: Positive = 16
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """LoRA on the encoder's attention query and value (`mode: delta`)."""
    llm_lora: bool = False
    """LoRA on the language model's attention query and value as well, with the same rank and alpha."""


class FitPromptsConfig(Section):
    """studies/ → prompts/"""

    num_clusters: Positive | Literal["silhouette"] = 12
    """K of the clustering, or `silhouette` to choose it from `candidates`."""
    candidates: tuple[Positive, ...] = (4, 6, 8, 12, 16, 24)
    """The K tried for `silhouette`."""
    terms: Positive = 6
    """Terms of a cluster's reports that its default prompt names."""
    max_studies: Positive = 50_000
    """Training studies that are encoded at most (drawn evenly, by seed)."""


class TrainConfig(Section):
    """studies/ + prompts/ → checkpoint/"""

    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage; picks deepspeed_configs/zero{N}.json."""
    deepspeed: str | None = None
    """A DeepSpeed JSON to use instead (e.g. deepspeed_configs/offload.json)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the forward and backward pass."""
    epochs: float = Field(default=1, gt=0)
    """Passes over the training split; `max_steps` takes precedence."""
    max_steps: Positive | None = None
    """Optimizer steps."""
    global_batch_size: Positive = 16
    """Studies per optimizer step over all workers: the loss curve does not depend on how many there are."""
    micro_batch_size: Positive | None = None
    """Studies per worker in one forward pass (its whole share by default); the rest is gradient accumulation."""
    lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate of AdamW."""
    min_lr: float = Field(default=1e-6, ge=0)
    """Where the cosine ends."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up."""
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    grad_clip: float = Field(default=1.0, ge=0)
    """Largest norm of the gradient; 0 for no clipping."""
    l2: float = Field(default=1e-5, ge=0)
    """λ of λ(‖W_proj‖² + ‖γ_LN‖²), added to the cross-entropy."""
    max_report_tokens: Positive = 100
    """Report tokens that are learnt at most (training only: references for scoring are never cut)."""
    loss_chunk: Positive = 256
    """Report positions whose vocabulary logits exist at one time."""
    activation_checkpointing: bool = False
    """Recompute encoder and language-model activations in the backward pass instead of keeping them."""
    cache_features: bool = False
    """Keep the frozen encoder's features after the first epoch (`mode: shallow`)."""
    save_every: Positive | None = None
    """Steps between checkpoints; once per epoch by default."""
    keep: Positive = 2
    """Checkpoints kept besides the best one."""
    val_every: float | None = Field(default=None, gt=0)
    """Validation: every N steps (≥ 1) or every fraction of an epoch (< 1); none by default."""
    val_limit: Positive | None = None
    """Validation studies that are generated and scored at most."""
    best_metric: str = "(BLEU_4 + CIDEr) / 2"
    """The validation score that picks the best checkpoint: a score's name, or this mean."""
    log_every: Positive = 10
    """Steps between log lines."""
    loader_workers: int = Field(default=2, ge=0)
    """Threads per worker that decode films ahead of the step."""
    max_failures: int = Field(default=3, ge=-1)
    """Restarts after a lost worker or node; -1 for no limit. A preemption does not count."""
    max_failed_fraction: Fraction = 0.05
    """More training studies without a readable film than this end the job with exit code 3."""
    timeout_s: float = Field(default=1800, gt=0)
    """A collective operation that hangs longer than this ends the group of workers, as a lost worker does."""
    loggers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ("tensorboard",)


class GenerateConfig(Section):
    """archive or studies/ + checkpoint/ → predictions/"""

    backend: Literal["engine", "hf"] = "engine"
    """engine: continuous batching; hf: plain transformers.generate, the reference."""
    split: Literal["train", "val", "test", "all"] = "test"
    """The split of a studies/ table to write reports for; archives without splits are taken whole."""
    num_beams: Positive = 3
    repetition_penalty: float = Field(default=2.0, gt=0)
    length_penalty: float = 2.0
    min_new_tokens: int = Field(default=40, ge=0)
    max_new_tokens: Positive = 100
    do_sample: bool = False
    """Draw tokens by (seed, study_id) instead of taking the likeliest; needs num_beams: 1."""
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    slots: Positive = 32
    """Studies in flight in one engine (batch size of `backend: hf`)."""
    shard_size: Positive = 500
    """Studies in one Parquet file: what a kill loses at most."""
    decode_workers: Positive = 2
    """Tasks that decode films ahead of each generating worker."""
    max_failed_fraction: Fraction = 0.05
    """More failed studies than this end the job with exit code 3."""

    @model_validator(mode="after")
    def _consistent(self) -> GenerateConfig:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError("min_new_tokens must not exceed max_new_tokens")
        if self.do_sample and self.num_beams > 1:
            raise ValueError("do_sample needs num_beams: 1")
        return self


class ColumnsConfig(Section):
    """Columns of the files given to `evaluate`; found by name by default."""

    id: str | None = None
    """What names a study: study_id, id, images_id, dicom_id."""
    text: str | None = None
    """The generated report: model_prediction, pred_report, hyp, generated, report."""
    truth: str | None = None
    """The reference report: reference, ref, ground_truth, section_findings, labels, report beside a prediction."""


class EvaluateConfig(Section):
    """predictions/ → metrics.json, per_study.parquet, index.html"""

    columns: ColumnsConfig = ColumnsConfig()
    encoding: str | None = None
    """Encoding of the text files (utf-8, cp1252, utf-16, …); found by their bytes by default."""
    delimiter: str | None = None
    """Delimiter of CSV files, one character; found by their first lines by default."""
    rexrank: bool = False
    """Also write rexrank.json, the predictions as a ReXrank submission."""

    bootstrap: Positive = 1000
    """Resamples of the studies behind each interval."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    baselines: bool = True
    """Also score the constant and the permuted report."""
    meteor: bool = True
    """METEOR needs Java 8 or newer."""
    films: int = Field(default=24, ge=0)
    """Studies shown with their films on the page."""


class PhantomConfig(Section):
    """The embedded archive: drawn films with findings of known kind, side and size."""

    num_studies: Positive = 5000
    image_size: Positive = 128
    """Shorter side of a drawn film, in pixels."""
    broken: int = Field(default=12, ge=0)
    """Studies whose film is damaged on purpose: truncated, empty, misnamed or missing."""


class ImportConfig(Section):
    """a reference .pth → checkpoint/"""

    merge_lora: bool = False
    """Add the encoder's LoRA to its weights and store the whole encoder, rather than carry the adapter."""


class LanguageModelConfig(Section):
    """The small language model that the demo trains on report text, saved as an ordinary Hugging Face folder."""

    vocab_size: Positive = 512
    hidden_size: Positive = 128
    num_layers: Positive = 4
    num_heads: Positive = 4
    steps: Positive = 600
    batch_size: Positive = 32
    lr: float = Field(default=2e-3, gt=0)


class AblateConfig(Section):
    """One train → generate → evaluate per variant, one table at the end."""

    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Name → dotted overrides; the unchanged config is always run as `full`."""


class Config(Section):
    """One run. Paths are the jobs' inputs and outputs; sections hold the settings of each."""

    seed: int = 42
    output: str | None = None
    """Folder this job writes."""
    source: str | None = None
    """Archive of films: a folder, a manifest, or a studies/ table."""
    studies: str | None = None
    """Output of `prepare`."""
    prompts: str | None = None
    """Output of `fit-prompts`."""
    checkpoint: str | None = None
    """Output of `train` or `import-checkpoint`."""
    predictions: str | None = None
    """Output of `generate`, or for `evaluate` anyone's reports: CSV, TSV, JSON, JSONL or Parquet."""
    references: str | None = None
    """Reports to score against: a file of the same kinds, a studies/ table, R2Gen's or ReXrank's JSON."""
    training: str | None = None
    """Training reports, for the constant baseline and `+unkN`: the same kinds; those of `studies` by default."""
    limit: Positive | None = None
    """Use the first N studies only (`--limit N`)."""
    cluster: ClusterConfig = ClusterConfig()
    data: DataConfig = DataConfig()
    prepare: PrepareConfig = PrepareConfig()
    model: ModelConfig = ModelConfig()
    fit_prompts: FitPromptsConfig = FitPromptsConfig()
    train: TrainConfig = TrainConfig()
    generate: GenerateConfig = GenerateConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    phantom: PhantomConfig = PhantomConfig()
    language_model: LanguageModelConfig = LanguageModelConfig()
    import_checkpoint: ImportConfig = ImportConfig()
    ablate: AblateConfig = AblateConfig()

    def require(self, *keys: str) -> None:
        """Raise InputError for the first top-level path key that is not set."""
        for key in keys:
            if getattr(self, key) is None:
                raise InputError(
                    f"`{key}` is not set",
                    cause=f"this job needs it: {(type(self).model_fields[key].description or key).strip()}",
                    next=f"add {key}=PATH to the command, or `{key}: PATH` to the config",
                )

    def updated(self, **values: Any) -> Config:
        """A copy with top-level values replaced, checked again."""
        return Config.model_validate({**self.model_dump(mode="json"), **values})

    def overridden(self, changes: dict[str, Any]) -> Config:
        """A copy with dotted keys (`model.fem`) replaced, checked again.

        Raises:
            InputError: an unknown key or a value out of range.
        """
        tree = self.model_dump(mode="json")
        for key, value in changes.items():
            set_key(tree, key, value, KNOWN_KEYS)
        return _validated(tree, where="the overrides")

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


KNOWN_KEYS = known_keys(Config)
"""Every dotted key a config may hold."""


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """The config in `path` (YAML; defaults without one) with `section.key=value` overrides applied.

    Raises:
        InputError: no such file, not YAML, an unknown key, or a value out of range. The text names the field.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        tree = read_yaml(Path(path), KNOWN_KEYS)
    for override in overrides:
        apply_override(tree, override, KNOWN_KEYS)
    return _validated(tree, where=str(path) if path else "the command line")


def _validated(tree: dict[str, Any], *, where: str) -> Config:
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise as_input_error(error, where=where, known=KNOWN_KEYS) from None
