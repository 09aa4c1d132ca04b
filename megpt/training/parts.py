"""The model and the samples that a config means, made alike by every worker."""

from __future__ import annotations

import torch

from megpt.config import Config
from megpt.model import PromptBank, build_model
from megpt.training.inputs import sample_folder, training_studies
from megpt.training.loop import Parts
from megpt.training.samples import SampleSettings, open_samples, tokenizer_for


def make_parts(config: Config) -> Parts:
    """Build the model from its settings and seed, and open (or write) this node's sample file.

    Raises:
        InputError: weights, prompts or studies that cannot be had or do not fit.
    """
    bank = PromptBank.load(config.prompts) if config.prompts else None
    model, processor = build_model(
        config.model,
        bank=bank,
        seed=config.seed,
        l2=config.train.l2,
        loss_chunk=config.train.loss_chunk,
        dtype=torch.bfloat16 if config.train.precision == "bf16" else torch.float32,
    )
    samples = open_samples(
        lambda: training_studies(config),
        folder=sample_folder(config),
        settings=SampleSettings(config.data.section, config.data.cleaner, config.data.max_views),
        tokenize=tokenizer_for(processor.tokenizer, config.train.max_report_tokens),
    )
    return Parts(model, processor, samples, sample_folder(config))
