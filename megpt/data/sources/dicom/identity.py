"""Ids that name nobody: keyed hashes of PatientIDs, and of study UIDs where they are wanted.

The key is `MEGPT_SUBJECT_KEY`, or 32 random bytes that the first run leaves in `OUT/subject_key` (mode 0600). Without
the key nobody can try out patient numbers against the table; with the same key another output has the same ids.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

from megpt.errors import InputError
from megpt.output import storage_error
from megpt.places import is_address

KEY_VARIABLE, KEY_FILE = "MEGPT_SUBJECT_KEY", "subject_key"
LEAST_KEY = 16


class Pseudonyms:
    """Keyed hashes, of 32 hex digits (HMAC-SHA-256, cut to 128 bits)."""

    def __init__(self, key: bytes):
        self._key = key

    def of(self, kind: str, value: str) -> str:
        """The hash of a value; `kind` keeps a patient's number and an equal accession number apart."""
        message = f"{kind}\0{value}".encode("utf-8", "surrogatepass")
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()[:32]

    @property
    def check(self) -> str:
        """Tells two keys apart, and says nothing of either."""
        return self.of("check", "")


def find_key(folder: Path | None, *, make: bool) -> bytes:
    """The key of an output folder; a random one, for this process alone, if there is no folder to keep it in.

    Args:
        make: leave a new key in the folder if it has none.

    Raises:
        InputError: a key that is too short, or a key file that cannot be read or that others may read.
    """
    if (given := os.environ.get(KEY_VARIABLE)) is not None:
        if len(given.strip()) < LEAST_KEY:
            raise InputError(
                f"{KEY_VARIABLE} has fewer than {LEAST_KEY} characters",
                cause="a short key can be guessed, and with it the patient numbers behind the ids",
                next=f'export {KEY_VARIABLE}="$(openssl rand -hex 32)", and keep it',
            )
        return given.strip().encode()
    if folder is None:
        return secrets.token_bytes(32)
    if is_address(folder):
        raise InputError(
            f"{KEY_VARIABLE} is not set, and {folder} is no place for a key",
            cause="the patients' ids are hashes with a key, which nobody else may read; an object has no mode 0600",
            next=f'export {KEY_VARIABLE}="$(openssl rand -hex 32)", and keep it',
        )
    path = folder / KEY_FILE
    if not path.exists():
        if not make:
            return secrets.token_bytes(32)
        _make(path)
    return _read(path)


def _make(path: Path) -> None:
    """A key file is whole or absent, and never readable by others, not even for a moment."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    except OSError as error:
        raise storage_error(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read", cause=type(error).__name__) from None
    if stat.S_IMODE(mode) & 0o077:
        raise InputError(
            f"{path} can be read by others",
            cause="it is the key of the patients' ids",
            next=f"chmod 600 {path}, or choose another output=PATH if others may have read it",
        )
    if len(text) < LEAST_KEY:
        raise InputError(f"{path} holds no key", next=f"restore it, or set {KEY_VARIABLE}")
    return text.encode()
