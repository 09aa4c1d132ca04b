"""Reports for requests that come at any time.

- each text is the one that the same films get in a batch: whatever else is in flight, greedy, with beams and sampled
- drafts grow to the report; a request without drafts gets none
- after a burst, steps compute the rows that are in use and no others
- films on which the encoder fails, and a prompt that exceeds the context, cost their own request only
- an error of the model is answered, and the next request is written
- a request that nobody waits for is not begun; `close` waits for what is in flight
- the reference backend writes the same reports
"""

from __future__ import annotations

import queue
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from megpt.config import GenerateConfig
from megpt.generation import ReportWriter
from megpt.generation.live import Draft, LiveWriter
from megpt.generation.writer import Prediction
from megpt.study import Study


def films(number: int, side: int = 64) -> list[Image.Image]:
    rng = np.random.default_rng(number)
    return [Image.fromarray(rng.integers(0, 255, (side, side), np.uint8)) for _ in range(1 + number % 3)]


def make_writer(checkpoint: Path, **rules: Any) -> ReportWriter:
    settings = {"slots": 8, "num_beams": 1, "min_new_tokens": 2, "max_new_tokens": 30} | rules
    return ReportWriter(checkpoint, GenerateConfig(**settings), seed=5)


def waited(told: queue.Queue[Any]) -> tuple[list[Draft], Prediction]:
    drafts = []
    while isinstance(event := told.get(timeout=60), Draft):
        drafts.append(event)
    return drafts, event


def ask(live: LiveWriter, number: int, pictures: list[Any] | None = None, **options: Any) -> queue.Queue[Any]:
    told: queue.Queue[Any] = queue.Queue()
    live.submit(Study(f"s{number}"), films(number) if pictures is None else pictures, told.put, **options)
    return told


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"num_beams": 3},
        {"do_sample": True, "top_p": 0.9},
        {"backend": "hf", "num_beams": 2},
    ],
    ids=["greedy", "beams", "sampled", "hf"],
)
def test_the_texts_of_a_batch(tiny_checkpoint: Path, rules: dict[str, Any]) -> None:
    writer = make_writer(tiny_checkpoint, **rules)
    batch = {p.study.study_id: p for p in writer.write((Study(f"s{n}"), films(n)) for n in range(20))}
    live, pause = LiveWriter(writer), random.Random(0)
    # each study twice, in flight at once: sampling depends on the study, not on the request
    asked = []
    for number in [*range(20), *range(20)]:
        asked.append((number, ask(live, number)))
        time.sleep(pause.choice((0, 0, 0.002, 0.02)))
    for number, told in asked:
        found, expected = waited(told)[1], batch[f"s{number}"]
        assert found == expected and found.logprob == pytest.approx(expected.logprob, abs=1e-4)
    live.close()
    assert not live.alive and not live.in_flight


def test_drafts(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megpt.generation.live.DRAFT_EVERY_S", 0.0)
    live = LiveWriter(make_writer(tiny_checkpoint, min_new_tokens=20))
    alone, quiet = ask(live, 1), ask(live, 2, drafts=False)
    drafts, prediction = waited(alone)
    assert len(drafts) >= 15 and {draft.prompt_id for draft in drafts} == {prediction.prompt_id}
    assert [len(draft.text) for draft in drafts] == sorted(len(draft.text) for draft in drafts)
    whole = str(prediction.report).rstrip("�")
    assert all(whole.startswith(draft.text.rstrip("�")) for draft in drafts if "�" not in draft.text)
    assert waited(quiet)[0] == []
    live.close()


def test_a_burst_leaves_no_rows_behind(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = make_writer(tiny_checkpoint, min_new_tokens=25)
    computed: list[int] = []
    from megpt.generation.step import DecodeStep

    compute = DecodeStep.compute
    monkeypatch.setattr(
        DecodeStep, "compute", lambda self, rows, *rest: (computed.append(rows), compute(self, rows, *rest))[1]
    )
    live = LiveWriter(writer)
    for told in [ask(live, number) for number in range(8)]:
        waited(told)
    most = max(computed)
    computed.clear()
    waited(ask(live, 9))
    assert most > 1 and set(computed) == {1}
    live.close()


def test_a_failure_costs_its_own_request(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = LiveWriter(make_writer(tiny_checkpoint))
    broken = [Image.fromarray(np.full((64, 64), np.nan, np.float32))]
    asked = [ask(live, n, broken if n == 3 else None) for n in range(6)]
    errors = [waited(told)[1].error for told in asked]
    assert errors == [None, None, None, "the model failed (InputError)", None, None]

    engine: Any = live.writer.backend
    monkeypatch.setattr(engine.config, "max_position_embeddings", 60)
    assert "exceed the language model's context of 60" in str(waited(ask(live, 1))[1].error)
    monkeypatch.undo()
    assert waited(ask(live, 1))[1].error is None

    def fail(*unused: Any) -> None:
        raise RuntimeError("a message that quotes a report")

    monkeypatch.setattr("megpt.generation.live.LiveLoop._admit", fail)
    assert waited(ask(live, 1))[1].error == "the model failed (RuntimeError)"
    monkeypatch.undo()
    assert waited(ask(live, 1))[1].error is None
    live.close()


def test_nobody_waits(tiny_checkpoint: Path) -> None:
    live = LiveWriter(make_writer(tiny_checkpoint, slots=1, min_new_tokens=25))
    first = ask(live, 0)
    told: list[Any] = []
    live.submit(Study("s1"), films(1), told.append).cancelled = True
    live.close()
    assert waited(first)[1].report is not None and told == []
