"""Films at an address, fetched before their turn: a request takes 50 ms, and decoding a film not much less.

    for study in fetched_ahead(studies): load_films(study, …)      # the films of the next studies are on their way

Memory holds the films of the studies ahead, 16 of them or so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

from megpt.films.members import from_uri
from megpt.films.remote import scheme_of
from megpt.places import is_address, place
from megpt.study import Study

FILMS = 16
_coming: dict[str, Future[BinaryIO]] = {}


def opened(address: str) -> BinaryIO:
    """The film as a file: the one that is on its way, or fetched now."""
    coming = _coming.pop(address, None)
    return coming.result() if coming is not None else _open(address)


def fetched_ahead(studies: Iterable[Study]) -> Iterator[Study]:
    """The same studies; films of the next ones that lie at an address are being fetched meanwhile."""
    stream, waiting, films = iter(studies), deque[tuple[Study, list[str]]](), 0
    with ThreadPoolExecutor(FILMS, thread_name_prefix="films") as pool:
        while True:
            while films < FILMS and (study := next(stream, None)) is not None:
                far = [view.uri for view in study.views if view.data is None and view.uri and is_address(view.uri)]
                far = [uri for uri in far if not scheme_of(uri) and from_uri(uri)[1] is None]
                for uri in far:
                    _coming[uri] = pool.submit(_open, uri)
                waiting.append((study, far))
                films += max(1, len(far))
                if not far:  # it may hold its films itself, and memory shall hold few of those
                    break
            if not waiting:
                return
            study, far = waiting.popleft()
            films -= max(1, len(far))
            yield study
            for uri in far:  # those that nobody wanted
                _coming.pop(uri, None)


def _open(address: str) -> BinaryIO:
    return place(address).open("rb")
