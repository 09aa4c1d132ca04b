"""Resizing films: shrinking one while it is read, and making it the square that an encoder takes.

This file imports neither pydicom nor the decoders, so the model may use it without changing Pillow's limits.
"""

from __future__ import annotations

from PIL import Image

Box = tuple[float, float, float, float]


def shrink(
    image: Image.Image, size: int, *, full: tuple[int, int] | None = None, box: Box | None = None
) -> Image.Image:
    """The picture with its shorter side at `size`; a smaller one is returned unchanged.

    Args:
        full: the size of the film itself, if `image` was decoded at a smaller scale.
        box: the part of `image` that the film covers; at a smaller scale, its last pixels are partly outside.
    """
    width, height = full or image.size
    shorter = min(width, height)
    if shorter <= size:
        return image
    target = (max(1, round(width * size / shorter)), max(1, round(height * size / shorter)))
    return image.resize(target, Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)


def to_square(image: Image.Image, side: int) -> Image.Image:
    """The picture stretched to (side, side) by antialiased bicubic resampling, as the reference does."""
    if image.size == (side, side):
        return image
    return image.resize((side, side), Image.Resampling.BICUBIC)
