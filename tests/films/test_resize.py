"""Resizing films.

- a film becomes a square by Pillow's antialiased bicubic resize, bit for bit; one that has the size already is kept
- the model's processor gives the same pixel values for a film as it is and for one that was squared before
- the shorter side is reduced to `size` and never enlarged
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from megpt.films.resize import shrink, to_square
from megpt.model.processing import MeGPTImageProcessor


def film(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width), np.uint8))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 70))
def test_a_film_becomes_a_square(width: int, height: int, side: int) -> None:
    image = film(width, height)
    expected = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))
    assert np.array_equal(np.asarray(to_square(image, side)), expected)


def test_a_square_of_that_size_is_kept() -> None:
    image = film(32, 32)
    assert to_square(image, 32) is image
    assert to_square(film(32, 33), 32).size == (32, 32)


@pytest.mark.parametrize("size", [(80, 70), (48, 48), (20, 31)])
def test_the_model_sees_the_same_pixels(size: tuple[int, int]) -> None:
    """Shrink as the archive path does, resize, scale to [0, 1], normalise."""
    processor, image = MeGPTImageProcessor(image_size=48), film(*size)
    squared = shrink(image, 48).resize((48, 48), Image.Resampling.BICUBIC)
    values = np.array(squared, dtype=np.float32) / 255.0
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (processor.image_mean, processor.image_std))
    expected = (torch.from_numpy(values)[None] - mean) / std
    assert torch.equal(processor.prepare(image), expected)
    assert torch.equal(processor.prepare(to_square(shrink(image, 48), 48)), expected)


def test_the_shorter_side_is_reduced() -> None:
    assert shrink(film(60, 90), 20).size == (20, 30)
    assert shrink(film(90, 60), 20).size == (30, 20)
    small = film(20, 90)
    assert shrink(small, 20) is small and shrink(small, 21) is small
    assert shrink(film(1000, 2), 1).size == (500, 1)
