"""MeGPTProcessor: from films to pixel tensors, and from token ids to reports."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from megpt.errors import InputError
from megpt.films.resize import shrink, to_square
from megpt.model.configuration import MeGPTConfig
from megpt.model.inputs import Film, in_studies, is_chat, no_film, open_film, read_chat, warn_of_text
from megpt.model.prompts import INSTRUCTION, PREFIX, SUFFIX


class MeGPTImageProcessor(BaseImageProcessor):
    """Films of one study each → (B, V, 3, S, S) float32 and the mask of real views (B, V) bool.

    A film is stretched to the square S×S with antialiased bicubic resampling, as the reference does, scaled to
    [0, 1] and normalised by the encoder's mean and standard deviation.
    """

    model_input_names = ["pixel_values", "view_mask"]  # noqa: RUF012

    def __init__(
        self,
        image_size: int = 224,
        image_mean: Sequence[float] = (0.485, 0.456, 0.406),
        image_std: Sequence[float] = (0.229, 0.224, 0.225),
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.image_size = int(image_size)
        self.image_mean, self.image_std = list(image_mean), list(image_std)

    def __call__(
        self, images: Sequence[Sequence[Film] | Film] | Film, return_tensors: str | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Prepare a batch of studies.

        Args:
            images: a list of studies, each a list of films; a single film instead of a list is a study of one film.
                A film is a PIL image, an array, or the path or URL of a JPEG, PNG or DICOM file.
            return_tensors: `pt` (also for None) or `np`.

        Raises:
            InputError: a study without films, a film that cannot be read, or one with NaN pixels; the text gives its
                place in the batch.
        """
        studies = in_studies(images)
        for number, films in enumerate(studies):
            if not films:
                raise InputError(
                    f"images[{number}] holds no film",
                    cause="a study needs at least one view",
                    next="leave the study out, or add a film",
                )
        most = max((len(films) for films in studies), default=0)
        pixels = torch.zeros(len(studies), most, 3, self.image_size, self.image_size)
        mask = torch.zeros(len(studies), most, dtype=torch.bool)
        for number, films in enumerate(studies):
            for view, film in enumerate(films):
                pixels[number, view] = self.prepare(film, where=f"images[{number}][{view}]")
                mask[number, view] = True
        return BatchFeature({"pixel_values": pixels, "view_mask": mask}, tensor_type=return_tensors or "pt")

    def prepare(self, film: Film, *, where: str = "film") -> Tensor:
        """One film → (3, S, S) float32."""
        film = open_film(film, size=self.image_size, where=where)
        image = film if isinstance(film, Image.Image) else _from_array(film, where)
        # Shrunk first, as films that are read from an archive are: the same film gives the same report.
        grey = shrink(image if image.mode == "L" else _grey(image), self.image_size)
        grey = to_square(grey, self.image_size)
        values = torch.from_numpy(np.array(grey, dtype=np.float32) / 255.0)
        mean, std = torch.tensor(self.image_mean).view(-1, 1, 1), torch.tensor(self.image_std).view(-1, 1, 1)
        return (values[None] - mean) / std


def _grey(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _from_array(np.asarray(image, dtype=np.float32), "film")
    return image.convert("L")


def _from_array(array: np.ndarray, where: str) -> Image.Image:
    """An array (H, W) or (H, W, 3) as a grey film: uint8 unchanged, other types stretched from their own range."""
    values = np.asarray(array)
    if values.ndim == 3:
        values = values.mean(axis=-1) if values.dtype != np.uint8 else values.mean(axis=-1).astype(np.uint8)
    if values.ndim != 2 or values.size == 0:
        raise InputError(f"{where} has shape {np.shape(array)}", next="a film is (height, width) or (height, width, 3)")
    if values.dtype == np.uint8:
        return Image.fromarray(values)
    values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise InputError(f"{where} holds NaN or infinite pixels", next="decode the film again, or leave it out")
    low, high = float(values.min()), float(values.max())
    scaled = np.zeros_like(values) if high <= low else (values - low) / (high - low) * 255.0
    return Image.fromarray(scaled.round().astype(np.uint8))


class MeGPTProcessor(ProcessorMixin):
    """The image processor and the tokenizer, saved and loaded together.

    processor(images=[[film, film], [film]], return_tensors="pt") → pixel_values, view_mask
    processor.batch_decode(model.generate(...)) → reports
    """

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any):
        super().__init__(image_processor, tokenizer, **kwargs)

    image_processor: MeGPTImageProcessor
    tokenizer: PreTrainedTokenizerBase

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """Films as for `MeGPTImageProcessor`; `text` adds the output of the tokenizer. Either may be left out."""
        tensors = kwargs.pop("return_tensors", None)
        data: dict[str, Any] = {}
        if images is not None:
            data.update(self.image_processor(images, return_tensors=tensors))
        if text is not None:
            data.update(self.tokenizer(text, return_tensors=tensors, **kwargs))
        return BatchFeature(data)

    @classmethod
    def from_pretrained(  # pyrefly: ignore[bad-override]
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> Any:
        """Load the processor of a checkpoint. Raises InputError if a file of it is missing or damaged."""
        try:
            kwargs.setdefault("trust_remote_code", False)
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"the processor of {pretrained_model_name_or_path} cannot be loaded",
                cause=f"{type(error).__name__}: a file of the processor or tokenizer is missing or damaged",
                next="download or copy the whole folder again",
            ) from error

    def apply_chat_template(  # pyrefly: ignore[bad-override]
        self, conversation: Any, *, tokenize: bool = False, return_tensors: str | None = None, **kwargs: Any
    ) -> Any:
        """Chat messages, or a list of conversations: with `tokenize` their films as for `__call__`, else the prompt.

        The films of one conversation are one study. The model chooses its instruction by the film, so that text in the
        messages has no effect on it; the prompt shows where it would stand.

        Raises:
            InputError: a conversation without a film.
        """
        alone = is_chat(conversation)
        read = [read_chat(c, f"conversation {n}") for n, c in enumerate([conversation] if alone else conversation)]
        for number, (films, text) in enumerate(read):
            if not films:
                raise no_film(f"conversation {number}")
            if tokenize:
                warn_of_text(text)
        if tokenize:
            return self(images=[films for films, _ in read], return_tensors=return_tensors)
        prompts = [PREFIX + SUFFIX.format(text=text or INSTRUCTION) for _, text in read]
        return prompts[0] if alone else prompts

    @property
    def image_size(self) -> int:
        """Side of the films the encoder takes, in pixels."""
        return self.image_processor.image_size

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "view_mask"]

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """Accept any tokenizer; the image processor is ours."""
        return type(argument)

    def encode_report(self, text: str, *, max_tokens: int | None = None) -> list[int]:
        """The token ids that the model learns for a report: at most `max_tokens` of its own, then the end token."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*ids[:max_tokens], self.tokenizer.eos_token_id]

    def batch_decode(self, ids: Any, skip_special_tokens: bool = True, **kwargs: Any) -> list[str]:
        """Token ids (B, L) → B reports, without special tokens."""
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=skip_special_tokens, **kwargs)
        return [text.strip() for text in texts]

    def decode(self, ids: Any, skip_special_tokens: bool = True, **kwargs: Any) -> str:
        """Token ids (L,) → the report."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, **kwargs)).strip()


# One class for both backends: transformers would otherwise log that there is none for torchvision.
AutoImageProcessor.register(
    MeGPTConfig, image_processor_classes=dict.fromkeys(("torchvision", "pil"), MeGPTImageProcessor), exist_ok=True
)
AutoProcessor.register(MeGPTConfig, MeGPTProcessor, exist_ok=True)
