"""Continuous batching: a fixed number of slots, and a finished report leaves its slot to the next study at once.

    engine = GenerationEngine(model, Decoding(num_beams=3, max_new_tokens=60), slots=32)
    for result in engine.run(EngineItem(key, tokens, prompt_id) for …): ...

Against `transformers.generate` on a batch this saves: the steps that finished reports wait for the longest one, the
prompt's pass for every beam but one, the copies of the cache when beams are reordered, the keys and values of the
prompt's shared beginning, and attention to columns that nobody has filled. Texts are equal: megpt/generation/rules.py
follows the same arithmetic row by row.

What is computed together depends on the items and their order only, never on time: the same items give the same
batches, and so, bit for bit, the same texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from megpt.errors import InputError
from megpt.generation.cache import SlotCache, padded, slot_attention
from megpt.generation.decoding import Decoding, EngineItem, EngineResult, PromptedModel, end_tokens, uniforms
from megpt.generation.loop import Loop
from megpt.generation.rules import make_rule
from megpt.generation.slots import Flight, Slots
from megpt.generation.step import CudaGraphs, DecodeStep, Recorder

# On a GPU the host looks for finished rows this often: each look waits for the device, each step in between does not.
# A finished row is computed 1.5 steps too long on average.
POLL_EVERY = {"cpu": 1, "cuda": 4}


class GenerationEngine:
    """Writes reports for a stream of studies.

    Args:
        model: gives `language_model` (a Hugging Face causal decoder) and `prompt_ids()`.
        slots: studies in flight.
        refill: share of the slots that must be free before new prompts are computed together.
        reserve: tokens by which an item's own `suffix` may exceed the longest prompt before buffers are made anew.
        recorder: records decode steps in order to replay them. None: CUDA graphs on a GPU, nothing elsewhere.
    """

    def __init__(
        self,
        model: PromptedModel,
        decoding: Decoding,
        *,
        slots: int = 32,
        refill: float = 0.125,
        reserve: int = 0,
        recorder: Recorder | None = None,
    ):
        self.language_model, self.decoding, self.slots = model.language_model, decoding, slots
        self.refill, self.reserve = max(1, int(slots * refill)), reserve
        self.live = 0
        """Studies in flight now, at most `slots`."""
        self.end = end_tokens(self.language_model)
        self.config = self.language_model.config.get_text_config()
        embed = self.language_model.get_input_embeddings()
        self.device, self.dtype = embed.weight.device, embed.weight.dtype
        prefix, suffixes = model.prompt_ids()
        self.prefix = torch.as_tensor(prefix, dtype=torch.long, device=self.device)
        self.suffixes = [torch.as_tensor(ids, dtype=torch.long, device=self.device) for ids in suffixes]
        self.poll = POLL_EVERY.get(self.device.type, 1)
        self.recorder = CudaGraphs() if recorder is None and self.device.type == "cuda" else recorder
        heads = self.config.num_attention_heads
        self.group = heads // (getattr(self.config, "num_key_value_heads", None) or heads)

    # ---- the loop --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def run(self, items: Iterable[EngineItem]) -> Iterator[EngineResult]:
        """The reports of `items`, in the order in which they are finished.

        A study on which the model fails (out of memory, scores that are not numbers) is a result with `error`; the
        others are not touched by it.
        """
        with slot_attention(self.language_model):
            yield from Loop(self, iter(items)).results()

    # ---- passes through the model ----------------------------------------------------------------------------------

    def open(self, first: EngineItem, *, forced: bool, slots: int | None = None) -> Slots:
        """Buffers for `slots` studies (all of the engine's by default) with as many visual tokens as `first`."""
        tokens = self.decoding.max_new_tokens + self.poll - 1
        rule = make_rule(self.decoding, self.end, width=tokens, device=self.device, forced=forced)
        longest = self.prompt_length(first, longest=True)
        self.check_context(longest)
        cache = SlotCache(slots or self.slots, padded(longest + rule.beams * tokens))
        self._prefill_prefix(cache)
        flight = Flight.empty(cache, rule, longest=longest, dtype=self.dtype)
        step = DecodeStep(self.language_model, flight, rule, group=self.group, recorder=self.recorder)
        return Slots(flight, rule, step, longest)

    def prompt_length(self, item: EngineItem, *, longest: bool = False) -> int:
        room = max(map(len, self.suffixes)) + self.reserve if longest else 0
        return len(self.prefix) + len(item.tokens) + max(room, len(self._suffix(item)))

    def _suffix(self, item: EngineItem) -> torch.Tensor:
        return torch.as_tensor(item.suffix or self.suffixes[item.prompt_id], dtype=torch.long, device=self.device)

    def check_context(self, prompt: int) -> None:
        most = getattr(self.config, "max_position_embeddings", None)
        window = getattr(self.config, "sliding_window", None)
        total = prompt + self.decoding.max_new_tokens
        if most is not None and total > most:
            raise InputError(
                f"a prompt of {prompt} tokens and generate.max_new_tokens={self.decoding.max_new_tokens} exceed the "
                f"language model's context of {most}",
                next=f"set generate.max_new_tokens={max(1, most - prompt)} or less, or shorten the prompts",
            )
        if window and total > window:
            raise InputError(
                f"reports of up to {total} tokens exceed the language model's attention window of {window}",
                cause="the engine lets a token look at all that come before it",
                next="set generate.backend=hf",
            )

    def _prefill_prefix(self, cache: SlotCache) -> None:
        """Keys and values of the shared beginning, once for all slots."""
        cache.prefill(None)
        ids = self.prefix if len(self.prefix) else self.suffixes[0][:1]
        self.language_model(
            input_ids=ids.unsqueeze(0),
            position_ids=torch.arange(len(ids), device=self.device).unsqueeze(0),
            attention_mask=self._causal(len(ids), 0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        if not len(self.prefix):  # the pass was for the shapes only
            cache.prefix = [(keys[:, :, :0], values[:, :, :0]) for keys, values in cache.prefix]

    def _causal(self, length: int, start: int) -> torch.Tensor:
        """The mask (1, 1, group * length, start + length) of tokens behind `start` ones that all may see."""
        mask = torch.full((length, start + length), -torch.inf, dtype=self.dtype, device=self.device)
        return mask.triu_(start + 1).repeat(self.group, 1)[None, None]

    def prefill(self, slots: Slots, rows: list[int], items: list[EngineItem]) -> None:
        """Compute the prompts of `items` together, put them into `rows`, and take their first tokens."""
        embed = self.language_model.get_input_embeddings()
        flight, rule, start = slots.flight, slots.rule, len(self.prefix)
        parts = [torch.cat((item.tokens.to(self.device, self.dtype), embed(self._suffix(item)))) for item in items]
        lengths = [len(part) for part in parts]
        # Padding follows the prompt, where causality hides it; the report's columns overwrite it later.
        embeds = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
        target = torch.tensor(rows, device=self.device)
        flight.cache.prefill(target)
        lasts = sorted(set(lengths))
        logits = self.language_model(
            inputs_embeds=embeds,
            position_ids=torch.arange(start, start + embeds.shape[1], device=self.device).unsqueeze(0),
            attention_mask=self._causal(embeds.shape[1], start),
            past_key_values=flight.cache,
            use_cache=True,
            logits_to_keep=torch.tensor([last - 1 for last in lasts], device=self.device),
        ).logits
        which = torch.tensor([lasts.index(length) for length in lengths], device=self.device)
        logits = logits[torch.arange(len(items), device=self.device), which].float()
        forced = torch.tensor([item.length or 0 for item in items], device=self.device)
        numbers = None
        if self.decoding.do_sample:
            count = self.decoding.max_new_tokens
            numbers = torch.stack([uniforms(self.decoding.seed, item.name, count) for item in items]).to(self.device)
        prompts = torch.tensor([start + length for length in lengths], device=self.device)
        flight.put(target, rule.begin(logits, forced, numbers), prompts)
        for row, item, length in zip(rows, items, lengths, strict=True):
            slots.put(row, item, start + length)
