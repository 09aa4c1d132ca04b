"""`pipeline("image-text-to-text", model=CHECKPOINT)`, after `import megpt.hf`.

    pipe("film.dcm")                                   # one study of one film
    pipe([["frontal.png", "lateral.png"], ["b.png"]])  # two studies
    pipe([{"role": "user", "content": [{"type": "image", "path": "film.png"}]}])

transformers' own pipeline demands a text beside the image, and reads no DICOM. This one takes its place for the task,
and gives every other model to it unchanged.
"""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.image_text_to_text import ImageTextToTextPipeline

from megpt.errors import InputError
from megpt.model.configuration import MeGPTConfig
from megpt.model.inputs import in_studies, is_chat, is_film, no_film, read_chat, warn_of_text

TASK = "image-text-to-text"
GENERATION = {name for name in vars(GenerationConfig()) if not name.startswith("_")} | {
    *("generation_config", "streamer", "logits_processor", "stopping_criteria")
}
"""Keywords that go to `generate`."""
OWN = {"generate_kwargs", "batch_size", "return_tensors", "return_full_text", "text", "images"}


class ReportPipeline(ImageTextToTextPipeline):
    """transformers' pipeline, which for MeGPT takes films without text."""

    def check_model_type(self, supported_models: Any) -> None:
        if not self._is_megpt():
            super().check_model_type(supported_models)

    def _is_megpt(self) -> bool:
        return isinstance(self.model.config, MeGPTConfig)

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:  # pyrefly: ignore[bad-override]
        """Reports for films. For any other model than MeGPT: as in transformers.

        Args:
            images: a film (path, URL, PIL image, array); a list of films or of lists of films, a study each; or chat
                messages, or a list of such conversations.
            text: not used; chat messages may stand here too.
            kwargs: `batch_size`, `return_tensors`, `return_full_text`, `generate_kwargs`, and all of `generate`.

        Returns:
            For one film or conversation a list of one record, otherwise a list of such lists. A record has
            `generated_text` (after a chat: the messages and the answer, unless `return_full_text=False`).

        Raises:
            InputError: no film, one that cannot be read, or an unknown keyword.
        """
        if not self._is_megpt():
            return super().__call__(images, text, **kwargs)
        if unknown := sorted(kwargs.keys() - GENERATION - OWN):
            raise InputError(f"pipeline: unknown keyword {', '.join(unknown)}", next="see ReportPipeline.__call__")
        given, one = images, is_film(images)
        if images is None:
            given = text if text and (is_chat(text) or (isinstance(text, list) and is_chat(text[0]))) else None
        elif text:
            warn_of_text(text)
        if not one and is_chat(given):
            given, one = [given], True
        if given is None:
            raise no_film("the call")
        batch = [given] if is_film(given) else list(given)
        chats = [item if is_chat(item) else None for item in batch]
        studies = [self._films(item, number) for number, item in enumerate(batch)]
        records = self._write(studies, chats, kwargs)
        return records[0] if one else records

    def _films(self, item: Any, number: int) -> list[Any]:
        if not is_chat(item):
            return in_studies([item])[0]
        films, text = read_chat(item, f"conversation {number}")
        if not films:
            raise no_film(f"conversation {number}")
        warn_of_text(text)
        return films

    def _write(self, studies: list[list[Any]], chats: list[Any], kwargs: dict[str, Any]) -> list[list[dict[str, Any]]]:
        generate = {**self._generate_kwargs, **{k: v for k, v in kwargs.items() if k in GENERATION}}
        generate |= kwargs.get("generate_kwargs") or {}
        size = kwargs.get("batch_size") or self._batch_size or 1
        records = []
        for first in range(0, len(studies), size):
            inputs = self.processor(images=studies[first : first + size]).to(self.model.device)
            ids = self.model.generate(**inputs, **generate)
            each = len(ids) // len(inputs["pixel_values"])  # num_return_sequences
            texts = self.processor.batch_decode(ids)
            for place in range(len(inputs["pixel_values"])):
                rows = range(place * each, (place + 1) * each)
                chat = chats[first + place]
                if kwargs.get("return_tensors"):
                    records.append([{"generated_token_ids": ids[row]} for row in rows])
                else:
                    full = chat is not None and kwargs.get("return_full_text", True)
                    records.append([_record(texts[row], chat, full) for row in rows])
        return records


def _record(text: str, chat: Any, full: bool) -> dict[str, Any]:
    if chat is None:
        return {"generated_text": text}
    answer = [*chat, {"role": "assistant", "content": text}] if full else text
    return {"input_text": chat, "generated_text": answer}


PIPELINE_REGISTRY.supported_tasks[TASK] = {**PIPELINE_REGISTRY.supported_tasks[TASK], "impl": ReportPipeline}
