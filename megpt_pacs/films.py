"""Films of a PACS, fetched when they are read, by the workers: `dicomweb://…/studies/…/series/…/instances/…`."""

from __future__ import annotations

import functools
import io
import socket
from typing import BinaryIO

from megpt.errors import InputError, MegptError
from megpt.films.unreadable import UnreadableFilm
from megpt_pacs.address import checked, split_film
from megpt_pacs.client import Pacs, PacsError


def open_film(uri: str) -> BinaryIO:
    """The file of an instance, in memory.

    Raises:
        UnreadableFilm: the PACS does not give it; the reason says why.
        MegptError: the PACS has not answered for a long time, or this node has no usable credentials.
    """
    parts = split_film(uri)
    if parts is None:
        raise UnreadableFilm("not the address of a film in a PACS")
    service, study, series, instance = parts
    try:
        return io.BytesIO(_pacs(service).film(study, series, instance))
    except PacsError as error:
        raise UnreadableFilm(error.reason) from None


@functools.lru_cache(maxsize=8)
def _pacs(service: str) -> Pacs:
    """One connection a process."""
    try:
        checked(service, key="source")  # it may come from a table
    except InputError:
        raise UnreadableFilm("not the address of a film in a PACS") from None
    try:
        return Pacs(service)
    except InputError as error:  # of this node, not of this film
        raise MegptError(error.what, f"node {socket.gethostname()}", error.cause, error.next) from None
