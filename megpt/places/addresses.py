"""What an address may be, and what a store's errors mean."""

from __future__ import annotations

import errno
import functools
import importlib.util
import os
import re

from megpt.errors import InputError, MegptError

WRITABLE = {"s3": "s3", "gs": "gs", "az": "az"}
"""Scheme → the extra that it needs."""
READ_ONLY = ("hf", "https", "http")
# A request that has brought nothing for so long is made again; then the store counts as unreachable.
REQUEST_S, GIVE_UP_S, TRIES = 60, 180, 8
CHANGED = "changed while it was read"
_STATUS = re.compile(r"status code: (\d{3})|\b(?:HTTP|status)[ =](\d{3})\b")
_KNOWN_ELSEWHERE = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "azure": "az", "abfs": "az", "abfss": "az"}


class Changed(OSError):
    """An object became another one while it was read."""


def split(address: str) -> tuple[str, str, str]:
    """Scheme, bucket and key. A key may hold any sign, `#` and `?` too."""
    scheme, _, rest = address.partition("://")
    bucket, _, key = rest.partition("/")
    return scheme.lower(), bucket, key.strip("/")


def check(address: str, *, setting: str = "", writing: bool = False, known_only: bool = True) -> None:
    """Refuse an address that cannot be used, before anything is asked of it.

    Args:
        known_only: refuse other kinds of addresses than those of this room.

    Raises:
        InputError: it holds a password, its scheme is unknown or cannot be written, or a package is missing. The text
            never repeats a password.
    """
    scheme, bucket, key = split(address)
    named = f"{setting} = " if setting else ""
    if "@" in bucket or "?" in bucket or (scheme in READ_ONLY and "?" in key):
        raise InputError(
            f"{named}{scheme}://… holds a user name, a password or a signature",
            cause="addresses are logged and kept in run.json, so they must hold no secret",
            next="give it without, and put credentials into the environment (docs/addresses.md)",
        )
    known = (*WRITABLE, *READ_ONLY)
    if scheme not in known and not known_only:
        return
    if scheme not in known:
        meant = _KNOWN_ELSEWHERE.get(scheme)
        raise InputError(
            f"{named}{address!r}: unknown kind of address {scheme}://",
            next=f"write {meant}://…" if meant else f"use {', '.join(f'{name}://' for name in known)}, or a path",
        )
    if not bucket:
        raise InputError(f"{named}{address!r} names no bucket or host", next=f"write {scheme}://BUCKET/PATH")
    if writing and scheme in READ_ONLY:
        raise InputError(
            f"{named}{address!r} cannot be written",
            cause=f"{scheme}:// is read only",
            next="choose a path or " + ", ".join(f"{name}://" for name in WRITABLE),
        )
    if scheme in WRITABLE and not has_client():
        package = f'pip install "megpt[{WRITABLE[scheme]}]" on every node'
        raise InputError(f"{scheme}:// needs the package obstore", next=package)


@functools.cache
def has_client() -> bool:
    """Whether the package for stores is installed."""
    return importlib.util.find_spec("obstore") is not None


def told(error: BaseException, address: str, *, writing: bool = False) -> Exception:
    """A store's error as the OSError that a file would raise, or as a screen if the store itself cannot be used."""
    if isinstance(error, MegptError):
        return error
    name, text = type(error).__name__, str(error)
    found = _STATUS.search(text)
    status = next((int(code) for code in found.groups() if code), 0) if found else getattr(error, "status", 0)
    if "NoSuchBucket" in text:
        return InputError(
            f"no bucket at {'://'.join(split(address)[:2])}",
            cause="its name is mistyped, or it is in another region or account",
            next="check the address, AWS_REGION and AWS_ENDPOINT_URL",
        )
    if isinstance(error, FileNotFoundError) or name == "EntryNotFoundError" or status == 404:
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), address)
    if name == "InvalidPathError":
        key = re.search(r'Path "([^"]*)"', text)
        return InputError(
            f"{address} holds an object whose name cannot be read" + (f": {key[1]!r}" if key else ""),
            cause="a part of the name between two / is empty, . or ..",
            next="rename or move the object",
        )
    if name in ("PermissionDeniedError", "UnauthenticatedError") or status in (401, 403):
        return PermissionError(errno.EACCES, "write" if writing else "read", address)
    if name == "AlreadyExistsError":
        return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), address)
    if name == "PreconditionError" or status == 412:
        return Changed(errno.ESTALE, CHANGED, address)
    return MegptError(
        f"{'://'.join(split(address)[:2])} does not answer as it should",
        where=address,
        cause=(f"HTTP {status}" if status else _kind(text) or name) + f", also after {TRIES} tries or {GIVE_UP_S} s",
        next="run the same command again when it does: what is finished is kept",
    )


def _kind(text: str) -> str:
    """What went wrong without an answer, from the words of the client; its own text may quote a whole request."""
    if "timed out" in text or "Timeout" in text:
        return "no answer in time"
    return "no connection" if "ConnectError" in text or "error sending request" in text else ""


def screen(error: BaseException) -> MegptError | None:
    """The screen of a refused access to an address; None for any other error."""
    address = getattr(error, "filename", None)
    if not isinstance(error, PermissionError) or not isinstance(address, str) or "://" not in address:
        return None
    scheme, what = split(address)[0], error.strerror or "read"
    variables = {"s3": "AWS_ACCESS_KEY_ID", "gs": "GOOGLE_APPLICATION_CREDENTIALS", "az": "AZURE_STORAGE_ACCOUNT_KEY"}
    wanted = variables.get(scheme, "HF_TOKEN")
    cause = f"the credentials have no right to {what} there" if wanted in os.environ else f"{wanted} is not set"
    return InputError(f"no right to {what} {address}", cause=cause, next="see docs/addresses.md for what is needed")
