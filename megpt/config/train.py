"""Settings of training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from megpt.settings import Fraction, Indifferent, Positive, Section

Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(Section):
    """studies/ + prompts/ → checkpoint/"""

    zero_stage: Annotated[Literal[0, 1, 2, 3], Indifferent] = 2
    """DeepSpeed ZeRO stage; selects deepspeed_configs/zero{N}.json."""
    deepspeed: Annotated[str | None, Indifferent] = None
    """A DeepSpeed JSON file to use instead, or the name of a shipped one (`offload`, `zero3`)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the forward and backward pass."""
    epochs: float = Field(default=1, gt=0)
    """Passes over the training split; `max_steps` takes precedence."""
    max_steps: Positive | None = None
    """Optimizer steps of the whole run; follows from `epochs` by default."""
    global_batch_size: Positive = 16
    """Studies per optimizer step over all workers; the loss curve does not depend on their number."""
    micro_batch_size: Annotated[Positive | None, Indifferent] = None
    """Studies per worker in one forward pass (its whole share by default); the rest is gradient accumulation."""
    lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate of AdamW."""
    lr_vision: float | None = Field(default=None, gt=0)
    """Peak learning rate of the encoder (`mode: deep`) or of its LoRA (`mode: delta`); that of `lr` by default."""
    lr_llm: float | None = Field(default=None, gt=0)
    """Peak learning rate of the language model's LoRA (`model.llm_lora`); that of `lr` by default."""
    min_lr: float = Field(default=1e-6, ge=0)
    """Learning rate at the end of the cosine schedule; the other parts' rates fall in proportion."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay of AdamW."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """AdamW's decay rates β₁ and β₂ of its running averages of the gradient and of its square."""
    grad_clip: float = Field(default=1.0, ge=0)
    """Largest norm of the gradient; 0 turns clipping off."""
    l2: float = Field(default=1e-5, ge=0)
    """λ of the penalty λ(‖W_proj‖² + ‖γ_LN‖²), added to the cross-entropy."""
    balance: Literal["none", "findings"] = "none"
    """`findings` draws studies with rare observations more often (`balance_power`)."""
    balance_power: Fraction = 0.5
    """A study is drawn (f_max / f)^power times as often as one without observations: f is the share of studies with its
    rarest observation, f_max that of the commonest; 1 balances them in full."""
    label_loss: float = Field(default=0, ge=0)
    """Weight of a second loss: which of 13 observations the report states, told by the head of `model.findings`."""
    max_report_tokens: Positive = 100
    """Longest report that is learnt, in tokens (training only: references are never cut for scoring)."""
    loss_chunk: Annotated[Positive, Indifferent] = 256
    """Report positions whose vocabulary logits are in memory at one time."""
    activation_checkpointing: Annotated[bool, Indifferent] = False
    """Recompute the activations of encoder and language model in the backward pass instead of keeping them."""
    cache_features: Annotated[bool, Indifferent] = False
    """Keep the frozen encoder's features after the first epoch (`mode: shallow`)."""
    cache_folder: Annotated[str | None, Indifferent] = None
    """Folder on each node's own disk where these features outlive the run, for runs with the same encoder and studies;
    nobody deletes them. By default they go with the run."""
    save_every: Annotated[Positive | None, Indifferent] = None
    """Steps between checkpoints; once per epoch by default."""
    keep: Annotated[Positive, Indifferent] = 2
    """How many checkpoints to keep besides the best one."""
    val_every: float | None = Field(default=None, gt=0)
    """Validate every N steps (≥ 1) or every fraction of an epoch (< 1); never by default."""
    val_limit: Positive | None = None
    """Largest number of validation studies to generate and score; all of them by default."""
    best_metric: str = "(BLEU_4 + CIDEr) / 2"
    """The validation score that selects the best checkpoint: a score's name, or this mean."""
    log_every: Annotated[Positive, Indifferent] = 10
    """Steps between log lines."""
    loader_workers: Annotated[int, Indifferent] = Field(default=2, ge=0)
    """Threads per worker that decode films ahead of the step."""
    max_failures: Annotated[int, Indifferent] = Field(default=3, ge=-1)
    """Restarts after a lost worker or node; -1 sets no limit. Preemptions do not count."""
    max_failed_fraction: Annotated[Fraction, Indifferent] = 0.05
    """If a larger fraction of training studies has no readable film, the finished job ends with exit code 3."""
    timeout_s: Annotated[float, Indifferent] = Field(default=1800, gt=0)
    """Seconds after which a collective operation that hangs ends the group of workers, as a lost worker does."""
    loggers: Annotated[tuple[Literal["tensorboard", "mlflow", "wandb"], ...], Indifferent] = ("tensorboard",)
    """Where the curves are logged, besides log.jsonl."""
