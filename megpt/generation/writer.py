"""Films in, reports out: the whole model in one process, for the job and for validation during training.

writer = ReportWriter("runs/checkpoint", config.generate, seed=config.seed)
for prediction in writer.write((study, load_films(study, …)) for study in studies): ...
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from megpt.config import GenerateConfig
from megpt.films.decode import UnreadableFilm
from megpt.generation.decoding import Backend, Decoding, EngineItem, EngineResult
from megpt.generation.engine import GenerationEngine
from megpt.generation.faults import reason, release
from megpt.generation.hf import HFBackend
from megpt.study import Study

Films = list[Image] | UnreadableFilm


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says of one study. `report` is None where `error` is not."""

    study: Study
    report: str | None
    prompt_id: int | None
    num_tokens: int
    finish_reason: str
    error: str | None = None

    def to_row(self, *, model: str, section: str = "report", max_views: int | None = None) -> dict[str, Any]:
        """A row of `megpt.study.PREDICTIONS_SCHEMA`; `section` is the column of the study that is its reference."""
        return {
            "study_id": self.study.study_id,
            "subject_id": self.study.subject_id,
            "image_ids": [view.image_id for view in self.study.views[:max_views]],
            "report": self.report,
            "reference": getattr(self.study, section),
            "prompt_id": self.prompt_id,
            "num_tokens": self.num_tokens,
            "finish_reason": self.finish_reason,
            "error": self.error,
            "model": model,
        }


def failed(study: Study, error: str, prompt_id: int | None = None) -> Prediction:
    """The prediction of a study that has no report."""
    return Prediction(study, None, prompt_id, 0, "error", error)


class ReportWriter:
    """Encodes films in batches and lets a backend write the reports.

    Args:
        checkpoint: a checkpoint folder, or a live (model, processor) such as training has.
        generate: backend, decoding rules and slots.
        seed: of sampled reports.
        device: where a checkpoint is loaded to; the first GPU, else the CPU. A live model stays where it is.
    """

    def __init__(
        self,
        checkpoint: str | Path | tuple[Any, Any],
        generate: GenerateConfig,
        seed: int,
        *,
        device: str | torch.device | None = None,
    ):
        if isinstance(checkpoint, tuple):
            self.model, self.processor = checkpoint
        else:
            self.model, self.processor = load(Path(checkpoint), generate.precision, device)
        self.batch_size = generate.slots
        decoding = Decoding.from_config(generate, seed)
        self.backend: Backend
        if generate.backend == "hf":
            self.backend = HFBackend(self.model, decoding, batch_size=generate.slots)
        else:
            self.backend = GenerationEngine(self.model, decoding, slots=generate.slots)

    def write(self, studies: Iterable[tuple[Study, Films]]) -> Iterator[Prediction]:
        """One prediction a study, in the order in which they are finished.

        A study whose films could not be read, or on which the model fails, is a prediction with `error`.
        """
        run = _Run(self, studies)
        was_training = self.model.training
        self.model.eval()
        try:
            for result in self.backend.run(run.items()):
                yield from run.take_failed()
                yield run.prediction(result)
            yield from run.take_failed()
        finally:
            self.model.train(was_training)

    @torch.no_grad()
    def encode(self, films: list[list[Image]]) -> list[tuple[torch.Tensor, int]]:
        """Visual tokens (N, H) and prompt number of each study."""
        batch = self.processor(images=films, return_tensors="pt")
        parameter = next(self.model.parameters())
        visual = self.model.encode(
            batch["pixel_values"].to(parameter.device, parameter.dtype), batch["view_mask"].to(parameter.device)
        )
        prompts = visual.prompt_id.tolist()
        return [
            (tokens[mask], prompt)
            for tokens, mask, prompt in zip(visual.tokens, visual.token_mask, prompts, strict=True)
        ]


class _Run:
    """One call of `write`: which studies are in flight, and which failed before they reached the backend."""

    def __init__(self, writer: ReportWriter, studies: Iterable[tuple[Study, Films]]):
        self.writer, self.stream = writer, iter(studies)
        self.in_flight: dict[str, tuple[Study, int]] = {}
        self.failed: deque[Prediction] = deque()

    def items(self) -> Iterator[EngineItem]:
        """What the backend pulls: films are encoded a batch at a time, when it asks for them."""
        while batch := list(islice(self.stream, self.writer.batch_size)):
            readable = []
            for study, films in batch:
                if isinstance(films, UnreadableFilm):
                    self.failed.append(failed(study, films.reason))
                else:
                    readable.append((study, films))
            yield from self._encode(readable)

    def _encode(self, batch: list[tuple[Study, list[Image]]]) -> Iterator[EngineItem]:
        """A batch on which the encoder fails is halved until the study that does it is alone."""
        if not batch:
            return
        try:
            encoded = self.writer.encode([films for _, films in batch])
        except Exception as error:
            release(error)
            if len(batch) == 1:
                self.failed.append(failed(batch[0][0], reason(error)))
                return
            middle = len(batch) // 2
            yield from self._encode(batch[:middle])
            yield from self._encode(batch[middle:])
            return
        for (study, _), (tokens, prompt_id) in zip(batch, encoded, strict=True):
            self.in_flight[study.study_id] = study, prompt_id
            yield EngineItem(study.study_id, tokens, prompt_id)

    def take_failed(self) -> Iterator[Prediction]:
        while self.failed:
            yield self.failed.popleft()

    def prediction(self, result: EngineResult) -> Prediction:
        study, prompt_id = self.in_flight.pop(result.key)
        if result.error:
            return failed(study, result.error, prompt_id)
        text = self.writer.processor.tokenizer.decode(result.token_ids, skip_special_tokens=True).strip()
        return Prediction(study, text, prompt_id, len(result.token_ids), result.finish_reason)


def load(folder: Path, precision: str, device: str | torch.device | None) -> tuple[Any, Any]:
    """Model and processor of a checkpoint folder, ready to generate."""
    from megpt.model import MeGPTForConditionalGeneration, MeGPTProcessor

    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    model = MeGPTForConditionalGeneration.from_pretrained(folder)
    return model.to(target, dtype).eval(), MeGPTProcessor.from_pretrained(folder)
