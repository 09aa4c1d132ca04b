"""The ceiling that benchmarks and docs quote, by hand for numbers that are easy.

- few studies in flight wait for the weights to be read, many for the arithmetic; prompts are arithmetic alone
- more slots never lower it; beams do; memory is that of weights and of all keys and values
"""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from megpt.training.meter import PEAK_FLOPS

roofline = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "roofline.py")))
SHAPE = roofline.Shape(parameters=1e9, layers=10, key_value_width=1000)


def test_by_hand() -> None:
    assert SHAPE.token_bytes == 2 * 2 * 10 * 1000
    found = roofline.ceiling(SHAPE, "H200", slots=1, tokens=100, prompt=50)
    read = 2e9 + (6 + 50 + 50) * SHAPE.token_bytes
    seconds = 50 * 2e9 / 989e12 + 100 * read / 4.8e12
    assert found["reports_per_second"] == pytest.approx(1 / seconds, abs=0.1) and found["memory_bound"]
    assert found["gigabytes"] == pytest.approx((2e9 + (6 + 50 + 100) * SHAPE.token_bytes) / 1e9, abs=0.1)
    lean = roofline.Shape(parameters=1e9, layers=1, key_value_width=1)
    found = roofline.ceiling(lean, "H200", slots=4096, beams=2, tokens=100, prompt=50)
    assert not found["memory_bound"]
    assert found["reports_per_second"] == pytest.approx(989e12 / (2e9 * (50 + 2 * 100)), abs=0.1)


def test_what_changes_it() -> None:
    rates = [roofline.ceiling(SHAPE, "L4", slots=slots)["reports_per_second"] for slots in (1, 8, 64, 512)]
    assert rates == sorted(rates) and rates[0] < rates[-1]
    greedy, beams = (roofline.ceiling(SHAPE, "L4", slots=64, beams=n) for n in (1, 3))
    assert greedy["reports_per_second"] > beams["reports_per_second"] and greedy["gigabytes"] < beams["gigabytes"]
    assert roofline.ceiling(roofline.MODELS["13b"], "L4", slots=1)["fits"] == 0
    assert set(roofline.MEMORY) <= set(PEAK_FLOPS)


def test_what_the_docs_say() -> None:
    text = " ".join((Path(__file__).parents[1] / "docs" / "generation.md").read_text(encoding="utf-8").split())
    model = roofline.MODELS["7b"]
    rates = [
        round(roofline.ceiling(model, "H200", **how)["reports_per_second"])
        for how in ({"slots": 256}, {"slots": 256, "beams": 3}, {"slots": 32})
    ]
    assert (
        "{} reports per second with a 7 B model in bf16 and 256 slots, {} with three beams, and {} with 32".format(
            *rates
        )
        in text
    )
