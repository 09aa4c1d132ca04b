"""Reports by any image-text model of the hub: films and a prompt go in, through the model's own processor.

    writer = ImageTextWriter("google/medgemma-4b-it", rules, seed=0)
    for prediction in writer.write((study, load_films(study, …)) for study in studies): ...

The counterpart of `ReportWriter` for a folder that is no MeGPT checkpoint. Batches are taken from a window of studies
in the order of their length, so that few rows wait for a longer one. Code from a repository is never run
(`trust_remote_code=False`), and weights are read from safetensors only.
"""

from __future__ import annotations

import string
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
)

from megpt.config import GenerateConfig
from megpt.errors import InputError
from megpt.films.decode import UnreadableFilm
from megpt.generation.decoding import Decoding, EngineItem
from megpt.generation.faults import halve_until_alone
from megpt.generation.hf import DrawTokens, TokenLogprobs, penalties
from megpt.generation.likelihood import likelihood
from megpt.generation.writer import Films, Prediction, failed
from megpt.model.checkpoint.fetch import local_folder
from megpt.model.prompts import INSTRUCTION
from megpt.study import Study

WINDOW = 4
"""Batches whose studies are sorted by length together."""
NOT_GIVEN = "not given"
"""What a field of the prompt says for a study without it."""
FILM_SIDE = 1536
"""The shorter side of the films that a processor gets, in pixels, at most: no model here looks at more of them."""


def load_processor(folder: Path) -> Any:
    """The processor of an image-text model, after a look at its class: nothing of gigabytes is read.

    Raises:
        InputError: transformers has no such class without the repository's own code, or a file is missing.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _unusable(folder, "its config.json names a class that transformers does not have", error) from error
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise _unusable(folder, f"a {config.model_type} model does not write text about images")
    if not any(folder.glob("*.safetensors")):
        raise _unusable(folder, "it holds no *.safetensors, and megpt reads no pickles")
    try:
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except ImportError as error:  # its text names the package
        text = str(error).strip().partition("\n")[0][:200]
        raise _unusable(folder, text, next="install the package that the cause names") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unusable(folder, "a file of its processor or tokenizer is missing or damaged", error) from error
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


LOADABLE = "give a MeGPT checkpoint, or a folder that AutoModelForImageTextToText loads without trust_remote_code"


def _unusable(folder: Path, cause: str, error: Exception | None = None, *, next: str = LOADABLE) -> InputError:
    return InputError(
        f"no reports can be written with {folder}",
        cause=cause + (f" ({type(error).__name__})" if error else ""),
        next=next,
    )


def check_template(template: str | None) -> None:
    """Raise InputError for a prompt that is no template, or whose fields no study has."""
    try:
        parts = list(string.Formatter().parse(template or ""))
    except ValueError as error:
        raise InputError(
            "generate.prompt is not a template", cause=str(error), next="double braces that are text: {{ and }}"
        ) from None
    for _, name, _, _ in parts:
        if name is not None and name not in Study.__dataclass_fields__:
            raise InputError(
                f"generate.prompt: no study has {{{name}}}",
                cause="the fields of a prompt are those of a study, such as {indication}",
                next="leave the field out, or double the braces to write them: {{ and }}",
            )


class ImageTextWriter:
    """Films in, reports out, in one process.

    Args:
        checkpoint: a folder or hub id.
        generate: prompt, decoding rules and batch size (`slots`).
        seed: for sampled reports.
        device: the first GPU or else the CPU by default.
    """

    film_side, squares = FILM_SIDE, False

    def __init__(
        self, checkpoint: str, generate: GenerateConfig, seed: int, *, device: str | torch.device | None = None
    ):
        check_template(generate.prompt)
        folder = local_folder(checkpoint)
        self.processor = load_processor(folder)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[generate.precision]
        target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
        self.model = model.to(target).eval()
        self.template, self.batch_size = generate.prompt or INSTRUCTION, generate.slots
        self.context_counts: Counter[str] = Counter()
        """As a ReportWriter has; the prompt's fields are not counted."""
        self.waited = 0.0
        """Seconds in which the model had no films, as of a ReportWriter."""
        self.rules = Decoding.from_config(generate, seed)
        ends = self.model.generation_config.eos_token_id or self.processor.tokenizer.eos_token_id
        self.ends: list[int] = [ends] if isinstance(ends, int) else list(ends)

    def write(self, studies: Iterable[tuple[Study, Films]]) -> Iterator[Prediction]:
        """One prediction per study. One with unreadable films, or on which the model fails, has an `error`."""
        stream = iter(studies)
        while window := self._window(stream):
            readable: list[tuple[Study, list[Image]]] = []
            for study, films in window:
                if isinstance(films, UnreadableFilm):
                    yield failed(study, films.reason)
                else:
                    readable.append((study, films))
            readable.sort(key=self._length)  # stable: the same studies give the same batches
            for start in range(0, len(readable), self.batch_size):
                yield from halve_until_alone(self._generate, readable[start : start + self.batch_size], _failed)

    def _window(self, stream: Iterator[tuple[Study, Films]]) -> list[tuple[Study, Films]]:
        began = time.monotonic()
        window = list(islice(stream, WINDOW * self.batch_size))
        self.waited += time.monotonic() - began
        return window

    def _length(self, item: tuple[Study, list[Image]]) -> tuple[int, int, int]:
        study, films = item
        return len(films), sum(film.width * film.height for film in films), len(self.prompt(study))

    def prompt(self, study: Study) -> str:
        """The template with the study's own values."""
        names = {name for _, name, _, _ in string.Formatter().parse(self.template) if name}
        return self.template.format(**{name: getattr(study, name) or NOT_GIVEN for name in names})

    def text(self, study: Study, films: int) -> str:
        """The prompt as the model was trained to read it, with a place for each film."""
        prompt = self.prompt(study)
        if not getattr(self.processor, "chat_template", None):
            return getattr(self.processor, "image_token", "<image>") * films + prompt
        content = [*({"type": "image"} for _ in range(films)), {"type": "text", "text": prompt}]
        messages = [{"role": "user", "content": content}]
        return str(self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

    @torch.no_grad()
    def _generate(self, batch: list[tuple[Study, list[Image]]]) -> list[Prediction]:
        texts = [self.text(study, len(films)) for study, films in batch]
        begin = self.processor.tokenizer.bos_token
        inputs = self.processor(
            text=texts,
            images=[[film.convert("RGB") for film in films] for _, films in batch],
            padding=True,
            return_tensors="pt",
            # Most chat templates write the first token themselves.
            add_special_tokens=not (begin and texts[0].startswith(begin)),
        ).to(self.model.device, self.model.dtype)
        likely = TokenLogprobs(len(batch), self.ends)
        prompt = inputs["input_ids"].shape[1]
        processors = penalties(self.rules, likely, self.ends, prompt=prompt, device=self.model.device)
        if self.rules.do_sample:
            nothing = torch.empty(0, 0)
            processors.append(DrawTokens([EngineItem(study.study_id, nothing) for study, _ in batch], self.rules))
        output = self.model.generate(**inputs, generation_config=self._settings(), logits_processor=processors)
        written = [self._cut(row) for row in output[:, prompt:].tolist()]
        rows = zip(batch, written, likely.of(written), strict=True)
        return [self._prediction(study, tokens, logprobs) for (study, _), tokens, logprobs in rows]

    def _settings(self) -> GenerationConfig:
        rules = self.rules
        return GenerationConfig(
            num_beams=rules.num_beams,
            do_sample=False,  # sampling is done by a processor that leaves one token
            early_stopping=False,
            repetition_penalty=1.0,  # applied by `penalties`
            length_penalty=rules.length_penalty,
            min_new_tokens=0,
            max_new_tokens=rules.max_new_tokens,
            eos_token_id=self.ends,
            pad_token_id=self.processor.tokenizer.pad_token_id,
        )

    def _cut(self, row: list[int]) -> list[int]:
        """A row up to its end token."""
        return row[: next((n + 1 for n, token in enumerate(row) if token in self.ends), None)]

    def _prediction(self, study: Study, tokens: list[int], logprobs: tuple[float, ...]) -> Prediction:
        tokenizer, ended = self.processor.tokenizer, tokens[-1] in self.ends
        text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
        likely = likelihood(tokenizer, tokens, logprobs, text, ended=ended)
        return Prediction(study, text, None, len(tokens), "stop" if ended else "length", **likely)


def _failed(item: tuple[Study, list[Image]], error: str) -> list[Prediction]:
    return [failed(item[0], error)]
