"""The decoding that travels in generation_config.json.

- What a run carries reads back, whichever fields have an effect; transformers saves and loads it.
- A field that the config sets keeps its value, the checkpoint's applies to the others, then the default; the line for
  the screen groups them by origin.
- A value out of range, and two values that contradict each other, are refused with the file's name.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from megpt.config import GenerateConfig
from megpt.errors import InputError
from megpt.model.checkpoint.decoding import GENERATION, RULES, carried, carry, completed, described


@st.composite
def settings_of(draw: st.DrawFn) -> GenerateConfig:
    sampled = draw(st.booleans())
    least = draw(st.integers(0, 50))
    return GenerateConfig(
        num_beams=1 if sampled else draw(st.integers(1, 4)),
        do_sample=sampled,
        repetition_penalty=draw(st.sampled_from([1.0, 1.5, 2.0])),
        length_penalty=draw(st.sampled_from([-1.0, 0.0, 2.0])),
        min_new_tokens=least,
        max_new_tokens=least + draw(st.integers(1, 50)),
        temperature=draw(st.sampled_from([0.7, 1.0])) if sampled else 1.0,
        top_p=draw(st.sampled_from([0.9, 1.0])) if sampled else 1.0,
    )


@given(settings_of())
def test_what_is_carried_reads_back(tmp_path_factory: pytest.TempPathFactory, generate: GenerateConfig) -> None:
    folder = tmp_path_factory.mktemp("carried")
    config = GenerationConfig(max_new_tokens=100, num_beams=7, temperature=0.1, eos_token_id=1)
    carry(config, generate)
    config.save_pretrained(folder)
    rules, origins = completed(GenerateConfig(), folder)
    idle = {*(["length_penalty"] if generate.num_beams == 1 else [])}
    for name in set(RULES) - idle:
        assert getattr(rules, name) == getattr(generate, name), name
        assert origins[name] == ("checkpoint" if name in carried(folder) else "default")
    assert GenerationConfig.from_pretrained(folder).num_beams == generate.num_beams


def test_origins(tmp_path: Path) -> None:
    (tmp_path / GENERATION).write_text(json.dumps({"num_beams": 4, "repetition_penalty": 1.5, "eos_token_id": 1}))
    generate = GenerateConfig(repetition_penalty=1.2)
    rules, origins = completed(generate, tmp_path)
    assert (rules.num_beams, rules.repetition_penalty, rules.min_new_tokens) == (4, 1.2, 40)
    assert described(rules, origins) == (
        "repetition_penalty=1.2 (config); num_beams=4 (checkpoint); "
        "length_penalty=2.0, min_new_tokens=40, max_new_tokens=100, do_sample=False (default)"
    )
    assert completed(GenerateConfig(), tmp_path / "none")[0] == GenerateConfig()


def test_values_that_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / GENERATION
    path.write_text(json.dumps({"num_beams": 0}))
    with pytest.raises(InputError, match=rf"^generate.num_beams: Input should .*\n  where: {path}: num_beams = 0\n"):
        completed(GenerateConfig(), tmp_path)
    path.write_text(json.dumps({"max_new_tokens": 20}))
    with pytest.raises(InputError, match=r"^min_new_tokens must not exceed max_new_tokens \(30 > 20\)\n  where: "):
        completed(GenerateConfig(min_new_tokens=30), tmp_path)
    path.write_text("[1")
    with pytest.raises(InputError, match="cannot be read"):
        carried(tmp_path)
