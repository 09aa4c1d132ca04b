"""A model to train, built from the `model` section of a run's config."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from megpt.config import ModelConfig, TrainConfig
from megpt.config.model import divided
from megpt.errors import InputError
from megpt.model import language
from megpt.model.checkpoint.fingerprint import files_fingerprint, fingerprint_of
from megpt.model.configuration import MeGPTConfig
from megpt.model.findings import longest_sentence
from megpt.model.modeling import MeGPTForConditionalGeneration
from megpt.model.processing import MeGPTImageProcessor, MeGPTProcessor
from megpt.model.projector import reset
from megpt.model.prompts import PromptBank, tokenise_bank
from megpt.model.source import check_vocabulary, is_gguf, located, revision_of, weight_files
from megpt.model.vision import VisionEncoder, load_weights, pixel_statistics

DEFAULTS = TrainConfig()


def build_encoder(config: ModelConfig, *, seed: int) -> tuple[VisionEncoder, str]:
    """The vision encoder in evaluation mode and float32, and its fingerprint.

    With `vision_weights: none` its weights follow from the seed alone, so that jobs with one seed use the same encoder.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = VisionEncoder(config.vision, config.image_size, **config.vision_args)
    if config.vision_weights != "none":
        load_weights(encoder, config.vision, config.vision_weights, config.vision_args)
    encoder.requires_grad_(False).eval()
    return encoder, fingerprint_of(encoder.state_dict())


def build_image_processor(encoder: VisionEncoder) -> MeGPTImageProcessor:
    """The image processor that turns films into the encoder's input."""
    mean, std = pixel_statistics(encoder.trunk)
    return MeGPTImageProcessor(image_size=encoder.image_size, image_mean=mean, image_std=std)


def build_model(
    config: ModelConfig,
    *,
    bank: PromptBank | None,
    seed: int,
    l2: float = DEFAULTS.l2,
    loss_chunk: int = DEFAULTS.loss_chunk,
    dtype: torch.dtype = torch.float32,
    load_llm: bool = True,
) -> tuple[MeGPTForConditionalGeneration, MeGPTProcessor]:
    """A model ready to train (trained parts have `requires_grad`) and its processor.

    Args:
        bank: the fitted prompts, needed when `dynamic_prompt` is on. When it is off, fitted prompts are ignored.
        seed: of all weights that are initialised at random.
        l2: λ of the penalty on the projector.
        load_llm: false leaves the language model without weights (on the meta device), to be saved and not run.

    Raises:
        InputError: an unknown encoder, language model or feature module, weights that cannot be loaded, prompts fitted
            with another encoder, widths that do not fit, or a prompt longer than the context.
    """
    if config.doconv and config.doconv_kernel % 2 == 0:
        raise InputError(
            f"model.doconv_kernel = {config.doconv_kernel}: an even kernel would change the size of the map",
            next="use 3 or 5",
        )
    encoder, identity = build_encoder(config, seed=seed)
    bank = _checked_bank(config, bank, encoder, identity)
    text_model = (language.load_language_model if load_llm else language.blank_language_model)(config.llm, dtype)
    tokenizer = language.load_tokenizer(config.llm)
    check_vocabulary(tokenizer, text_model.config, config.llm)
    frozen = _frozen(config, identity)
    config = _with_absolute_paths(config, frozen["language_model"]["source"])
    shape = MeGPTConfig.of(
        config,
        text_model.config,
        l2=l2,
        loss_chunk=loss_chunk,
        prompts=tokenise_bank(bank, tokenizer, config.frame, context=bool(config.context), findings=config.findings),
        frozen=frozen,
        tokenizer_fingerprint=language.tokenizer_fingerprint(tokenizer),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MeGPTForConditionalGeneration(shape, vision=encoder, language_model=text_model, bank=bank)
    for part in filter(None, (model.projector, model.findings)):
        reset(part, seed)
    cast(nn.Module, model).to(dtype)
    model.check_context(_longest_prompt(model, config), 1)
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    decoding = model.generation_config
    decoding.eos_token_id = language.end_ids(tokenizer, decoding, text_model.config)
    processor = MeGPTProcessor(build_image_processor(encoder), tokenizer)
    return model, processor


def _longest_prompt(model: MeGPTForConditionalGeneration, config: ModelConfig) -> int:
    """Tokens of the longest prompt of a study with one film."""
    prefix, suffixes = model.prompt_ids()
    height, width = model.config.grid
    known = len(config.context) * config.context_tokens + longest_sentence(model.config.prompts)
    return len(prefix) + height * width + max(map(len, suffixes)) + known


def _with_absolute_paths(config: ModelConfig, llm: str) -> ModelConfig:
    """The config with its local paths made absolute: a relative one means the folder that this process started in."""
    changes = {"llm": llm}
    kind, place = divided(config.vision)
    if Path(place).is_dir():
        changes["vision"] = kind + str(Path(place).absolute())
    if Path(config.vision_weights).is_file():
        changes["vision_weights"] = str(Path(config.vision_weights).absolute())
    return config.model_copy(update=changes)


def _checked_bank(config: ModelConfig, bank: PromptBank | None, encoder: VisionEncoder, identity: str) -> PromptBank:
    if not config.dynamic_prompt:
        return PromptBank.fixed() if bank is None or bank.centroids is not None else bank
    if bank is None or bank.centroids is None:
        raise InputError(
            "model.dynamic_prompt is on, but there are no fitted prompts",
            next="run `megpt fit-prompts` and set prompts= to its output, or set model.dynamic_prompt=false",
        )
    width = bank.centroids.shape[1]
    if width != encoder.channels or (bank.encoder is not None and bank.encoder != identity):
        raise InputError(
            "the prompts were fitted with another vision encoder",
            where=f"prompts: {width} features of encoder {bank.encoder}; model: {encoder.channels} of {identity}",
            cause="model.vision, vision_weights, vision_args, image_size or seed has changed since",
            next="run `megpt fit-prompts` again with this config",
        )
    return bank


def _frozen(config: ModelConfig, vision: str) -> dict[str, Any]:
    """The parts that a partial checkpoint leaves out: source and fingerprint of each."""
    path = Path(config.llm)
    local = path.is_dir() or is_gguf(config.llm)
    source = str(path.absolute()) if local else located(config.llm)[0]
    found = files_fingerprint(weight_files(config.llm))
    frozen = {"language_model": {"source": source, "fingerprint": found}}
    if revision := revision_of(config.llm):
        frozen["language_model"]["revision"] = revision
    # In mode deep the trained encoder is saved, and only the choice of prompts needs the original.
    if config.vision_weights != "none" and (config.mode != "deep" or config.dynamic_prompt):
        weights = config.vision_weights
        weights = weights if weights == "pretrained" else str(Path(weights).absolute())
        frozen["vision"] = {"source": weights, "fingerprint": vision}
    return frozen
