"""Films that are fetched from a server when they are read; each scheme is an entry point of the package that knows it.

    [project.entry-points."megpt.films"]
    dicomweb = "megpt_pacs.films:open_film"        # the name is the scheme of the films' uris

Such a function takes a uri, `dicomweb://…`, and returns the film's file, open for reading and seeking. It raises
`UnreadableFilm` with a reason that may stand in a table: no credentials, nothing from a header.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import BinaryIO

from megpt.films.unreadable import UnreadableFilm
from megpt.places.addresses import READ_ONLY, WRITABLE

GROUP = "megpt.films"
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


def scheme_of(address: str | None) -> str | None:
    """The scheme of an address, in lower case; None for a path (`file://` too) and for what `megpt.places` opens."""
    found = _SCHEME.match(address or "")
    scheme = "file" if found is None else found[1].lower()
    return None if scheme in ("file", *WRITABLE, *READ_ONLY) else scheme


def open_remote(uri: str) -> BinaryIO:
    """The film at an address.

    Raises:
        UnreadableFilm: no installed package knows the scheme, or the film cannot be fetched.
    """
    return _opener(str(scheme_of(uri)))(uri)


@functools.cache
def _opener(scheme: str) -> Callable[[str], BinaryIO]:
    for point in entry_points(group=GROUP, name=scheme):
        try:
            return point.load()
        except Exception as error:  # another package's code may raise anything
            raise UnreadableFilm(
                f"entry point {scheme!r} ({GROUP}) cannot be loaded ({type(error).__name__})"
            ) from None
    raise UnreadableFilm(f"no installed package reads {scheme}:// films")
