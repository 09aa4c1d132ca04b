"""How the next token is chosen: greedy, sampled, or by beam search, for all rows at once.

`transformers.generate` is followed to the letter, for texts must be equal: processors in its order (repetition
penalty, minimum length), scores of finished beams divided by length ** length_penalty, the rule by which a search
stops (`early_stopping=False`), and ties broken by the same `torch.topk` over rows of the same layout. What differs is
that each row has its own step, so that rows may begin and end at any time.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from megpt.generation.decoding import Decoding, draw

# What transformers uses for "not a candidate".
NEVER = -1.0e9


@dataclass
class State:
    """What is known of the rows in flight; every tensor's first dimension is the row. K beams, T tokens at most."""

    tokens: torch.Tensor
    """(R, K, T) long: generated tokens; behind `step` each row repeats its first token, so all of it is "seen"."""
    last: torch.Tensor
    """(R, K) long: the latest token."""
    step: torch.Tensor
    """(R,) long: tokens generated so far."""
    length: torch.Tensor
    """(R,) long: the token that must be the end token, 0 for none."""
    numbers: torch.Tensor
    """(R, T) float64: the study's own random numbers; (R, 0) when nothing is drawn."""
    logprobs: torch.Tensor
    """(R, K, T) float32: log-probability of each generated token under the model itself, before any rule."""
    done: torch.Tensor
    """(R,) bool."""
    broken: torch.Tensor
    """(R,) bool: a score was not a number."""
    running: torch.Tensor
    """(R, K) float32: summed log-probabilities of the running beams."""
    best: torch.Tensor
    """(R, K) float32: scores of the finished beams, best first."""
    best_tokens: torch.Tensor
    """(R, K, T) long: their tokens."""
    best_logprobs: torch.Tensor
    """(R, K, T) float32: what `logprobs` is to `tokens`."""
    finished: torch.Tensor
    """(R, K) bool: which of them exist."""
    improvable: torch.Tensor
    """(R, 1) bool: a running beam may still beat the worst finished one."""

    @classmethod
    def empty(cls, rows: int, beams: int, width: int, *, draws: bool, device: torch.device) -> State:
        def full(shape: tuple[int, ...], value: float | bool, dtype: torch.dtype) -> torch.Tensor:
            return torch.full(shape, value, dtype=dtype, device=device)

        state = cls(
            tokens=full((rows, beams, width), 0, torch.long),
            last=full((rows, beams), 0, torch.long),
            step=full((rows,), 0, torch.long),
            length=full((rows,), 0, torch.long),
            numbers=full((rows, width if draws else 0), 0, torch.float64),
            logprobs=full((rows, beams, width), 0.0, torch.float32),
            done=full((rows,), False, torch.bool),
            broken=full((rows,), False, torch.bool),
            running=full((rows, beams), NEVER, torch.float32),
            best=full((rows, beams), NEVER, torch.float32),
            best_tokens=full((rows, beams, width), 0, torch.long),
            best_logprobs=full((rows, beams, width), 0.0, torch.float32),
            finished=full((rows, beams), False, torch.bool),
            improvable=full((rows, 1), True, torch.bool),
        )
        state.running[:, 0] = 0.0  # the beams begin as one: only the first may be continued
        return state

    def first_rows(self, count: int) -> State:
        """A view of rows 0 … count: writing to it writes here."""
        return State(**{f.name: getattr(self, f.name)[:count] for f in fields(self)})

    def put(self, rows: torch.Tensor, other: State) -> None:
        """Overwrite `rows` (n,) with those of `other`."""
        for f in fields(self):
            getattr(self, f.name)[rows] = getattr(other, f.name)

    def move(self, source: int, target: int) -> None:
        for f in fields(self):
            getattr(self, f.name)[target] = getattr(self, f.name)[source]


class Rule:
    """Greedy search and sampling; `BeamRule` for beams.

    Args:
        end: ids of the end tokens.
        width: columns for tokens.
    """

    beams = 1

    def __init__(self, decoding: Decoding, end: tuple[int, ...], width: int, device: torch.device):
        self.decoding, self.width, self.device = decoding, width, device
        self.end = end
        self._ends = torch.tensor(end, device=device)

    def begin(self, logits: torch.Tensor, length: torch.Tensor, numbers: torch.Tensor | None) -> State:
        """The state of new rows (n) after their first token, from the scores behind their prompts (n, V)."""
        state = State.empty(len(logits), self.beams, self.width, draws=self.decoding.do_sample, device=self.device)
        state.length.copy_(length)
        if numbers is not None:
            state.numbers[:, : numbers.shape[1]] = numbers
        self.advance(state, logits.unsqueeze(1).expand(-1, self.beams, -1), steps=(0, 0))
        state.tokens.copy_(state.tokens[:, :, :1].expand_as(state.tokens))
        return state

    def advance(self, state: State, logits: torch.Tensor, steps: tuple[int, int]) -> torch.Tensor | None:
        """One token more for every row, in place.

        Args:
            logits: (R, K, V).
            steps: bounds of `state.step` in the rows that matter, known to the caller without asking the device.

        Returns:
            For beams, the beam (R, K) that each one continues; else None.
        """
        likely = logits[:, 0].float().log_softmax(-1)
        scores = self._process(state, logits.float(), steps)[:, 0]
        if self.decoding.do_sample:
            number = state.numbers.gather(1, state.step.unsqueeze(1)).squeeze(1)
            token = draw(scores, number, temperature=self.decoding.temperature, top_p=self.decoding.top_p)
        else:
            token = scores.argmax(-1)
        state.broken |= scores.gather(1, token.unsqueeze(1)).squeeze(1).isnan()
        place = state.step.view(-1, 1, 1)
        state.tokens.scatter_(2, place, token.view(-1, 1, 1))
        state.logprobs.scatter_(2, place, likely.gather(1, token.unsqueeze(1)).unsqueeze(1))
        state.last.copy_(token.unsqueeze(1))
        state.step += 1
        state.done |= self._is_end(token) | (state.step >= self.decoding.max_new_tokens) | state.broken
        return None

    def _is_end(self, token: torch.Tensor) -> torch.Tensor:
        """Which of `token` are end tokens. (`torch.isin` may look at its values.)"""
        return (token.unsqueeze(-1) == self._ends).any(-1)

    def _process(self, state: State, scores: torch.Tensor, steps: tuple[int, int]) -> torch.Tensor:
        """Scores (R, K, V) after repetition penalty and length rules; may overwrite them."""
        rules = self.decoding
        earliest, latest = steps
        if not latest:
            scores = scores.clone()  # the first scores are one row expanded over the beams
        elif rules.repetition_penalty != 1.0:
            seen = state.tokens[:, :, :latest]
            score = scores.gather(2, seen)
            score = torch.where(score < 0, score * rules.repetition_penalty, score / rules.repetition_penalty)
            scores.scatter_(2, seen, score)
        if earliest < rules.min_new_tokens:
            early = (state.step < rules.min_new_tokens).unsqueeze(1)
            self._fill_ends(scores, early, -torch.inf)
        return scores

    def _fill_ends(self, scores: torch.Tensor, where: torch.Tensor, value: float) -> None:
        scores[:, :, self._ends] = scores[:, :, self._ends].masked_fill(where.unsqueeze(2), value)

    def force(self, state: State, scores: torch.Tensor) -> torch.Tensor:
        """Scores with the end token at exactly `state.length`, as `megpt.generation.hf.ForceLength` has it."""
        left = (state.length - state.step).unsqueeze(1)
        self._fill_ends(scores, left > 1, -torch.inf)
        kept = scores[:, :, self.end[0]].clone()
        scores.masked_fill_((left == 1).unsqueeze(2), -torch.inf)
        scores[:, :, self.end[0]] = kept
        return scores

    def written(self, state: State, rows: list[int]) -> list[tuple[list[int], list[float]]]:
        """The tokens of rows that are done, up to their end token, and their log-probabilities."""
        tokens, logprobs = self._best(state)
        # One transfer from the device: float64 holds both.
        both = torch.stack((tokens[rows, 0].double(), logprobs[rows, 0].double())).tolist()
        cut = [self.cut([int(token) for token in row]) for row in both[0]]
        return [(row, likely[: len(row)]) for row, likely in zip(cut, both[1], strict=True)]

    def _best(self, state: State) -> tuple[torch.Tensor, torch.Tensor]:
        return state.tokens, state.logprobs

    def cut(self, tokens: list[int]) -> list[int]:
        tokens = tokens[: self.decoding.max_new_tokens]
        return next((tokens[: n + 1] for n, token in enumerate(tokens) if token in self.end), tokens)


class ForcedRule(Rule):
    """Greedy with imposed lengths."""

    def _process(self, state: State, scores: torch.Tensor, steps: tuple[int, int]) -> torch.Tensor:
        return self.force(state, super()._process(state, scores, steps))


class BeamRule(Rule):
    """Beam search as transformers' `_beam_search`, a step for each row."""

    def __init__(self, decoding: Decoding, end: tuple[int, ...], width: int, device: torch.device):
        super().__init__(decoding, end, width, device)
        self.beams = decoding.num_beams
        # As many as could end at once plus a full set, so that the search can always continue.
        self.candidates = max(2, 1 + len(end)) * self.beams
        self.is_top = torch.arange(self.candidates, device=device) < self.beams

    def advance(self, state: State, logits: torch.Tensor, steps: tuple[int, int]) -> torch.Tensor:
        rows, beams, vocabulary = logits.shape
        likely = logits.float().log_softmax(-1)
        scores = self._process(state, likely.clone(), steps)
        scores += state.running.unsqueeze(-1)
        top, index = scores.view(rows, -1).topk(self.candidates)
        parent = torch.div(index, vocabulary, rounding_mode="floor")
        token = index - parent * vocabulary
        sequences = state.tokens.gather(1, parent.unsqueeze(-1).expand(-1, -1, self.width))
        place = state.step.view(-1, 1, 1).expand(-1, self.candidates, 1)
        sequences.scatter_(2, place, token.unsqueeze(-1))
        logprobs = state.logprobs.gather(1, parent.unsqueeze(-1).expand(-1, -1, self.width))
        logprobs.scatter_(2, place, likely.view(rows, -1).gather(1, index).unsqueeze(-1))
        state.step += 1
        ended = self._is_end(token) | (state.step >= self.decoding.max_new_tokens).unsqueeze(1)

        going = top + ended * NEVER
        chosen = going.topk(beams)[1]
        state.running.copy_(going.gather(1, chosen))
        state.last.copy_(token.gather(1, chosen))
        kept = chosen.unsqueeze(-1).expand(-1, -1, self.width)
        state.tokens.copy_(sequences.gather(1, kept))
        state.logprobs.copy_(logprobs.gather(1, kept))
        self._keep_finished(state, top, (sequences, logprobs), ended)

        worst = torch.where(state.finished, state.best.min(1, keepdim=True)[0], NEVER)
        hope = state.running[:, :1] / self._norm(state.step)
        state.improvable &= (hope > worst).any(1, keepdim=True)
        state.broken |= top.isnan().any(1)
        state.done.copy_(~state.improvable.squeeze(1) | ended.all(1) | state.broken)
        return parent.gather(1, chosen)

    def _norm(self, length: torch.Tensor) -> torch.Tensor:
        """length ** length_penalty (R, 1), rounded to float32 as a Python number is before it divides a tensor."""
        return (length.double() ** self.decoding.length_penalty).float().unsqueeze(1)

    def _keep_finished(
        self, state: State, top: torch.Tensor, written: tuple[torch.Tensor, torch.Tensor], ended: torch.Tensor
    ) -> None:
        """Merge the candidates that just ended, with the tokens and log-probabilities written, into the finished."""
        just_ended = ended & self.is_top
        # Three additions and not one, as transformers has it: float32 keeps less of a score at each.
        score = top / self._norm(state.step)
        score = score + ~state.improvable * NEVER
        score = score + ~just_ended * NEVER
        merged = torch.cat((state.best, score), dim=1)
        chosen = merged.topk(self.beams)[1]
        state.best.copy_(merged.gather(1, chosen))
        kept = chosen.unsqueeze(-1).expand(-1, -1, self.width)
        for best, new in zip((state.best_tokens, state.best_logprobs), written, strict=True):
            best.copy_(torch.cat((best, new), dim=1).gather(1, kept))
        state.finished.copy_(torch.cat((state.finished, just_ended), dim=1).gather(1, chosen))

    def _best(self, state: State) -> tuple[torch.Tensor, torch.Tensor]:
        return state.best_tokens, state.best_logprobs


class ForcedBeamRule(BeamRule):
    """Beams with imposed lengths."""

    def _process(self, state: State, scores: torch.Tensor, steps: tuple[int, int]) -> torch.Tensor:
        return self.force(state, super()._process(state, scores, steps))


def make_rule(
    decoding: Decoding, end: tuple[int, ...], *, width: int, device: torch.device, forced: bool = False
) -> Rule:
    """The rule for these settings; `forced` when items bring a `length`."""
    if decoding.num_beams > 1:
        return (ForcedBeamRule if forced else BeamRule)(decoding, end, width, device)
    return (ForcedRule if forced else Rule)(decoding, end, width, device)
