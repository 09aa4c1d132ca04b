"""Addresses of a DICOMweb service: `dicomweb://HOST[:PORT]/PATH` is HTTP, `dicomwebs://…` the same over TLS."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from megpt.errors import InputError

SCHEMES = {"dicomweb": "http", "dicomwebs": "https"}
_FILM = re.compile(r"(?P<base>.+)/studies/(?P<study>[0-9.]+)/series/(?P<series>[0-9.]+)/instances/(?P<film>[0-9.]+)")


def checked(address: str, *, key: str) -> str:
    """The address without a slash at its end.

    Args:
        key: the setting it is from, for errors; the address itself is not shown, since it may hold a password.

    Raises:
        InputError: another scheme, no host, or credentials or a query in it.
    """
    form = f"set {key}=dicomweb://HOST[:PORT]/PATH, or dicomwebs://… for TLS"
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        raise InputError(f"`{key}` is not an address", cause="its host or port cannot be read", next=form) from None
    if parts.scheme not in SCHEMES or not parts.hostname or port == 0:
        raise InputError(f"`{key}` is not the address of a DICOMweb service", next=form)
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise InputError(
            f"`{key}` holds more than a host, a port and a path",
            cause="addresses are written to logs and records, where credentials do not belong",
            next="set MEGPT_PACS_TOKEN, or MEGPT_PACS_USER and MEGPT_PACS_PASSWORD, and leave them out of the address",
        )
    return address.rstrip("/")


def url_of(address: str) -> str:
    """The URL behind an address."""
    scheme, _, rest = address.partition("://")
    return f"{SCHEMES[scheme]}://{rest}"


def split_film(uri: str) -> tuple[str, str, str, str] | None:
    """Service, study, series and instance of a film's uri; None if it is not one."""
    found = _FILM.fullmatch(uri)
    return None if found is None else (found["base"], found["study"], found["series"], found["film"])
