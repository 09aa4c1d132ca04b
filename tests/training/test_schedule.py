"""When things happen.

- warm-up is linear, the cosine ends at min_lr at the last step and stays there; the shortest runs have a rate too
- max_steps takes precedence over epochs; a fraction of an epoch is rounded up, a whole number of epochs is not
- a checkpoint is due every N steps, at the end, and before each validation; validation by steps or by fractions
"""

from __future__ import annotations

import math

import pytest

from megpt.config import TrainConfig
from megpt.training.schedule import Schedule


def test_learning_rate():
    schedule = Schedule.of(TrainConfig(max_steps=11, lr=1.0, min_lr=0.1, warmup_steps=2), 5)
    rates = [schedule.learning_rate(step) for step in range(11)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[10] == pytest.approx(0.1) and rates[6] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2)
    assert rates[2:] == sorted(rates[2:], reverse=True)


def rates(**settings):
    schedule = Schedule.of(TrainConfig(**settings), 5)
    return [schedule.learning_rate(step) for step in range(schedule.total_steps + 2)]


def test_the_rates_of_short_runs():
    assert rates(max_steps=3, lr=1.0, min_lr=0.2) == pytest.approx([1.0, 0.6, 0.2, 0.2, 0.2])
    assert rates(max_steps=2, lr=1.0, min_lr=0.2) == pytest.approx([1.0, 0.2, 0.2, 0.2])
    assert rates(max_steps=1, lr=1.0, min_lr=0.2) == pytest.approx([1.0, 0.2, 0.2])
    assert rates(max_steps=2, lr=1.0, min_lr=0.2, warmup_steps=4) == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates(max_steps=4, lr=1.0, min_lr=0.2, warmup_steps=1) == pytest.approx([1.0, 1.0, 0.6, 0.2, 0.2, 0.2])
    assert rates(max_steps=2, lr=1e-7, min_lr=1e-6) == [1e-7] * 4  # never above lr


@pytest.mark.parametrize(
    "settings, total",
    [
        ({"epochs": 2}, 10),
        ({"epochs": 0.5}, 3),
        ({"epochs": 0.01}, 1),
        ({"epochs": 1e-12}, 1),
        ({"epochs": 2.1}, 11),
        ({"epochs": 9, "max_steps": 4}, 4),
    ],
)
def test_length(settings, total):
    assert Schedule.of(TrainConfig(**settings), 5).total_steps == total


def due(schedule, what):
    return [done for done in range(1, schedule.total_steps + 1) if getattr(schedule, what)(done)]


def test_what_is_due():
    assert due(Schedule.of(TrainConfig(epochs=2), 5), "saves_after") == [5, 10]
    fractions = Schedule.of(TrainConfig(epochs=2, val_every=0.4, save_every=3), 5)
    assert due(fractions, "validates_after") == [2, 4, 6, 8, 10]
    assert due(fractions, "saves_after") == [2, 3, 4, 6, 8, 9, 10]
    steps = Schedule.of(TrainConfig(max_steps=7, val_every=3), 5)
    assert due(steps, "validates_after") == [3, 6, 7]
    assert due(Schedule.of(TrainConfig(max_steps=7), 5), "validates_after") == []


def test_what_is_due_at_the_edges():
    each_epoch = Schedule.of(TrainConfig(epochs=3, val_every=0.999), 5)
    assert due(each_epoch, "validates_after") == [5, 10, 15]
    assert Schedule.of(TrainConfig(val_every=1), 5).val_every == 1
    assert Schedule.of(TrainConfig(val_every=0.01), 5).val_every == 1
    assert due(Schedule.of(TrainConfig(epochs=1.2), 5), "saves_after") == [5, 6]
    assert due(Schedule.of(TrainConfig(max_steps=4, save_every=1), 5), "saves_after") == [1, 2, 3, 4]
    late = Schedule.of(TrainConfig(max_steps=4, val_every=3, save_every=10), 5)
    assert due(late, "saves_after") == due(late, "validates_after") == [3, 4]
