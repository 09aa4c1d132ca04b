"""One call of the engine's `run`: studies are admitted to free slots, computed a token at a time, and harvested.

What fails costs as little as possible: prompts and steps are tried again in halves until the study that does it is
alone, and where memory does not suffice for the buffers, there are fewer slots.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Protocol

import torch

from megpt.errors import InputError
from megpt.generation.decoding import EngineItem, EngineResult
from megpt.generation.faults import is_out_of_memory, reason, release
from megpt.generation.slots import Slots


class Passes(Protocol):
    """What a loop needs of `GenerationEngine`, which says more."""

    slots: int
    refill: int
    poll: int
    end: tuple[int, ...]
    live: int
    """Studies in flight now; the loop says so."""

    def open(self, first: EngineItem, *, forced: bool, slots: int | None = None) -> Slots: ...

    def prefill(self, slots: Slots, rows: list[int], items: list[EngineItem]) -> None: ...

    def prompt_length(self, item: EngineItem, *, longest: bool = False) -> int: ...


class Loop:
    """Admits, steps, harvests."""

    def __init__(self, engine: Passes, items: Iterator[EngineItem]):
        self.engine, self.items = engine, items
        self.exhausted = False
        self.waiting: deque[EngineItem] = deque()
        self.out: deque[EngineResult] = deque()
        self.slots: Slots | None = None
        self.limit = engine.slots

    def results(self) -> Iterator[EngineResult]:
        while True:
            self._admit()
            while self.out:
                yield self.out.popleft()
            self.engine.live = len(self.slots.live()) if self.slots else 0
            if not self.engine.live:
                if self.exhausted and not self.waiting:
                    return
                continue
            self._steps()

    def _pull(self, count: int) -> list[EngineItem]:
        if len(self.waiting) < count and not self.exhausted:
            more = list(islice(self.items, count - len(self.waiting)))
            self.exhausted = len(more) < count - len(self.waiting)
            self.waiting.extend(more)
        return [self.waiting.popleft() for _ in range(min(count, len(self.waiting)))]

    def _admit(self) -> None:
        """Fill free slots, several prompts in one pass."""
        live = len(self.slots.live()) if self.slots else 0
        free = self.limit - live
        if live and free < min(self.engine.refill, self.limit):
            return
        batch = self._pull(free)
        fitting = self._fitting(batch)
        self.waiting.extendleft(reversed(batch[len(fitting) :]))
        if fitting:
            self._place(fitting)

    def _fitting(self, batch: list[EngineItem]) -> list[EngineItem]:
        """The leading items that the buffers have room for; new buffers are made when none are in use.

        A study for which memory does not suffice even alone is taken out of `batch`.
        """
        if not batch:
            return []
        if self.slots is None or not self.slots.live():
            longest = max(batch, key=self.engine.prompt_length)
            if self.slots is None or not self._fits(longest):
                self.slots = None  # the old buffers go before the new ones come
                if not self._make_room(longest, forced=any(item.length for item in batch)):
                    del batch[next(n for n, item in enumerate(batch) if item is longest)]
                    return []
            batch = batch[: self.limit]
        count = next((n for n, item in enumerate(batch) if not self._fits(item)), len(batch))
        return batch[:count]

    def _make_room(self, longest: EngineItem, *, forced: bool) -> bool:
        """Open buffers, half as many slots as long as memory does not suffice; False if it does not for one study."""
        limit = self.limit
        while True:
            try:
                self.slots = self.engine.open(longest, forced=forced, slots=self.limit)
                return True
            except Exception as error:
                if isinstance(error, InputError) or not is_out_of_memory(error):
                    raise
                release(error)
                if self.limit == 1:
                    self.out.append(EngineResult(longest.key, (), "error", reason(error)))
                    self.limit = limit  # it says nothing about the others
                    return False
                self.limit //= 2

    def _fits(self, item: EngineItem) -> bool:
        return self.engine.prompt_length(item) <= self._open().longest

    def _place(self, items: list[EngineItem]) -> None:
        """Prefill; where it fails, both halves by themselves, until the study that does it is alone."""
        slots = self._open()
        rows = slots.free()[: len(items)]
        try:
            self.engine.prefill(slots, rows, items)
        except InputError:
            raise
        except Exception as error:
            release(error)
            for row in rows:
                slots.items[row] = None
            if len(items) == 1:
                self.out.append(EngineResult(items[0].key, (), "error", reason(error)))
                return
            self._place(items[: len(items) // 2])
            self._place(items[len(items) // 2 :])
            return
        self._harvest()

    def _steps(self) -> None:
        slots = self._open()
        try:
            for _ in range(self.engine.poll):
                slots.decode()
        except Exception as error:
            release(error)
            self._rescue(error)
            return
        self._harvest()

    def _harvest(self) -> None:
        """Take finished rows out."""
        slots = self._open()
        state = slots.flight.state
        done, broken = torch.stack((state.done, state.broken)).tolist()  # the only question to the device
        finished = [row for row in slots.live() if done[row]]
        whole = [row for row in finished if not broken[row]]
        written = dict(zip(whole, slots.rule.written(state, whole) if whole else (), strict=True))
        for row in finished:
            item = slots.items[row]
            assert item is not None
            slots.items[row] = None
            if row not in written:
                self.out.append(EngineResult(item.key, (), "error", "the model's scores are not numbers"))
                slots.flight.cache.clear(row)
                continue
            tokens, logprobs = written[row]
            reason_to_end = "stop" if tokens and tokens[-1] in self.engine.end else "length"
            self.out.append(EngineResult(item.key, tuple(tokens), reason_to_end, logprobs=tuple(logprobs)))
        if finished and self.exhausted and not self.waiting:
            slots.compact()

    def _rescue(self, error: Exception) -> None:
        """A step failed and nobody knows on whose account: begin its studies again in halves, one half at a time."""
        items = [item for item in self._open().items if item is not None]
        self.slots = None
        if len(items) == 1:
            self.out.append(EngineResult(items[0].key, (), "error", reason(error)))
            return
        if is_out_of_memory(error):
            self.limit = max(1, len(items) // 2)
        for half in (items[: len(items) // 2], items[len(items) // 2 :]):
            closed = Loop(self.engine, iter(half))
            closed.limit = max(1, min(self.limit, len(half)))
            self.out.extend(closed.results())
            self.limit = min(self.limit, closed.limit) if is_out_of_memory(error) else self.limit

    def _open(self) -> Slots:
        assert self.slots is not None
        return self.slots
