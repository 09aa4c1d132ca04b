"""The one error that every decoder of this room ends in."""

from __future__ import annotations


class UnreadableFilm(Exception):
    """A film that cannot be shown. `reason` is short and holds nothing that was read from the file."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def refuse_large(width: int, height: int, max_pixels: int) -> None:
    """Refuse a film by the size in its header, before a pixel is decoded."""
    if width * height > max_pixels:
        raise UnreadableFilm(f"{width}x{height} pixels, more than data.max_pixels")
