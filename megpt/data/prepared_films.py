"""What `prepare` does to the films of a study: resize, embed or link them, and leave out what cannot be read."""

from __future__ import annotations

import io
from dataclasses import replace

from PIL import Image

from megpt.config import PrepareConfig
from megpt.data.members import is_member
from megpt.data.positions import side_of
from megpt.films.decode import UnreadableFilm, check_film, load_film, read_film
from megpt.study import Study, View

# A film that is stored unchanged is decoded once, as small as its format allows, to see that it can be.
PROBE_SIZE = 32


def prepare_study(
    study: Study, settings: PrepareConfig, *, max_pixels: int, dropped: list[tuple[View, str]] | None = None
) -> Study:
    """The study with its films in the form that `prepare.films` asks for; unreadable ones are left out.

    Args:
        dropped: gets each film that is left out, with its reason.

    Raises:
        UnreadableFilm: the study has no films, none that can be read, or a report and only a lateral film left of it.
    """
    if study.error:
        raise UnreadableFilm(study.error)
    if not study.views:
        raise UnreadableFilm("the study has no films")
    views = []
    dropped = [] if dropped is None else dropped
    for view in study.views:
        try:
            views.append(prepare_view(view, settings, max_pixels=max_pixels))
        except UnreadableFilm as error:
            dropped.append((view, error.reason))
    if not views:
        raise UnreadableFilm(dropped[0][1])
    if not settings.lateral_alone and (study.report or study.findings or study.impression):
        lost = next((reason for view, reason in dropped if side_of(view.position) == "frontal"), None)
        if lost is not None and all(side_of(view.position) in ("lateral", "other") for view in views):
            raise UnreadableFilm(f"the frontal film: {lost} (prepare.lateral_alone=true keeps the others)")
    return replace(study, views=tuple(views))


def prepare_view(view: View, settings: PrepareConfig, *, max_pixels: int) -> View:
    """One film: resized and encoded, embedded unchanged, or linked.

    Raises:
        UnreadableFilm: it cannot be read.
    """
    if settings.films == "link":
        check_film(view, max_pixels=max_pixels)
        # a film inside a tar or a table has no path that other readers know, so it is embedded
        return replace(view, uri=None) if view.data is not None and is_member(view.uri) else view
    if settings.films == "embed":
        embedded = replace(view, data=read_film(view), uri=None)
        load_film(embedded, size=PROBE_SIZE, max_pixels=max_pixels)
        return embedded
    image = load_film(view, size=settings.image_size, max_pixels=max_pixels)
    return replace(view, data=encode(image, quality=settings.jpeg_quality), uri=None)


def encode(image: Image.Image, *, quality: int) -> bytes:
    """A grey picture as JPEG; the same picture gives the same bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
