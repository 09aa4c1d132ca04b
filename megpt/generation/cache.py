"""Keys and values of the studies in flight, in one buffer that is allocated once.

A study owns one row of `width` columns. Its prompt fills the first columns; then every step appends one column *per
beam*. So beams share their prompt, and nothing is ever copied when beams are reordered: which columns a beam may look
at is a row of the attention mask, and only that row is exchanged.

    | shared prefix | visual tokens, suffix | step 1: beam 1 2 3 | step 2: beam 1 2 3 | …

Hugging Face decoders take it as `past_key_values`; the mask they are given, (R, 1, Q, L) and ready for use, they hand
to `attend` as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.masking_utils import sdpa_mask

ATTENTION = "megpt_slots"
COLUMNS = 32
"""A buffer has a multiple of as many columns: kernels on a GPU want rows of a mask to begin at round addresses."""


def padded(columns: int) -> int:
    return -(-columns // COLUMNS) * COLUMNS


class SlotCache(Cache):
    """`keys` and `values`: per layer (slots, key-value heads, width, head size).

    What `update` does depends on the pass announced before it: `prefill` or `decode`.
    """

    def __init__(self, slots: int, width: int):
        super().__init__(layers=[])
        self.slots, self.width = slots, width
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.prefix: list[tuple[torch.Tensor, torch.Tensor]] = []  # per layer (1, heads, P, head size)
        self._rows: torch.Tensor | None = None
        self._places: torch.Tensor | None = None
        self._planes: torch.Tensor | None = None  # (slots, heads, 1): where a head's columns begin in a flat buffer
        self._live = (0, 0)

    def get_seq_length(self, layer_idx: int = 0, *args: Any, **kwargs: Any) -> int:
        return self._live[1]

    @property
    def prefix_length(self) -> int:
        return self.prefix[0][0].shape[2]

    def prefill(self, rows: torch.Tensor | None) -> None:
        """The next pass brings prompts (n, T) for these rows; None: the shared prefix itself (1, P)."""
        self._rows, self._places = rows, None

    def decode(self, columns: torch.Tensor, length: int) -> None:
        """The next pass brings `columns` (rows, beams) of rows 0 … `rows`; all of them read columns 0 … `length`."""
        rows = len(columns)
        if self._planes is None:
            heads = self.keys[0].shape[1]
            planes = torch.arange(self.slots * heads, device=columns.device) * self.width
            self._planes = planes.view(self.slots, heads, 1)
        self._places, self._live = (self._planes[:rows] + columns.unsqueeze(1)).view(-1), (rows, length)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store (R, heads, Q, head size); returns what this pass may look at, (R, heads, L, head size)."""
        if self._places is not None:
            rows, length = self._live
            keys, values = self.keys[layer_idx], self.values[layer_idx]
            keys.view(-1, keys.shape[3]).index_copy_(0, self._places, key_states.reshape(-1, keys.shape[3]))
            values.view(-1, values.shape[3]).index_copy_(0, self._places, value_states.reshape(-1, values.shape[3]))
            return keys[:rows, :, :length], values[:rows, :, :length]
        if self._rows is None:
            self._keep_prefix(key_states, value_states, layer_idx)
            return key_states, value_states
        start = self.prefix[layer_idx][0].shape[2]
        end = start + key_states.shape[2]
        self.keys[layer_idx][self._rows, :, start:end] = key_states
        self.values[layer_idx][self._rows, :, start:end] = value_states
        if not start:
            return key_states, value_states
        prefix_keys, prefix_values = (part.expand(len(key_states), -1, -1, -1) for part in self.prefix[layer_idx])
        return torch.cat([prefix_keys, key_states], dim=2), torch.cat([prefix_values, value_states], dim=2)

    def _keep_prefix(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> None:
        """Allocate the layer's buffers and put the prefix into every row, where it stays for good."""
        self.prefix.append((keys.clone(), values.clone()))
        for buffers, states in ((self.keys, keys), (self.values, values)):
            _, heads, length, size = states.shape
            buffer = states.new_zeros(self.slots, heads, self.width, size)
            buffer[:, :, :length] = states
            buffers.append(buffer)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` columns of one row over another's."""
        for buffer in (*self.keys, *self.values):
            buffer[target, :, :length] = buffer[source, :, :length]

    def clear(self, row: int) -> None:
        """Forget a row behind the prefix. A column that is masked has weight zero, but zero times NaN is NaN."""
        start = self.prefix_length
        for buffer in (*self.keys, *self.values):
            buffer[row, :, start:] = 0


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention for Hugging Face decoders in the engine.

    Query heads that share a key-value head become further queries of it, so that keys and values are never repeated.
    The mask already has that number of queries: (1 or R, 1, group * Q, L).

    Raises:
        NotImplementedError: the decoder asks for more than keys, values and a mask.
    """
    for name in ("softcap", "position_bias", "s_aux"):
        if kwargs.get(name) is not None:
            raise NotImplementedError(name)
    rows, heads, queries, size = query.shape
    groups = key.shape[1]
    folded = query if heads == groups else query.reshape(rows, groups, heads // groups * queries, size)
    out = F.scaled_dot_product_attention(folded, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(rows, heads, queries, value.shape[-1]).transpose(1, 2), None


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


@contextmanager
def slot_attention(language_model: Any) -> Iterator[None]:
    """`language_model` attends through `attend` inside this block, and as before behind it."""
    config = language_model.config
    before = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before
