"""Objects behind addresses: found, listed, read, put and deleted. The only file that talks to a store.

    head("s3://bucket/films/1.png")                       # Found(key, size, version), or FileNotFoundError
    for found in everything("s3://bucket/films"): ...     # a page at a time, so memory does not grow
    with open_object("s3://bucket/films/1.png") as file: ... # all of one version of it
    put("s3://bucket/out/part-0.parquet", path)           # appears whole, or not at all

`s3`, `gs` and `az` go through obstore (Apache's object_store, in Rust): one interface with conditional puts, pages of
listings and reads that hold no lock of Python, where s3fs, gcsfs and adlfs differ in all three and pyarrow.fs has no
conditional put. `hf` and `https` are read only and go through fsspec. Credentials come from the environment alone.
Errors never quote what a store has answered: an address that was signed would show its signature.
"""

from __future__ import annotations

import errno
import functools
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

from megpt.errors import InputError, MegptError
from megpt.places.addresses import CHANGED, GIVE_UP_S, REQUEST_S, TRIES, WRITABLE, Changed, split, told

PAGE = 1000
PUT_PART = 16 << 20
# Objects up to this size are fetched in one request; of larger ones, ranges.
WHOLE, RANGE = 32 << 20, 4 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """An object: its address, bytes, a text that changes with its content (ETag), and its time in seconds."""

    address: str
    size: int
    version: str
    modified: float


@functools.cache
def _store(scheme: str, bucket: str) -> Any:
    """The client of a bucket; it reads AWS_*, GOOGLE_* and AZURE_* from the environment."""
    from obstore.store import from_url

    options: dict[str, Any] = {}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    if scheme == "s3" and endpoint:
        options["endpoint"] = endpoint
    client = {"timeout": f"{REQUEST_S}s", "connect_timeout": "10s", "allow_http": endpoint.startswith("http://")}
    retry: Any = {"max_retries": TRIES, "retry_timeout": timedelta(seconds=GIVE_UP_S)}
    try:
        return from_url(f"{scheme}://{bucket}", client_options=client, retry_config=retry, **options)  # type: ignore
    except Exception as error:
        raise InputError(
            f"{scheme}://{bucket} cannot be opened",
            cause=f"{type(error).__name__}: the environment lacks what {scheme}:// needs",
            next="set the variables that docs/addresses.md names",
        ) from None


def _obstore() -> Any:
    import obstore

    return obstore


@functools.cache
def _remote(scheme: str) -> Any:
    """The read-only file system of a scheme; it keeps no listings, which would go stale."""
    import fsspec

    return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)


def head(address: str) -> Found:
    """What is known of one object.

    Raises:
        OSError: there is none, or no right to see it. MegptError: the store does not answer.
    """
    scheme, bucket, key = split(address)
    try:
        if scheme in WRITABLE:
            return _found(scheme, bucket, _obstore().head(_store(scheme, bucket), key))
        about = _remote(scheme).info(_inside(scheme, address))
        if about.get("type") == "directory":
            raise FileNotFoundError(address)
        return _of_fsspec(address, about)
    except Exception as error:
        raise told(error, address) from None


def everything(address: str) -> Iterator[Found]:
    """All objects below an address, streamed."""
    scheme, bucket, key = split(address)
    try:
        if scheme in WRITABLE:
            prefix = f"{key}/" if key else None
            for page in _obstore().list(_store(scheme, bucket), prefix, chunk_size=PAGE):
                yield from (_found(scheme, bucket, about) for about in page)
        elif scheme == "hf":
            for name, about in _remote(scheme).find(_inside(scheme, address), detail=True).items():
                yield _of_fsspec(f"hf://{name}", about)
    except Exception as error:
        raise told(error, address) from None


def children(address: str) -> tuple[list[str], list[Found]]:
    """The names of the folders in a folder, and its objects."""
    scheme, bucket, key = split(address)
    prefix = f"{key}/" if key else None
    try:
        if scheme in WRITABLE:
            listed = _obstore().list_with_delimiter(_store(scheme, bucket), prefix)
            folders = [name.rstrip("/").rpartition("/")[2] for name in listed["common_prefixes"]]
            objects = [about for about in listed["objects"] if about["path"] != key]  # a folder that a browser made
            return folders, [_found(scheme, bucket, about) for about in objects]
        if scheme != "hf":
            return [], []
        entries = _remote(scheme).ls(_inside(scheme, address), detail=True)
    except Exception as error:
        raise told(error, address) from None
    folders = [entry["name"].rpartition("/")[2] for entry in entries if entry["type"] == "directory"]
    return folders, [_of_fsspec(f"hf://{entry['name']}", entry) for entry in entries if entry["type"] == "file"]


def open_object(address: str) -> BinaryIO:
    """An object as a file. A small one is fetched whole, in one request; of a large one, ranges of the same version.

    Raises:
        OSError: there is none, or no right to read it; Changed if it became another one while it was read.
        MegptError: the store does not answer.
    """
    scheme, bucket, key = split(address)
    about: Found | None = None
    try:
        if scheme not in WRITABLE:
            about = head(address)
            whole = about.size <= WHOLE and _remote(scheme).cat_file(_inside(scheme, address))
            return io.BytesIO(whole) if whole is not False else io.BufferedReader(_Ranges(about), RANGE)
        answer = _obstore().get(_store(scheme, bucket), key)
        about = _found(scheme, bucket, answer.meta)
        if about.size > WHOLE:
            return io.BufferedReader(_Ranges(about), RANGE)
        data = answer.bytes().to_bytes()
    except Exception as error:
        raise _told_of(about, error, address) from None
    if len(data) != about.size:
        raise Changed(errno.ESTALE, CHANGED, address)
    return io.BytesIO(data)


def _told_of(about: Found | None, error: Exception, address: str) -> Exception:
    """`told`; an answer that broke off and cannot be continued, since the object is another by now, is Changed."""
    found = told(error, address)
    if about is not None and isinstance(found, MegptError) and head(address).version != about.version:
        return Changed(errno.ESTALE, CHANGED, address)
    return found


class _Ranges(io.RawIOBase):
    """A large object, read range by range, each on the condition that it is still the same version."""

    def __init__(self, about: Found):
        self.about, self._at = about, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self.about.size)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self.about.size)
        if self._at >= end:
            return 0
        data = fetch(self.about, self._at, end)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def fetch(about: Found, start: int, end: int) -> bytes:
    """Bytes of one version of an object.

    Raises:
        Changed: it is not that version any more. And what `open_object` raises.
    """
    scheme, bucket, key = split(about.address)
    try:
        if scheme in WRITABLE:
            options: Any = {"range": (start, end)} | ({"if_match": about.version} if about.version else {})
            data = _obstore().get(_store(scheme, bucket), key, options=options).bytes().to_bytes()
        else:
            data = _remote(scheme).cat_file(_inside(scheme, about.address), start=start, end=end)
    except Exception as error:
        raise _told_of(about, error, about.address) from None
    if len(data) != end - start:
        raise Changed(errno.ESTALE, CHANGED, about.address)
    return data


def put(address: str, content: Path | bytes, *, new: bool = False) -> str:
    """Make an object, which appears whole; returns its version.

    Args:
        new: only if there is none at the address (If-None-Match: * and what is like it).

    Raises:
        FileExistsError: there is one, with `new`.
    """
    scheme, bucket, key = split(address)
    try:
        mode = "create" if new else "overwrite"
        return str(_obstore().put(_store(scheme, bucket), key, content, mode=mode, chunk_size=PUT_PART)["e_tag"] or "")
    except Exception as error:
        raise told(error, address, writing=True) from None


def delete(*addresses: str) -> None:
    """Delete objects; those that do not exist are passed over."""
    for address in addresses:
        scheme, bucket, key = split(address)
        try:
            _obstore().delete(_store(scheme, bucket), key)
        except FileNotFoundError:
            continue
        except Exception as error:
            raise told(error, address, writing=True) from None


def _found(scheme: str, bucket: str, about: Any) -> Found:
    version = about["e_tag"] or about["version"] or ""
    return Found(f"{scheme}://{bucket}/{about['path']}", about["size"], version, about["last_modified"].timestamp())


def _of_fsspec(address: str, about: dict[str, Any]) -> Found:
    version = about.get("blob_id") or about.get("ETag") or about.get("mtime") or ""
    return Found(address, int(about.get("size") or 0), str(version), 0.0)


def _inside(scheme: str, address: str) -> str:
    return address.removeprefix("hf://") if scheme == "hf" else address
