"""Films out of a request's body, in memory alone, and not one byte more than allowed.

films = await received(request, settings)          # list of bytes; Refused has the status for the answer
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from megpt.config import ServeConfig
from ray_jobs.serve.limits import Refused

RECEIVE_S = 120.0
"""A body that takes longer is given up."""
DRAINED = 4
"""Of a body that is too large, so many times the limit are read and dropped: most clients read no answer before."""
ONE_FILM = ("application/dicom", "application/octet-stream", "image/")


class _InMemory(MultiPartParser):
    """Starlette's parser, which by itself puts a file of more than 1 MiB on disk and takes half a form for a whole."""

    spool_max_size = 1 << 62
    ended = False

    def on_end(self) -> None:
        self.ended = True


async def received(request: Request, settings: ServeConfig) -> list[bytes]:
    """The films of a request: the whole body, or the files of a multipart form.

    Raises:
        Refused: another media type, too large, too many films, too slow, or a form that cannot be read.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    form = media == "multipart/form-data"
    if not form and not media.startswith(ONE_FILM):
        raise Refused(415, "send multipart/form-data, application/dicom or an image type")
    try:
        async with asyncio.timeout(RECEIVE_S):
            films = await (_of_form(request, settings) if form else _of_body(request, settings))
    except TimeoutError:
        raise Refused(408, f"the request took longer than {RECEIVE_S:g} s to arrive") from None
    except ClientDisconnect:
        raise Refused(400, "the request broke off") from None
    if not films or not all(films):
        raise Refused(400, "the request holds no film" if not films else "a film is empty")
    return films


async def _of_body(request: Request, settings: ServeConfig) -> list[bytes]:
    body = b"".join([chunk async for chunk in _bounded(request, settings)])
    return [body] if body else []


async def _of_form(request: Request, settings: ServeConfig) -> list[bytes]:
    parser = _InMemory(request.headers, _bounded(request, settings), max_files=settings.max_films, max_fields=0)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise Refused(413, f"more than {settings.max_films} films") from None
        if "Too many fields" in error.message:
            raise Refused(400, "the form holds a field that is no file") from None
        raise Refused(400, "the form cannot be read") from None
    try:
        if not parser.ended:
            raise Refused(400, "the form breaks off")
        return [await file.read() for _, file in form.multi_items() if not isinstance(file, str)]
    finally:
        await form.close()


async def _bounded(request: Request, settings: ServeConfig) -> AsyncGenerator[bytes, None]:
    """The body as it comes.

    Raises:
        Refused: it is larger than allowed.
    """
    most, size = settings.max_request_mb << 20, 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= most:
            yield chunk
        elif size > DRAINED * most:
            break
    if size > most:
        raise Refused(413, f"the request is larger than {settings.max_request_mb} MiB")
