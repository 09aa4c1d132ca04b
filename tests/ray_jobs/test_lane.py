"""Shards through one run of the model.

- the slots stay full across the border of two shards; each shard is given as soon as its own last report is written
- films of the next shard are asked for when those of the one before are taken, and no sooner
- what the model waited for films, and what became of the context, is told with the shard in which it happened
- a lane in a thread takes shards as they come, one run behind another; an error ends those under way, and no later ones
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from megpt.data.studies import Listed
from megpt.errors import MegptError
from megpt.generation.writer import Prediction
from megpt.study import Study
from ray_jobs.generate.lane import Lane, LaneThread, ShardWork


class Writer:
    """Has `slots` studies in flight; study `n` of a shard takes `n` steps."""

    def __init__(self, slots: int = 4):
        self.slots, self.context_counts, self.waited = slots, Counter[str](), 0.0
        self.used: list[int] = []

    def write(self, films: Iterable[tuple[Study, Any]]) -> Iterator[Prediction]:
        stream, flying, more = iter(films), dict[str, int](), True
        while more or flying:
            while more and len(flying) < self.slots:
                if (item := next(stream, None)) is None:
                    more = False
                    break
                if item[1] == "broken":
                    raise MegptError("the archive is not there")
                if item[1] == "exit":
                    sys.exit(0)
                flying[item[0].study_id] = int(item[1])
                self.context_counts["studies"] += 1
            self.used.append(len(flying))
            flying = {name: steps - 1 for name, steps in flying.items()}
            for name in [name for name, steps in flying.items() if steps <= 0]:
                del flying[name]
                yield Prediction(Study(name), "Clear.", 0, 1, "stop")


def work(number: int, steps: list[int | str], told: list[str | None] | None = None) -> ShardWork:
    listed = [Listed(Study(f"{number}-{place}")) for place in range(len(steps))]
    films = zip((entry.study for entry in listed), steps, strict=True)
    return ShardWork(number, listed, films, (told if told is not None else []).append)


def test_across_borders() -> None:
    writer, told = Writer(), list[str | None]()
    shards = [work(0, [9, 1, 1, 1], told), work(1, [1, 1, 1, 1, 8], told), work(2, [3, 3], told)]
    asked = iter(shards)
    lane = Lane(writer, lambda: next(asked, None))  # type: ignore[arg-type]
    found = [(each.number, len(each.written)) for each in lane.finished()]
    assert found == [(2, 2), (0, 4), (1, 5)] and not lane.open and told == [None] * 11
    # one behind another, the three shards would take 9 + 9 + 3 steps
    assert len(writer.used) == 10 and writer.used[:3] == [4, 4, 4]


def test_what_happened_since_the_shard_before() -> None:
    writer = Writer(slots=1)
    shards = iter([work(0, [1, 1]), work(1, [1])])

    def following() -> ShardWork | None:
        writer.waited += 0.25
        return next(shards, None)

    lane = Lane(writer, following)  # type: ignore[arg-type]
    found = [(each.number, each.context, each.waited, each.seconds < 1) for each in lane.finished()]
    assert found == [(0, {"studies": 2}, 0.25, True), (1, {"studies": 1}, 0.25, True)]


def test_a_thread() -> None:
    writer, seen = Writer(), list[str]()
    thread = LaneThread(lambda following: Lane(writer, following, lambda p: seen.append(p.study.study_id)))  # type: ignore[arg-type]
    shards = [thread.submit(work(number, [1, 2])) for number in range(3)]
    for each in shards:
        each.result()
        assert len(each.written) == 2
    broken = thread.submit(work(3, [1, 5, "broken"]))
    with pytest.raises(MegptError, match="not there"):
        broken.result()
    with pytest.raises(RuntimeError, match="SystemExit"):
        thread.submit(work(5, ["exit"])).result()
    time.sleep(0.05)  # the run has ended; the next one begins anew
    after = thread.submit(work(4, [1]))
    after.result()
    assert [p.study.study_id for p in after.written] == ["4-0"] and len(seen) >= 7
