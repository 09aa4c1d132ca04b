"""Films in, reports out.

- each study gives one prediction; unreadable films, and films on which the encoder fails, cost only their own study
- a batch is halved until the failing item is alone; order and results of the others stay
- a prediction's row has the study's reference and the films that were used
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from megpt.config import GenerateConfig
from megpt.films.decode import UnreadableFilm
from megpt.generation import ReportWriter
from megpt.generation.faults import halve_until_alone
from megpt.generation.writer import Prediction, failed
from megpt.study import Study, View


@given(st.lists(st.booleans(), max_size=20))
def test_a_batch_is_halved_until_the_failing_item_is_alone(broken: list[bool]) -> None:
    calls = []

    def work(items: list[int]) -> list[str]:
        calls.append(len(items))
        if any(broken[item] for item in items):
            raise ValueError("a message that quotes a report")
        return [f"{item} done" for item in items]

    found = halve_until_alone(work, range(len(broken)), lambda item, reason: [f"{item} {reason}"])
    assert found == [f"{n} the model failed (ValueError)" if bad else f"{n} done" for n, bad in enumerate(broken)]
    assert not any(broken) or max(calls) == len(broken)
    if not any(broken):
        assert calls == [len(broken)]


@pytest.mark.slow
def test_a_film_that_the_encoder_refuses(tiny_checkpoint: Path) -> None:
    settings = GenerateConfig(slots=4, num_beams=1, min_new_tokens=2, max_new_tokens=4)
    writer = ReportWriter(tiny_checkpoint, settings, seed=0)
    side = writer.processor.image_size
    rng = np.random.default_rng(0)

    def film(number: int) -> list:
        if number == 2:
            return UnreadableFilm("empty file")
        if number == 5:
            return [Image.fromarray(np.full((side, side), np.nan, np.float32))]
        return [Image.fromarray(rng.integers(0, 255, (side, side), np.uint8))]

    studies = [(Study(f"s{n}"), film(n)) for n in range(10)]
    found = {prediction.study.study_id: prediction for prediction in writer.write(studies)}
    assert sorted(found) == [f"s{n}" for n in range(10)]
    errors = {name: prediction.error for name, prediction in found.items() if prediction.error}
    assert errors == {"s2": "empty file", "s5": "the model failed (InputError)"}
    readable = [pair for pair in studies if pair[0].study_id not in errors]
    assert {p.study.study_id: p.report for p in writer.write(readable)} == {
        name: prediction.report for name, prediction in found.items() if not prediction.error
    }


def test_the_row_of_a_prediction() -> None:
    study = Study("s", "p", (View("a"), View("b")), report="All.", findings="Some.")
    row = Prediction(study, "Text.", 2, 3, "stop").to_row(model="mark", section="findings", max_views=1)
    assert row == {
        "study_id": "s",
        "subject_id": "p",
        "image_ids": ["a"],
        "report": "Text.",
        "reference": "Some.",
        "prompt_id": 2,
        "num_tokens": 3,
        "finish_reason": "stop",
        "error": None,
        "model": "mark",
        "logprob": None,
        "sentence_logprobs": None,
        "novelty": None,
    }
    row = failed(study, "broken", 1).to_row(model="mark")
    assert (row["report"], row["reference"], row["image_ids"]) == (None, "All.", ["a", "b"])
    assert (row["prompt_id"], row["num_tokens"], row["finish_reason"], row["error"]) == (1, 0, "error", "broken")
