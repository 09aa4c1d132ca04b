"""Settings of writing reports, of scoring them, and of ablations."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from megpt.settings import Fraction, Indifferent, Positive, Section


class GenerateConfig(Section):
    """archive or studies/ + checkpoint/ → predictions/"""

    backend: Literal["engine", "hf"] = "engine"
    """`engine` for continuous batching, `hf` for plain transformers.generate, the reference."""
    split: Literal["train", "val", "test", "all"] = "all"
    """The split to write reports for; studies without one belong to each. In ablations and the demo, all is test."""
    prompt: str | None = None
    """The prompt of a model of the hub, with fields of the study such as {indication}; MeGPT's own are its prompts."""
    num_beams: Positive = 3
    """Beams of the beam search; 1 decodes greedily, or samples."""
    repetition_penalty: float = Field(default=2.0, gt=0)
    """Makes tokens that the report already holds less likely when above 1; 1 turns it off."""
    length_penalty: float = 2.0
    """A finished beam's score is divided by its length to this power: above 0 favours longer reports."""
    min_new_tokens: int = Field(default=40, ge=0)
    """Shortest report, in tokens."""
    max_new_tokens: Positive = 100
    """Longest report, in tokens."""
    do_sample: bool = False
    """Draw tokens by (seed, study_id) instead of taking the likeliest; needs `num_beams: 1`."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides the logits before sampling: below 1 sharpens the distribution (`do_sample`)."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the smallest set of tokens with at least this probability (`do_sample`)."""
    findings_threshold: Fraction | None = None
    """In place of the checkpoint's `model.findings_threshold`."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the model."""
    slots: Annotated[Positive, Indifferent] = 32
    """Studies in flight in one engine (the batch size of `backend: hf`)."""
    shard_size: Positive = 500
    """Studies in one Parquet file: the most that a kill can lose."""
    decode_workers: Annotated[Positive, Indifferent] = 2
    """Tasks that decode films ahead of each generating worker."""
    max_failed_fraction: Annotated[Fraction, Indifferent] = 0.05
    """If a larger fraction of studies fails, the finished job ends with exit code 3."""
    fail_fast: Annotated[bool, Indifferent] = False
    """End the job as soon as more studies have failed than `max_failed_fraction` allows of all (exit code 1)."""

    @model_validator(mode="after")
    def _consistent(self) -> GenerateConfig:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens must not exceed max_new_tokens ({self.min_new_tokens} > {self.max_new_tokens})"
            )
        if self.do_sample and self.num_beams > 1:
            raise ValueError(f"do_sample needs num_beams: 1 (it is {self.num_beams})")
        return self


class ColumnsConfig(Section):
    """Columns of the files given to `evaluate`; recognised by their names by default."""

    id: str | None = None
    """The column that names a study: study_id, id, images_id or dicom_id by default."""
    text: str | None = None
    """The generated report: model_prediction, pred_report, hyp, generated or report by default."""
    truth: str | None = None
    """The reference report: reference, ref, ground_truth, section_findings, labels, or report beside a prediction."""


class EvaluateConfig(Section):
    """predictions/ → metrics.json, per_study.parquet, index.html"""

    columns: ColumnsConfig = ColumnsConfig()
    encoding: str | None = None
    """Encoding of the text files (utf-8, cp1252, utf-16, …); detected from their bytes by default."""
    delimiter: str | None = None
    """Delimiter of CSV files, one character; detected from their first lines by default."""
    rexrank: bool = False
    """Whether to write rexrank.json too, the predictions as a ReXrank submission."""
    bootstrap: Positive = 1000
    """Bootstrap resamples behind each interval."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Coverage of the intervals."""
    baselines: bool | Literal["texts"] = True
    """Whether to score reports that come from no film too: constant, permuted and nearest ones; `texts` leaves out the
    nearest, for which all films are encoded."""
    scores: tuple[str, ...] = ()
    """Further scores by name: radgraph, f1chexbert, green, … of RadEval, or those of an installed package."""
    meteor: bool = True
    """Whether to compute METEOR, which needs Java 8 or newer."""
    dataset: Annotated[str | None, Indifferent] = None
    """Name of the data in the checkpoint's model card."""
    films: int = Field(default=1000, ge=0)
    """How many studies the page shows with their films."""


class AblateConfig(Section):
    """train → generate → evaluate for each variant and seed, one table and one page at the end."""

    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Name → dotted overrides of each variant; the unchanged config always runs as `base`."""
    grid: dict[str, list[Any]] = Field(default_factory=dict)
    """Dotted key → its values; each combination is one more variant."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds with which each variant runs, in place of `seed`; intervals over seeds need at least two."""

    @model_validator(mode="after")
    def _distinct(self) -> AblateConfig:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be different numbers, at least one ({list(self.seeds)})")
        for key, values in self.grid.items():
            if not values or any(value in values[:place] for place, value in enumerate(values)):
                raise ValueError(f"grid.{key} must list different values, at least one ({values})")
        return self
