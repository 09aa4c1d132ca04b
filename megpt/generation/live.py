"""Reports for requests that come at any time: the engine's continuous batch over a queue instead of a list.

    live = LiveWriter(ReportWriter(…))
    live.submit(study, films, tell)        # from any thread; `tell` gets Drafts, then the Prediction

One thread has the model. A request takes the next free slot beside those in flight; its text is what `megpt generate`
writes for the same films, whatever else is in flight.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count

import torch
from PIL.Image import Image

from megpt.errors import InputError
from megpt.generation.cache import slot_attention
from megpt.generation.decoding import EngineItem, EngineResult
from megpt.generation.engine import GenerationEngine
from megpt.generation.faults import halve_until_alone, reason
from megpt.generation.loop import Loop
from megpt.generation.writer import Encoded, Prediction, ReportWriter, failed
from megpt.study import Study

DRAFT_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class Draft:
    """What is written of a report so far. Of several beams it is the leading one, so a later draft may differ."""

    text: str
    prompt_id: int


Tell = Callable[[Draft | Prediction], None]


@dataclass(slots=True)
class Request:
    """One report that somebody waits for."""

    key: str
    study: Study
    films: list[Image]
    tell: Tell
    drafts: bool
    encoded: Encoded = field(default_factory=lambda: Encoded(None, 0))
    cancelled: bool = False
    """Set by whoever no longer waits; a request that is not yet begun is then dropped."""


class LiveWriter:
    """A `ReportWriter` in a thread of its own. `waiting` and `in_flight` may be read at any time."""

    def __init__(self, writer: ReportWriter):
        self.writer = writer
        self.in_flight: dict[str, Request] = {}
        self._new: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._numbers = count()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="live-writer", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests that are not yet begun."""
        return self._new.qsize()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, study: Study, films: list[Image], tell: Tell, *, drafts: bool = True) -> Request:
        """Have a report written; `tell` is called from the model's thread, the last time with a Prediction."""
        request = Request(f"{next(self._numbers)}", study, films, tell, drafts)
        self._new.put(request)
        return request

    def close(self) -> None:
        """End the thread when what is in flight is written."""
        self._new.put(None)
        self._thread.join()

    # ---- the model's thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        self.writer.model.eval()
        while not self._closed:
            try:
                for result in self._results():
                    self._finish(result)
            except Exception as error:  # nobody knows on whose account
                for request in list(self.in_flight.values()):
                    self._fail(request, reason(error))

    @torch.no_grad()
    def _results(self) -> Iterator[EngineResult]:
        backend = self.writer.backend
        if isinstance(backend, GenerationEngine):
            with slot_attention(backend.language_model):
                yield from LiveLoop(backend, self._items(), self._draft).results()
            return
        while not self._closed:
            yield from backend.run(list(self._encoded()))

    def _items(self) -> Iterator[EngineItem | None]:
        """Items as they come; None when there are none and others are in flight."""
        while not self._closed:
            any_came = False
            for item in self._encoded():
                any_came = True
                yield item
            if not any_came and self.in_flight:
                yield None

    def _encoded(self) -> Iterator[EngineItem]:
        """What waits, at most a batch; waits for the first if nothing is in flight."""
        batch: list[Request] = []
        while len(batch) < self.writer.batch_size:
            try:
                request = self._new.get(block=not (batch or self.in_flight))
            except queue.Empty:
                break
            if request is None:
                self._closed = True
                break
            if not request.cancelled:
                batch.append(request)
        # known before anything can fail, so that no request is without an answer
        self.in_flight |= {request.key: request for request in batch}
        if batch:
            yield from halve_until_alone(self._encode, batch, self._fail)

    def _encode(self, batch: list[Request]) -> Iterator[EngineItem]:
        encoded = self.writer.encode(self.writer.pixels([request.films for request in batch]))
        for request, films in zip(batch, encoded, strict=True):
            request.encoded = replace(films, tokens=None)
            suffix, study = self.writer.suffix(request.study, films), request.study.study_id
            item = EngineItem(request.key, films.tokens, films.prompt_id, suffix=suffix, study=study)
            backend = self.writer.backend
            try:
                if isinstance(backend, GenerationEngine):
                    backend.check_context(backend.prompt_length(item, longest=True))
            except InputError as error:
                self._fail(request, error.what)
            else:
                yield item

    def _fail(self, request: Request, error: str) -> Iterable[EngineItem]:
        self.in_flight.pop(request.key, None)
        request.tell(failed(request.study, error, request.encoded.prompt_id))
        return ()

    def _finish(self, result: EngineResult) -> None:
        request = self.in_flight[result.key]
        if result.error:
            self._fail(request, result.error)
            return
        request.tell(self.writer.prediction(request.study, request.encoded, result))
        # last, so that whatever fails before it is answered
        del self.in_flight[result.key]

    def _draft(self, key: str, tokens: Callable[[], list[int]]) -> None:
        request = self.in_flight[key]
        if request.drafts and not request.cancelled:
            text = str(self.writer.processor.tokenizer.decode(tokens(), skip_special_tokens=True)).strip()
            request.tell(Draft(text, request.encoded.prompt_id))


class LiveLoop(Loop):
    """The engine's loop over items that come at any time; an item None means that there are none for now."""

    def __init__(
        self,
        engine: GenerationEngine,
        items: Iterator[EngineItem | None],
        draft: Callable[[str, Callable[[], list[int]]], None],
    ):
        super().__init__(engine, iter(()))
        self.coming, self.draft = items, draft
        self._drafted = 0.0

    def _pull(self, count: int) -> list[EngineItem]:
        while len(self.waiting) < count and not self.exhausted:
            try:
                item = next(self.coming)
            except StopIteration:
                self.exhausted = True
                break
            if item is None:
                break
            self.waiting.append(item)
        return [self.waiting.popleft() for _ in range(min(count, len(self.waiting)))]

    def _harvest(self) -> None:
        super()._harvest()
        slots = self._open()
        live = slots.live()
        if not self.waiting and len(live) < slots.rows:
            slots.compact()  # a burst is over: steps need not compute its rows for ever
            live = slots.live()
        if live and time.monotonic() - self._drafted >= DRAFT_EVERY_S:
            self._drafted = time.monotonic()
            for row in live:
                item = slots.items[row]
                assert item is not None
                self.draft(item.key, lambda row=row: slots.flight.state.tokens[row, 0, : slots.steps[row]].tolist())
