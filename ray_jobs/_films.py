"""The generate job's decoding task. It imports neither torch nor the model: many processes run it, each starts soon."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from megpt.data.sources.base import check_mounted
from megpt.films.decode import MISSING, UnreadableFilm, load_films
from megpt.generation.plan import Planned, with_films

# Studies whose films one task decodes: small enough to start at once, large enough to pay for a task.
CHUNK = 32

Pixels = list[np.ndarray] | str


def decode(planned: list[Planned], *, archive: str, side: int, max_views: int | None, max_pixels: int) -> list[Pixels]:
    """Films of each study as grey squares (side, side) uint8, or why there are none.

    The resize to the square is the processor's own, done here because CPU tasks are many and the engine's thread one.

    Raises:
        MegptError: films are missing because this node does not see the archive.
    """
    decoded: list[Pixels] = []
    for study in with_films(planned):
        try:
            films = load_films(study, size=side, max_views=max_views, max_pixels=max_pixels)
            decoded.append([np.asarray(f.resize((side, side), Image.Resampling.BICUBIC)) for f in films])
        except UnreadableFilm as error:
            decoded.append(str(error.reason))
    if any(isinstance(pixels, str) and pixels.startswith(MISSING) for pixels in decoded):
        check_mounted(Path(archive))
    return decoded
