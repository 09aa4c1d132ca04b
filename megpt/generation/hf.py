"""The reference backend: batches of studies through `transformers.generate`, everyone waiting for the longest.

It repeats the prompt for every beam and every study and pads the finished ones, which is what the engine does not.
Its texts are what the engine's are held to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

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
        likely = TokenLogprobs(len(batch), self.end)
        output = self.language_model.generate(
            inputs_embeds=embeds,
            attention_mask=mask,
            generation_config=self.settings(),
            logits_processor=self._processors(batch, likely),
        )
        rows = [self._cut(row) for row in output.tolist()]
        return [
            EngineResult(item.key, tokens, "stop" if tokens[-1] in self.end else "length", logprobs=logprobs)
            for item, tokens, logprobs in zip(batch, rows, likely.of(rows), strict=True)
        ]

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
            min_new_tokens=0,  # as above
            max_new_tokens=rules.max_new_tokens,
            eos_token_id=list(self.end),
            pad_token_id=self.end[0],
            bos_token_id=self.end[0],
        )

    def _processors(self, batch: list[EngineItem], likely: TokenLogprobs) -> LogitsProcessorList:
        # `generate` makes that of the repetition penalty itself, but then skips as many *generated* tokens of a row as
        # the row has left padding: with embeddings as input there are no prompt ids that the padding could stand for.
        rules, processors = self.decoding, penalties(self.decoding, likely, self.end, prompt=0, device=self.device)
        if any(item.length for item in batch):
            processors.append(ForceLength([item.length for item in batch], self.end, rules.num_beams))
        if rules.do_sample:
            processors.append(DrawTokens(batch, rules))
        return processors

    def _cut(self, row: list[int]) -> tuple[int, ...]:
        """A row up to its end token."""
        return tuple(row[: next((n + 1 for n, token in enumerate(row) if token in self.end), None)])


def _failed(item: EngineItem, error: str) -> list[EngineResult]:
    return [EngineResult(item.key, (), "error", error)]


def penalties(
    rules: Decoding, likely: TokenLogprobs, end: Sequence[int], *, prompt: int, device: torch.device
) -> LogitsProcessorList:
    """The rules that transformers would apply by itself, before any processor that it is given could see the scores."""
    processors = LogitsProcessorList([likely, RefuseNaN()])
    if rules.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(penalty=float(rules.repetition_penalty)))
    if rules.min_new_tokens:
        processors.append(MinNewTokensLengthLogitsProcessor(prompt, rules.min_new_tokens, list(end), str(device)))
    return processors


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


class TokenLogprobs(LogitsProcessor):
    """Notes the log-probability of each token under the model itself, as the first of the processors that sees it.

    `generate` can keep the scores of all steps instead, which for a batch of beams are gigabytes. Here only those of
    the latest step are kept: which tokens were taken, and from which beam, shows in the next call's ids. A beam that
    ended is no longer there, so the end tokens' are kept of every step.

    Args:
        rows: studies in the batch.
    """

    def __init__(self, rows: int, end: Sequence[int]):
        self.rows, self.end = rows, tuple(end)
        self.prompt: int | None = None
        """Ids before the first new token: none where the prompt is given as embeddings."""
        self._latest: torch.Tensor | None = None
        self._steps: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        """Of each step: ids (B, K, t) written before it, their log-probabilities, and those of the end tokens next."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.prompt = input_ids.shape[1] if self.prompt is None else self.prompt
        ids = input_ids[:, self.prompt :].unflatten(0, (self.rows, -1))
        likely = scores.float().log_softmax(-1).unflatten(0, (self.rows, -1))
        values = ids.new_zeros(ids.shape, dtype=torch.float32)
        if self._latest is not None:
            before, old, _ = self._steps[-1]
            same = (ids[:, :, None, :-1] == before[:, None]).all(-1)  # (B, K, K): which beam each one continues
            parent = same.int().argmax(-1)
            values[:, :, :-1] = old.gather(1, parent.unsqueeze(-1).expand(-1, -1, old.shape[-1]))
            token = parent * likely.shape[-1] + ids[:, :, -1]
            values[:, :, -1] = self._latest.flatten(1).gather(1, token)
        self._latest = likely
        self._steps.append((ids, values, likely[:, :, list(self.end)]))
        return scores

    def of(self, written: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        """The log-probabilities of the rows that `generate` returned, cut behind their end token."""
        return [self._of(number, tokens) for number, tokens in enumerate(written)]

    def _of(self, number: int, tokens: Sequence[int]) -> tuple[float, ...]:
        assert self._latest is not None
        ids, values, ends = (tensor[number] for tensor in self._steps[len(tokens) - 1])
        before = torch.tensor(list(tokens[:-1]), dtype=torch.long, device=ids.device)
        beam = int((ids == before).all(-1).int().argmax())
        last = (
            ends[beam, self.end.index(tokens[-1])] if tokens[-1] in self.end else self._latest[number, beam, tokens[-1]]
        )
        return (*values[beam].tolist(), float(last))


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
