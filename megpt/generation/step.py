"""One token more for every study in flight, without asking the device anything.

A step is a few hundred small kernels, and on a GPU launching them one by one takes longer than running them. So a
step is made to be recorded and replayed: all it reads and writes lies in the buffers of one `Flight`, and the two
numbers that the host must know beforehand, the rows computed and the columns read, are rounded up to a few sizes. The
first step of a size runs as it is, which also warms the libraries up, the second is recorded (on CUDA: as a CUDA
graph), and every later one is replayed. Without a recorder, as on the CPU, the sizes are exact.

Whoever changes `compute` must keep it free of what a recording cannot hold: values of tensors on the host (`item`,
`tolist`, `nonzero`, `if tensor:`), tensors made from Python lists, indexing by a boolean mask, and any number that
differs from one step of a size to the next.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from megpt.generation.cache import padded
from megpt.generation.rules import Rule, State
from megpt.generation.slots import Flight

Work = Callable[[], None]


class Recorder:
    """Records what a piece of work does on the device. `refused` says why it could not, and is final."""

    refused: str | None = None

    def warm(self, work: Work) -> None:
        """Run `work` in such a way that it can be recorded afterwards."""
        work()

    def record(self, work: Work) -> Work:
        """Record `work`, without running it; calling what is returned runs it on the same buffers."""
        raise NotImplementedError


class CudaGraphs(Recorder):
    """Recordings are CUDA graphs, which share one pool of memory."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()
        self.side = torch.cuda.Stream()

    def warm(self, work: Work) -> None:
        self.side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.side):
            work()
        torch.cuda.current_stream().wait_stream(self.side)

    def record(self, work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        # Other threads may continue to prepare films on the same device.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            work()
        return graph.replay


class DecodeStep:
    """Steps of one flight.

    Args:
        language_model: a Hugging Face causal decoder, attending through `megpt.generation.cache.attend`.
        group: query heads for each key-value head.
        recorder: None computes every step afresh.
    """

    def __init__(self, language_model: Any, flight: Flight, rule: Rule, *, group: int, recorder: Recorder | None):
        self.language_model, self.flight, self.rule = language_model, flight, rule
        self.group, self.recorder = group, recorder
        self.recordings: dict[tuple[int, int], Work | None] = {}
        slots, beams, width = flight.mask.shape
        # Columns of a step end where `step` tokens of each beam end; places in the mask seen as one long row.
        self._beam = torch.arange(-beams, 0, device=rule.device)
        self._planes = torch.arange(slots * beams, device=rule.device).view(slots, beams) * width
        self._views: dict[int, State] = {}

    def __call__(self, rows: int, length: int, steps: tuple[int, int]) -> None:
        """One token more for rows 0 … `rows`, looking at columns 0 … `length`.

        Args:
            steps: the smallest and the largest `state.step` of rows that matter.
        """
        if self.recorder is None or self.recorder.refused:
            self.compute(rows, length, steps)
            return
        size = self.size(rows, length)
        work = partial(self.compute, *size, (1, self.rule.width))
        if size not in self.recordings:
            self.recordings[size] = None
            self.recorder.warm(work)
            return
        if self.recordings[size] is None:
            self.recordings[size] = self._record(self.recorder, work)
        (self.recordings[size] or work)()

    def size(self, rows: int, length: int) -> tuple[int, int]:
        """Rows rounded up to a power of two, as far as there are any, and columns to what the cache has as a unit."""
        return min(self.flight.cache.slots, 1 << (rows - 1).bit_length()), padded(length)

    def _record(self, recorder: Recorder, work: Work) -> Work | None:
        try:
            return recorder.record(work)
        except Exception as error:  # the model does something that cannot be recorded, or memory ran out
            recorder.refused = type(error).__name__
            logging.getLogger(__name__).warning(
                "decoding continues without CUDA graphs, more slowly: recording a step failed (%s)", recorder.refused
            )
            return None

    def compute(self, rows: int, length: int, steps: tuple[int, int]) -> None:
        """The step itself."""
        flight, rule, beams = self.flight, self.rule, self.rule.beams
        if rows not in self._views:
            self._views[rows] = flight.state.first_rows(rows)
        state = self._views[rows]
        # An empty row continues until its columns are used up, then overwrites its last ones.
        state.step.clamp_(max=rule.width - 1)
        prompt = flight.prompt[:rows]
        # Where this step's keys and values go: one column a beam, and each beam may look at its own.
        column = torch.add(prompt, state.step, alpha=beams).unsqueeze(1) + self._beam  # (R, K)
        # Finished and empty rows run past the last token and must not ask for a position that does not exist.
        last = rule.decoding.max_new_tokens
        position = prompt + (state.step if rule.width == last else state.step.clamp(max=last)) - 1
        flight.cache.decode(column, length)
        flight.mask.view(-1).index_fill_(0, (self._planes[:rows] + column).view(-1), 0.0)
        mask = flight.mask[:rows, :, :length]
        logits = self.language_model(
            input_ids=state.last,
            position_ids=position.unsqueeze(1).expand(-1, beams),
            attention_mask=(mask if self.group == 1 else mask.repeat(1, self.group, 1)).unsqueeze(1),
            past_key_values=flight.cache,
            use_cache=True,
        ).logits
        parent = rule.advance(state, logits, steps)
        if parent is not None:
            mask.copy_(mask.gather(1, parent.unsqueeze(-1).expand(-1, -1, length)))
