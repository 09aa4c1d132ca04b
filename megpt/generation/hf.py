"""The reference backend: batches of studies through `transformers.generate`, everyone waiting for the longest.

It repeats the prompt for every beam and every study and pads the finished ones, which is what the engine does not.
Its texts are what the engine's are held to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from megpt.generation.decoding import (
    Decoding,
    EngineItem,
    EngineResult,
    PromptedModel,
    draw,
    end_tokens,
    uniforms,
)
from megpt.generation.faults import halve_until_alone


class HFBackend:
    """Plain batched `generate`.

    Args:
        model: gives `language_model` and `prompt_ids()`.
        batch_size: studies in one call.
    """

    def __init__(self, model: PromptedModel, decoding: Decoding, *, batch_size: int = 32):
        self.language_model, self.decoding, self.batch_size = model.language_model, decoding, batch_size
        self.end = end_tokens(self.language_model)
        embed = self.language_model.get_input_embeddings()
        prefix, suffixes = model.prompt_ids()
        device = embed.weight.device
        with torch.no_grad():
            self.prefix = embed(torch.as_tensor(prefix, dtype=torch.long, device=device))
            self.embed, self.device = embed, device
            self.suffixes = [embed(torch.as_tensor(ids, dtype=torch.long, device=device)) for ids in suffixes]

    def run(self, items: Iterable[EngineItem]) -> Iterator[EngineResult]:
        """The reports of `items`, batch by batch, in their order."""
        stream = iter(items)
        while batch := list(islice(stream, self.batch_size)):
            yield from halve_until_alone(self._generate, batch, _failed)

    @torch.no_grad()
    def _generate(self, batch: list[EngineItem]) -> list[EngineResult]:
        embeds, mask = self.assemble(batch)
        output = self.language_model.generate(
            inputs_embeds=embeds,
            attention_mask=mask,
            generation_config=self.settings(),
            logits_processor=self._processors(batch),
        )
        return [self._result(item, row) for item, row in zip(batch, output.tolist(), strict=True)]

    def assemble(self, batch: list[EngineItem]) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompt embeddings (B, T, H), padded on the left, and their mask (B, T)."""
        rows = [torch.cat([self.prefix, item.tokens.to(self.prefix), self._suffix(item)]) for item in batch]
        longest = max(len(row) for row in rows)
        embeds = self.prefix.new_zeros(len(rows), longest, self.prefix.shape[-1])
        mask = torch.zeros(len(rows), longest, dtype=torch.long, device=embeds.device)
        for number, row in enumerate(rows):
            embeds[number, longest - len(row) :] = row
            mask[number, longest - len(row) :] = 1
        return embeds, mask

    def _suffix(self, item: EngineItem) -> torch.Tensor:
        """Embeddings (S, H) of what follows the visual tokens."""
        if item.suffix is None:
            return self.suffixes[item.prompt_id]
        embedded: torch.Tensor = self.embed(torch.as_tensor(item.suffix, dtype=torch.long, device=self.device))
        return embedded

    def settings(self) -> GenerationConfig:
        """The decoding rules, as `generate` takes them."""
        rules = self.decoding
        return GenerationConfig(
            num_beams=rules.num_beams,
            do_sample=False,  # sampling is done by a processor that leaves one token, see DrawTokens
            # Given even where they are the defaults, so that a checkpoint's own generation_config has no say.
            early_stopping=False,
            repetition_penalty=1.0,  # a processor of its own, see _processors
            length_penalty=rules.length_penalty,
            min_new_tokens=rules.min_new_tokens,
            max_new_tokens=rules.max_new_tokens,
            eos_token_id=list(self.end),
            pad_token_id=self.end[0],
            bos_token_id=self.end[0],
        )

    def _processors(self, batch: list[EngineItem]) -> LogitsProcessorList:
        rules, processors = self.decoding, LogitsProcessorList([RefuseNaN()])
        if rules.repetition_penalty != 1.0:
            # `generate` makes this one itself, but then skips as many *generated* tokens of a row as the row has
            # left padding: with embeddings as input there are no prompt ids that the padding could stand for.
            processors.append(RepetitionPenaltyLogitsProcessor(penalty=float(rules.repetition_penalty)))
        if any(item.length for item in batch):
            processors.append(ForceLength([item.length for item in batch], self.end, rules.num_beams))
        if rules.do_sample:
            processors.append(DrawTokens(batch, rules))
        return processors

    def _result(self, item: EngineItem, row: list[int]) -> EngineResult:
        stop = next((n for n, token in enumerate(row) if token in self.end), None)
        if stop is None:
            return EngineResult(item.key, tuple(row), "length")
        return EngineResult(item.key, tuple(row[: stop + 1]), "stop")


def _failed(item: EngineItem, error: str) -> list[EngineResult]:
    return [EngineResult(item.key, (), "error", error)]


class ForceLength(LogitsProcessor):
    """Makes the end token the n-th of each study, so that two ways of decoding can be timed at the same lengths."""

    def __init__(self, lengths: list[int | None], end: tuple[int, ...], num_beams: int):
        self.lengths = torch.tensor([n or 0 for n in lengths]).repeat_interleave(num_beams)
        self.end = end

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] + 1
        lengths = self.lengths.to(scores.device)
        scores = scores.clone()
        scores[(lengths > step).nonzero(), torch.tensor(self.end)] = -torch.inf
        ended = lengths == step
        kept = scores[ended, self.end[0]]
        scores[ended] = -torch.inf
        scores[ended, self.end[0]] = kept
        return scores


class RefuseNaN(LogitsProcessor):
    """Ends the call for a batch with a study whose scores are not numbers; the caller then finds out which."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if scores[:, 0].isnan().any():
            raise FloatingPointError
        return scores


class DrawTokens(LogitsProcessor):
    """Leaves the one token that this study's own random numbers pick, so that greedy search takes it."""

    def __init__(self, batch: list[EngineItem], rules: Decoding):
        self.rules = rules
        self.numbers = torch.stack([uniforms(rules.seed, item.name, rules.max_new_tokens) for item in batch])
        self.prompt: int | None = None
        """Ids before the first new token: none where the prompt is given as embeddings."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.prompt = input_ids.shape[1] if self.prompt is None else self.prompt
        number = self.numbers[:, input_ids.shape[1] - self.prompt].to(scores.device)
        token = draw(scores, number, temperature=self.rules.temperature, top_p=self.rules.top_p)
        return torch.full_like(scores, -torch.inf).scatter_(1, token.unsqueeze(1), 0.0)
