"""The generate job's decoding task. It imports neither torch nor the model: many processes run it, each starts soon."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from megpt.data.sources.base import check_mounted
from megpt.data.studies import Listed, with_films
from megpt.films.decode import MISSING, UnreadableFilm, load_films
from megpt.films.resize import to_square

# Studies whose films one task decodes: small enough to start at once, large enough to pay for a task.
CHUNK = 32

Pixels = list[np.ndarray] | str


def decode(listed: list[Listed], *, archive: str, side: int, max_views: int | None, max_pixels: int) -> list[Pixels]:
    """Films of each study as grey squares (side, side) uint8, or why there are none.

    The films are squared here, before the processor would do it: there are many CPU tasks, but only one engine thread.

    Raises:
        MegptError: films are missing because this node does not see the archive.
    """
    decoded: list[Pixels] = []
    for study in with_films(listed):
        try:
            films = load_films(study, size=side, max_views=max_views, max_pixels=max_pixels)
            decoded.append([np.asarray(to_square(f, side)) for f in films])
        except UnreadableFilm as error:
            decoded.append(str(error.reason))
    if any(isinstance(pixels, str) and pixels.startswith(MISSING) for pixels in decoded):
        check_mounted(Path(archive))
    return decoded
