"""The rules alone, on scores that follow from the last token: quick enough to try many settings.

- greedy and beams, penalties below and above one, minimum lengths, one or two end tokens: the tokens that
  `transformers.generate` writes for the same scores, row by row
- rows that begin at different times get the tokens they get when they begin together; a row that is done keeps its
  tokens though it is computed further; every beam names the beam that it continues
- each token comes with its log-probability before any rule
- imposed lengths are those of `ForceLength`, and the end token is the last one
- sampling draws each token from the processed scores with the study's own number
- a search stops once the running beams can at most tie with the worst finished one
- a score that is not a number ends its row alone; states are moved, overwritten and cut without touching others
"""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from megpt.generation import Decoding
from megpt.generation.decoding import draw, uniforms
from megpt.generation.hf import ForceLength
from megpt.generation.rules import BeamRule, ForcedBeamRule, ForcedRule, Rule, State, make_rule

VOCABULARY, ROWS, WIDTH = 14, 12, 12
CPU = torch.device("cpu")


class Bigram(PreTrainedModel, GenerationMixin):
    """Scores of the next token by the last one; start tokens are never written."""

    config_class = PretrainedConfig
    main_input_name = "input_ids"

    def __init__(self, seed: int):
        super().__init__(PretrainedConfig(vocab_size=VOCABULARY + ROWS, is_encoder_decoder=False))
        table = torch.randn(VOCABULARY + ROWS, VOCABULARY + ROWS, generator=torch.Generator().manual_seed(seed)) * 1.5
        table[:, :2] += 0.4  # end tokens
        table[:, VOCABULARY:] = -1e8
        self.table = torch.nn.Parameter(table)

    def forward(self, input_ids, **_):
        return CausalLMOutput(logits=self.table[input_ids])

    def prepare_inputs_for_generation(self, input_ids, **_):
        return {"input_ids": input_ids}


STARTS = torch.arange(VOCABULARY, VOCABULARY + ROWS)


def reference(model, rules, end, lengths=None):
    """Tokens of each row by transformers."""
    config = GenerationConfig(
        num_beams=rules.num_beams,
        repetition_penalty=rules.repetition_penalty,
        length_penalty=rules.length_penalty,
        min_new_tokens=rules.min_new_tokens or None,
        max_new_tokens=rules.max_new_tokens,
        do_sample=False,
        eos_token_id=list(end),
        pad_token_id=VOCABULARY - 1,
        use_cache=False,
    )
    processors = [] if lengths is None else [ForceLength(lengths, end, rules.num_beams)]
    if lengths is not None:
        written = model.generate(
            STARTS[:, None], generation_config=config, logits_processor=LogitsProcessorList(_shifted(processors))
        )
    else:
        written = model.generate(STARTS[:, None], generation_config=config)
    rows = written[:, 1:].tolist()
    return [next((row[: n + 1] for n, token in enumerate(row) if token in end), row) for row in rows]


def _shifted(processors):
    """As if generation began with embeddings: without the start token in front."""
    return [lambda ids, scores, each=each: each(ids[:, 1:], scores) for each in processors]


def drive(rule, model, delays=None, lengths=None, numbers=None):
    """Tokens of each row; row n begins after `delays[n]` steps."""
    delays, lengths = delays or [0] * ROWS, lengths or [0] * ROWS
    table, state = model.table.detach(), State.empty(0, rule.beams, WIDTH, draws=rule.decoding.do_sample, device=CPU)
    rows, written = [], [None] * ROWS
    for step in range(100):
        if new := [n for n in range(ROWS) if delays[n] == step]:
            begun = rule.begin(
                table[STARTS[new]], torch.tensor([lengths[n] for n in new]), None if numbers is None else numbers[new]
            )
            state = State(
                **{f.name: torch.cat((getattr(state, f.name), getattr(begun, f.name))) for f in fields(State)}
            )
            rows += new
        done = state.done.tolist()
        for place, row in enumerate(rows):
            if done[place]:
                written[row], logprobs = rule.written(state, [place])[0]
                before = [int(STARTS[row]), *written[row][:-1]]
                torch.testing.assert_close(torch.tensor(logprobs), table.log_softmax(-1)[before, written[row]])
        kept = [place for place in range(len(rows)) if not done[place]]
        state = State(**{f.name: getattr(state, f.name)[kept] for f in fields(State)})
        rows = [rows[place] for place in kept]
        if rows:
            assert int(state.step.max()) < rule.decoding.max_new_tokens
            bounds, last, place = (int(state.step.min()), int(state.step.max())), state.last.clone(), state.step.clone()
            parent = rule.advance(state, table[state.last], bounds)
            if rule.beams > 1:  # each beam continues the one that is named
                assert torch.equal(state.tokens[torch.arange(len(rows)), :, place - 1], last.gather(1, parent))
        elif step >= max(delays):
            return written
    raise AssertionError("rows that never end")


SETTINGS = [
    {},
    {"repetition_penalty": 2.0, "min_new_tokens": 3},
    {"repetition_penalty": 0.6, "min_new_tokens": 1},
    {"num_beams": 2, "length_penalty": 0.0},
    {"num_beams": 3, "length_penalty": 2.0, "repetition_penalty": 2.0, "min_new_tokens": 4},
    {"num_beams": 3, "length_penalty": -1.0, "repetition_penalty": 0.7},
    {"num_beams": 4, "length_penalty": 1.0, "min_new_tokens": 2},
]


@pytest.mark.parametrize("end", [(1,), (1, 0)])
@pytest.mark.parametrize("most", [1, 5, 10])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_equal_to_generate(settings, most, end):
    settings = {**settings, "min_new_tokens": min(settings.get("min_new_tokens", 0), most)}
    rules = Decoding(max_new_tokens=most, **settings)
    for seed in range(3):
        model = Bigram(seed)
        assert drive(make_rule(rules, end, width=WIDTH, device=CPU), model) == reference(model, rules, end)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_rows_that_begin_later(settings):
    rule = make_rule(Decoding(max_new_tokens=8, **settings), (1,), width=WIDTH, device=CPU)
    for seed in range(3, 9):
        model = Bigram(seed)
        assert drive(rule, model, [n * 7 % 5 for n in range(ROWS)]) == drive(rule, model)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_rows_that_are_computed_further_when_they_are_done(settings):
    rule, model = make_rule(Decoding(max_new_tokens=6, **settings), (1,), width=WIDTH, device=CPU), Bigram(3)
    written = drive(rule, model)
    state = rule.begin(model.table.detach()[STARTS], torch.zeros(ROWS, dtype=torch.long), None)
    for _ in range(9):
        rule.advance(state, model.table.detach()[state.last], (int(state.step.min()), int(state.step.max())))
    assert state.done.all() and [row for row, _ in rule.written(state, list(range(ROWS)))] == written


@pytest.mark.parametrize("settings", SETTINGS[::2], ids=str)
@pytest.mark.parametrize("end", [(1,), (1, 0)])
def test_imposed_lengths(settings, end):
    rules, model = Decoding(max_new_tokens=10, **{**settings, "min_new_tokens": 0}), Bigram(4)
    lengths = [1 + n % 9 for n in range(ROWS)]
    rule = make_rule(rules, end, width=WIDTH, device=CPU, forced=True)
    written = drive(rule, model, lengths=lengths)
    assert [len(tokens) for tokens in written] == lengths and {tokens[-1] for tokens in written} == {end[0]}
    assert written == reference(model, rules, end, lengths)


@pytest.mark.parametrize(
    "forced, beams, kind", [(0, 1, Rule), (1, 1, ForcedRule), (0, 2, BeamRule), (1, 2, ForcedBeamRule)]
)
def test_which_rule(forced, beams, kind):
    assert type(make_rule(Decoding(num_beams=beams), (1,), width=4, device=CPU, forced=bool(forced))) is kind


def test_sampling():
    rules = Decoding(
        do_sample=True, temperature=0.7, top_p=0.8, max_new_tokens=9, repetition_penalty=1.5, min_new_tokens=2
    )
    model = Bigram(5)
    numbers = torch.stack([uniforms(3, f"study{n}", 9) for n in range(ROWS)])
    written = drive(make_rule(rules, (1,), width=WIDTH, device=CPU), model, numbers=numbers)
    expected = []
    for row in range(ROWS):
        tokens, last = [], int(STARTS[row])
        while len(tokens) < 9 and last != 1:
            scores = model.table.detach()[last].clone()
            for seen in set(tokens):
                scores[seen] *= 1.5 if scores[seen] < 0 else 1 / 1.5
            if len(tokens) < 2:
                scores[1] = -torch.inf
            last = int(draw(scores[None], numbers[row, len(tokens)][None], temperature=0.7, top_p=0.8))
            tokens.append(last)
        expected.append(tokens)
    assert written == expected and len({tuple(tokens) for tokens in written}) > 6


def test_a_search_stops_where_its_beams_can_only_tie():
    rule = make_rule(Decoding(num_beams=2, length_penalty=1.0, max_new_tokens=9), (1,), width=WIDTH, device=CPU)
    for running, stops in ((-4.0, True), (-3.5, False)):
        state = State.empty(1, 2, WIDTH, draws=False, device=CPU)
        state.step.fill_(1)
        state.best.copy_(torch.tensor([[-1.0, -2.0]]))
        state.finished.fill_(True)
        state.running[0, 0] = running
        logits = torch.full((1, 2, VOCABULARY), -torch.inf)
        logits[:, :, 5] = 0.0  # certain: a hope of -4 / 2 or -3.5 / 2 against the worst, -2
        rule.advance(state, logits, (1, 1))
        assert state.done.tolist() == [stops]


@pytest.mark.parametrize("beams", [1, 3])
def test_not_a_number_ends_its_row_alone(beams):
    rule = make_rule(Decoding(num_beams=beams, max_new_tokens=9, min_new_tokens=5), (1,), width=WIDTH, device=CPU)
    logits = torch.zeros(3, VOCABULARY)
    logits[1] = torch.nan
    state = rule.begin(logits, torch.zeros(3, dtype=torch.long), None)
    assert state.broken.tolist() == state.done.tolist() == [False, True, False]
    rule.advance(state, torch.zeros(3, beams, VOCABULARY), (1, 1))
    assert state.broken.tolist() == [False, True, False]


def test_states_are_moved_and_overwritten():
    state = State.empty(3, 2, 4, draws=True, device=CPU)
    other = State.empty(2, 2, 4, draws=True, device=CPU)
    for number, field in enumerate(fields(State)):
        getattr(other, field.name).fill_(number % 2)
        assert getattr(state, field.name).shape[0] == 3
    assert state.numbers.shape == (3, 4) and State.empty(1, 1, 4, draws=False, device=CPU).numbers.shape == (1, 0)
    before = State.empty(3, 2, 4, draws=True, device=CPU)
    state.put(torch.tensor([0, 2]), other)
    for field in fields(State):
        mine, theirs, old = (getattr(s, field.name) for s in (state, other, before))
        assert torch.equal(mine[0], theirs[0]) and torch.equal(mine[2], theirs[1]) and torch.equal(mine[1], old[1])
    state.move(1, 2)
    assert all(torch.equal(getattr(state, f.name)[2], getattr(before, f.name)[1]) for f in fields(State))
    view = state.first_rows(2)
    view.step.fill_(9)
    assert state.step.tolist() == [9, 9, 0]
