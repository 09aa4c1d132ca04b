"""The studies in flight: what the device holds of them (`Flight`), and what the host knows (`Slots`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from megpt.generation.cache import SlotCache
from megpt.generation.decoding import EngineItem
from megpt.generation.rules import Rule, State

Step = Callable[[int, int, tuple[int, int]], None]
"""One token more: rows computed, columns read, bounds of the steps. See `megpt.generation.step.DecodeStep`."""


@dataclass
class Flight:
    """What is known on the device of the studies in flight: row r of every tensor belongs to the study in slot r.

    All rows may be computed at any time, so an empty one holds numbers, too: a prompt of the longest length, of which
    nothing but the shared prefix (zeros, where there is none) can be seen.
    """

    cache: SlotCache
    state: State
    mask: torch.Tensor
    """(slots, K, width): 0 where a beam may look, -inf elsewhere."""
    prompt: torch.Tensor
    """(slots,) long: prompt lengths."""

    @classmethod
    def empty(cls, cache: SlotCache, rule: Rule, *, longest: int, dtype: torch.dtype) -> Flight:
        """Buffers for prompts of up to `longest` tokens; `cache` has its prefix already."""
        device, slots = rule.device, cache.slots
        mask = torch.full((slots, rule.beams, cache.width), -torch.inf, dtype=dtype, device=device)
        mask[:, :, : max(1, cache.prefix_length)] = 0.0
        state = State.empty(slots, rule.beams, rule.width, draws=rule.decoding.do_sample, device=device)
        state.step.fill_(1)
        return cls(cache, state, mask, torch.full((slots,), longest, device=device))

    def put(self, rows: torch.Tensor, state: State, prompts: torch.Tensor) -> None:
        """New studies in `rows` (n,), with the lengths (n,) of their prompts."""
        self.state.put(rows, state)
        self.prompt[rows] = prompts
        columns = torch.arange(self.mask.shape[-1], device=rows.device)
        visible = torch.where(columns < prompts.unsqueeze(1), 0.0, -torch.inf).to(self.mask.dtype)
        self.mask[rows] = visible.unsqueeze(1).expand(-1, self.mask.shape[1], -1)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a row, with the first `length` columns of its keys and values, over another."""
        self.cache.move(source, target, length)
        self.state.move(source, target)
        self.mask[target], self.prompt[target] = self.mask[source], self.prompt[source]


class Slots:
    """One set of buffers, and what the host knows of them: slot r holds `items[r]` (None: it is empty)."""

    def __init__(self, flight: Flight, rule: Rule, step: Step, longest: int):
        self.flight, self.rule, self.step = flight, rule, step
        self.longest = longest
        """Prompts of up to so many tokens have room."""
        slots = flight.cache.slots
        self.items: list[EngineItem | None] = [None] * slots
        self.prompts = [0] * slots
        self.steps = [0] * slots
        """Tokens generated, as the device's `state.step`, known without asking."""
        self.rows = 0
        """Rows 0 … rows are computed in each step."""

    def live(self) -> list[int]:
        return [row for row, item in enumerate(self.items) if item is not None]

    def free(self) -> list[int]:
        return [row for row, item in enumerate(self.items) if item is None]

    def put(self, row: int, item: EngineItem, prompt: int) -> None:
        """A study with its first token."""
        self.items[row], self.prompts[row], self.steps[row] = item, prompt, 1
        self.rows = max(self.rows, row + 1)

    def decode(self) -> None:
        """One token more for every study."""
        live = self.live()
        steps = [self.steps[row] for row in live]
        self.step(self.rows, max(map(self._length, live)), (min(steps), max(steps)))
        for row in live:
            self.steps[row] += 1

    def _length(self, row: int) -> int:
        """Columns in use once the next token's are written."""
        return self.prompts[row] + self.rule.beams * self.steps[row]

    def compact(self) -> None:
        """Nothing will refill the empty rows: move the last live ones into them, so that steps get smaller."""
        live = self.live()
        holes = [row for row in range(len(live)) if self.items[row] is None]
        for hole, row in zip(holes, reversed(live), strict=False):
            self.flight.move(row, hole, self._length(row))
            self.items[hole], self.prompts[hole], self.steps[hole] = self.items[row], self.prompts[row], self.steps[row]
            self.items[row] = None
        self.rows = len(live)
