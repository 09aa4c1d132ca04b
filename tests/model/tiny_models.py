"""What the tests of the model share: tiny encoders by kind, films that an encoder tells apart, labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

TINY = {
    "vit": {"vision": "test_vit", "image_size": 64},
    "convnext": {"vision": "test_convnext", "image_size": 64},
    "resnet": {"vision": "test_resnet", "image_size": 64},
    "swin": {
        "vision": "swin_tiny_patch4_window7_224",
        "image_size": 64,
        "vision_args": {"embed_dim": 16, "depths": [1, 2], "num_heads": [2, 2]},
    },
}
MakeModel = Callable[..., tuple[Any, Any]]


def films(count: int, *, seed: int = 0, size: int = 70) -> list[Image.Image]:
    """Pictures that differ in their large structures, so that an encoder tells them apart."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 255, (count, 4, 4), dtype=np.uint8)
    return [Image.fromarray(c).resize((size, size), Image.Resampling.BICUBIC) for c in coarse]


def labels_for(processor: Any, texts: list[str]) -> torch.Tensor:
    rows = [torch.tensor(processor.encode_report(text)) for text in texts]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
