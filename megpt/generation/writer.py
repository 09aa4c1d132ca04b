"""Films in, reports out: the whole model in one process, for `generate` and for validation during training.

writer = ReportWriter("runs/checkpoint", config.generate, seed=config.seed)
for prediction in writer.write((study, load_films(study, …)) for study in studies): ...
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from megpt.config import GenerateConfig
from megpt.errors import InputError
from megpt.films.decode import UnreadableFilm
from megpt.generation.decoding import Backend, Decoding, EngineItem, EngineResult
from megpt.generation.engine import GenerationEngine
from megpt.generation.faults import halve_until_alone
from megpt.generation.hf import HFBackend
from megpt.generation.likelihood import likelihood
from megpt.generation.limits import chosen, longest_prompt
from megpt.model.context import Context, suffix_with
from megpt.model.findings import longest_sentence
from megpt.study import Study

Films = list[Image] | UnreadableFilm


@dataclass(frozen=True, slots=True)
class Prediction:
    """The report of one study; `report` is None if there is an `error`."""

    study: Study
    report: str | None
    prompt_id: int | None
    num_tokens: int
    finish_reason: str
    error: str | None = None
    logprob: float | None = field(default=None, compare=False)  # its last digits depend on the batch
    """See `megpt.generation.likelihood`."""
    sentence_logprobs: tuple[float | None, ...] | None = field(default=None, compare=False)
    novelty: float | None = field(default=None, compare=False)
    """See `megpt.model.prompts.PromptBank.novelty`."""

    def to_row(self, *, model: str, section: str = "report", max_views: int | None = None) -> dict[str, Any]:
        """A row of `megpt.study.PREDICTIONS_SCHEMA`; `section` is the study's field that is its reference."""
        return {
            "study_id": self.study.study_id,
            "subject_id": self.study.subject_id,
            "image_ids": [view.image_id for view in self.study.views[:max_views]],
            "report": self.report,
            "reference": getattr(self.study, section),
            "prompt_id": self.prompt_id,
            "num_tokens": self.num_tokens,
            "finish_reason": self.finish_reason,
            "logprob": self.logprob,
            "sentence_logprobs": self.sentence_logprobs,
            "novelty": self.novelty,
            "error": self.error,
            "model": model,
        }


def failed(study: Study, error: str, prompt_id: int | None = None) -> Prediction:
    """The prediction of a study for which there is no report."""
    return Prediction(study, None, prompt_id, 0, "error", error)


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the model makes of a study's films: visual tokens (N, H), the number of its prompt, the observations that
    are told (13) and its novelty where the model has them."""

    tokens: Any
    prompt_id: int
    told: list[bool] | None = None
    novelty: float | None = None


class ReportWriter:
    """Encodes films in batches and has a backend write the reports.

    Args:
        checkpoint: a checkpoint folder, or a (model, processor) in memory, as training has.
        generate: backend, decoding rules and slots.
        seed: for sampled reports.
        device: the device for a checkpoint; the first GPU or else the CPU by default. A model in memory is not moved.
        llm: where the language model of the checkpoint is now, if it has moved.
    """

    squares = True
    """Films come as squares of `film_side` pixels, or with the shorter side at most so long."""

    def __init__(
        self,
        checkpoint: str | Path | tuple[Any, Any],
        generate: GenerateConfig,
        seed: int,
        *,
        device: str | torch.device | None = None,
        llm: str | None = None,
    ):
        if isinstance(checkpoint, tuple):
            self.model, self.processor = checkpoint
        else:
            self.model, self.processor = load(str(checkpoint), generate.precision, device, llm)
        self.batch_size, self.film_side = generate.slots, self.processor.image_size
        if generate.findings_threshold is not None:
            self.model.config.findings_threshold = _told_from(generate.findings_threshold, self.model.config)
        self.context = Context.of(self.model.config, self.processor.tokenizer)
        self.context_counts = self.context.counts
        self.waited = 0.0
        """Seconds in which the model had no films; whoever reads it may set it back."""
        decoding = Decoding.from_config(generate, seed)
        # How long prompts are is known only now; what the class can do was tried when the job began.
        generate = chosen(generate, self.model.config.text_config, {}, longest_prompt(self.model.config))
        self.backend: Backend
        if generate.backend == "hf":
            self.backend = HFBackend(self.model, decoding, batch_size=generate.slots)
        else:
            reserve = len(self.context.sections) * self.context.most + longest_sentence(self.model.config.prompts)
            self.backend = GenerationEngine(self.model, decoding, slots=generate.slots, reserve=reserve)

    def write(self, studies: Iterable[tuple[Study, Films]]) -> Iterator[Prediction]:
        """One prediction per study, in the order in which they are finished.

        A study with unreadable films, or on which the model fails, gives a prediction with `error`.
        """
        stream = _Stream(self, studies)
        was_training = self.model.training
        self.model.eval()
        try:
            for result in self.backend.run(stream.items()):
                yield from stream.take_failed()
                yield stream.prediction(result)
            yield from stream.take_failed()
        finally:
            self.model.train(was_training)

    def pixels(self, films: list[list[Image]]) -> dict[str, torch.Tensor]:
        """The films as the encoder takes them, in page-locked memory for a GPU."""
        made = self.processor(images=films, return_tensors="pt")
        parameter = next(self.model.parameters())
        made["pixel_values"] = made["pixel_values"].to(parameter.dtype)
        return {name: value.pin_memory() if parameter.is_cuda else value for name, value in made.items()}

    @torch.no_grad()
    def encode(self, pixels: dict[str, torch.Tensor]) -> list[Encoded]:
        """What the model makes of the films of each study, as `pixels` gives them."""
        device = next(self.model.parameters()).device
        films, mask = (pixels[name].to(device, non_blocking=True) for name in ("pixel_values", "view_mask"))
        visual = self.model.encode(films, mask)
        prompts = visual.prompt_id.tolist()
        told = [None] * len(prompts) if visual.told is None else visual.told.tolist()
        novelty = [None] * len(prompts) if visual.novelty is None else visual.novelty.tolist()
        tokens = [tokens[mask] for tokens, mask in zip(visual.tokens, visual.token_mask, strict=True)]
        return [Encoded(*row) for row in zip(tokens, prompts, told, novelty, strict=True)]

    def suffix(self, study: Study, films: Encoded) -> tuple[int, ...] | None:
        """The ids after the visual tokens of a study with context or findings; None for the prompt's own."""
        ids = self.context.ids(study)
        if not ids and films.told is None:
            return None
        return tuple(suffix_with(self.model.config.prompts, films.prompt_id, ids, films.told))

    def prediction(self, study: Study, films: Encoded, result: EngineResult) -> Prediction:
        """What a backend has written, as text."""
        if result.error:
            return failed(study, result.error, films.prompt_id)
        # An end token need not be a special one to the tokenizer.
        ended, tokenizer = result.finish_reason == "stop", self.processor.tokenizer
        written = result.token_ids[:-1] if ended else result.token_ids
        text = tokenizer.decode(written, skip_special_tokens=True).strip()
        likely = likelihood(tokenizer, result.token_ids, result.logprobs, text, ended=ended)
        count, novelty = len(result.token_ids), films.novelty
        return Prediction(study, text, films.prompt_id, count, result.finish_reason, novelty=novelty, **likely)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Studies whose films could be read, and these films for the encoder; None where they could not be made."""

    readable: list[tuple[Study, list[Image]]]
    pixels: dict[str, torch.Tensor] | None


class _Stream:
    """One call of `write`: the studies in flight, and those that failed before they reached the backend."""

    def __init__(self, writer: ReportWriter, studies: Iterable[tuple[Study, Films]]):
        self.writer, self.studies = writer, iter(studies)
        self.in_flight: dict[str, tuple[Study, Encoded]] = {}
        self.failed: deque[Prediction] = deque()

    def items(self) -> Iterator[EngineItem]:
        """The backend's input; it encodes a batch of films whenever the backend asks for more.

        The next batch is waited for, and made ready for the encoder, in a thread of its own.
        """
        ahead = ThreadPoolExecutor(1, thread_name_prefix="films")
        coming = ahead.submit(self._batch)
        try:
            while (batch := self._waited(coming)) is not None:
                coming = ahead.submit(self._batch)
                if batch.readable:
                    yield from halve_until_alone(partial(self._encode, batch), batch.readable, self._fail)
        finally:
            # Whoever stops does not wait for films that may never come.
            ahead.shutdown(wait=False, cancel_futures=True)

    def _waited(self, coming: Future[_Batch | None]) -> _Batch | None:
        began = time.monotonic()
        batch = coming.result()
        self.writer.waited += time.monotonic() - began
        return batch

    def _batch(self) -> _Batch | None:
        """The next films; None when there are no more studies."""
        if not (batch := list(islice(self.studies, self.writer.batch_size))):
            return None
        readable: list[tuple[Study, list[Image]]] = []
        for study, films in batch:
            if isinstance(films, UnreadableFilm):
                self.failed.append(failed(study, films.reason))
            else:
                readable.append((study, films))
        try:
            pixels = self.writer.pixels([films for _, films in readable]) if readable else None
        except Exception:  # on whose account is found by halves
            pixels = None
        return _Batch(readable, pixels)

    def _encode(self, batch: _Batch, part: list[tuple[Study, list[Image]]]) -> Iterator[EngineItem]:
        """The items of `part`, which is all of the batch, or less after it has failed."""
        ready = batch.pixels if len(part) == len(batch.readable) else None
        encoded = self.writer.encode(ready or self.writer.pixels([films for _, films in part]))
        for (study, _), films in zip(part, encoded, strict=True):
            suffix = self.writer.suffix(study, films)
            self.in_flight[study.study_id] = study, replace(films, tokens=None)
            yield EngineItem(study.study_id, films.tokens, films.prompt_id, suffix=suffix)

    def _fail(self, item: tuple[Study, list[Image]], error: str) -> list[EngineItem]:
        self.failed.append(failed(item[0], error))
        return []

    def take_failed(self) -> Iterator[Prediction]:
        while self.failed:
            yield self.failed.popleft()

    def prediction(self, result: EngineResult) -> Prediction:
        study, films = self.in_flight.pop(result.key)
        return self.writer.prediction(study, films, result)


def _told_from(threshold: float, config: Any) -> float:
    if not config.findings:
        raise InputError(
            f"generate.findings_threshold = {threshold:g}: this checkpoint tells no findings",
            cause="it was trained without model.findings",
            next="leave the setting out",
        )
    return threshold


def load(checkpoint: str, precision: str, device: str | torch.device | None, llm: str | None = None) -> tuple[Any, Any]:
    """The model and processor of a checkpoint folder or hub id, ready to generate."""
    from megpt.model import MeGPTForConditionalGeneration, MeGPTProcessor
    from megpt.model.checkpoint.fetch import local_folder

    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    folder = local_folder(checkpoint)
    model = MeGPTForConditionalGeneration.from_pretrained(folder, llm=llm)
    return model.to(target, dtype).eval(), MeGPTProcessor.from_pretrained(folder)
