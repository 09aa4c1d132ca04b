"""Films as users of transformers give them: paths, URLs, PIL images and arrays, alone or inside chat messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import requests
from PIL import Image

from megpt.errors import InputError
from megpt.progress import log
from megpt.study import View

Film = Image.Image | np.ndarray | str | Path
"""A film itself, or the path or URL of a JPEG, PNG or DICOM file."""
MAX_BYTES = 512 * 2**20
"""A longer download is cut off: no film is that large."""
MAX_PIXELS = 200_000_000
TIMEOUT_S = 30.0


def open_film(film: Film, *, size: int, where: str) -> Image.Image | np.ndarray:
    """A film by its path or URL as a grey picture with a shorter side of `size`; others are returned as they are.

    Raises:
        InputError: there is no such file, or it is no film.
    """
    if not isinstance(film, str | Path):
        return film
    # Not above: the decoders change Pillow's limits, which is nothing that an import of the model should do.
    from megpt.films.decode import UnreadableFilm, load_film

    address = str(film)
    data = _download(address, where) if address.startswith(("http://", "https://")) else None
    try:
        return load_film(View(where, uri=None if data else address, data=data), size=size, max_pixels=MAX_PIXELS)
    except UnreadableFilm as error:
        raise InputError(
            f"{where} cannot be read: {error.reason}",
            where=address.partition("?")[0],
            next="give the path or URL of a JPEG, PNG or DICOM file, or a PIL image",
        ) from None


def _download(address: str, where: str) -> bytes:
    try:
        with requests.get(address, timeout=TIMEOUT_S, stream=True) as reply:
            reply.raise_for_status()
            data = bytearray()
            for piece in reply.iter_content(chunk_size=2**16):
                data += piece
                if len(data) > MAX_BYTES:
                    raise InputError(f"{where} is larger than {MAX_BYTES >> 20} MiB", where=address.partition("?")[0])
            return bytes(data)
    except requests.RequestException as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        raise InputError(
            f"{where} cannot be downloaded",
            where=address.partition("?")[0],  # what follows may be a signature
            cause=f"HTTP status {status}" if status else type(error).__name__,
            next="check the address, or download the film and give its path",
        ) from None


def is_film(value: Any) -> bool:
    """Whether a value is one film, not a list of them."""
    return isinstance(value, Image.Image | np.ndarray | str | Path)


def in_studies(images: Any) -> list[list[Film]]:
    """A film, a list of films (a study each), or a list of studies → a list of studies."""
    batch = [images] if is_film(images) else list(images)
    return [[study] if is_film(study) else list(study) for study in batch]


def is_chat(value: Any) -> bool:
    """Whether a value is one conversation in transformers' format, a list of messages with a role and a content."""
    return isinstance(value, Sequence) and bool(value) and isinstance(value[0], Mapping) and "role" in value[0]


def read_chat(messages: Iterable[Mapping[str, Any]], where: str) -> tuple[list[Film], str]:
    """The films of a conversation, which are one study, and its text.

    Raises:
        InputError: an image without a path, URL or picture.
    """
    films: list[Film] = []
    texts: list[str] = []
    for message in messages:
        content = message.get("content") or ()
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part.get("type") == "image":
                found = next((part[key] for key in ("image", "url", "path") if part.get(key) is not None), None)
                if found is None:
                    raise InputError(
                        f"{where}: an image without `image`, `url` or `path`",
                        next='write {"type": "image", "path": "film.dcm"}',
                    )
                films.append(found)
            elif part.get("text"):
                texts.append(str(part["text"]))
    return films, " ".join(texts)


def warn_of_text(text: Any) -> None:
    """Say that text beside films has no effect."""
    if text:
        log("the text beside the films is not used: MeGPT chooses its prompt by the film, from prompts.yaml")


def no_film(where: str) -> InputError:
    """The error for input that holds text alone."""
    return InputError(
        f"{where} holds no film",
        cause="MeGPT describes films; it has nothing to say to text alone",
        next='give a film: pipe("film.dcm"), or processor(images=["film.dcm"])',
    )
