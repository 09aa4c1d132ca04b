"""MeGPTProcessor: from films to pixel tensors, and from token ids to reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from megpt.errors import InputError
from megpt.films.resize import to_square
from megpt.model.configuration import MeGPTConfig

Film = Image.Image | np.ndarray


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
            return_tensors: `pt` (also for None) or `np`.

        Raises:
            InputError: a study without films, or a film with NaN pixels; the text gives its place in the batch.
        """
        batch = [images] if isinstance(images, (Image.Image, np.ndarray)) else list(images)
        studies = [[s] if isinstance(s, (Image.Image, np.ndarray)) else list(s) for s in batch]
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
        image = film if isinstance(film, Image.Image) else _from_array(film, where)
        grey = to_square(image if image.mode == "L" else _grey(image), self.image_size)
        values = torch.from_numpy(np.array(grey, dtype=np.float32) / 255.0)
        mean, std = torch.tensor(self.image_mean).view(3, 1, 1), torch.tensor(self.image_std).view(3, 1, 1)
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
