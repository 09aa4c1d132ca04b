"""Studies of unfinished pieces: what workers tell, as the command that started them counts it.

- done and failed by reason, from any process of the cluster; the number of further films does not make another reason
- a finished piece counts once; what is forgotten counts no more
"""

from __future__ import annotations

from collections import Counter

import pytest
import ray

from megpt.config import PrepareConfig
from megpt.errors import MegptError
from megpt.progress import PieceCounts, Progress
from ray_jobs import telling
from ray_jobs.counting import Count
from ray_jobs.telling import Teller, forget, told


def test_workers_tell_and_the_command_counts(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    @ray.remote
    def work(run: str, piece: str, errors: list[str | None]) -> None:
        telling.TELL_EVERY_S = 0
        tell = Teller(run, piece)
        for error in errors:
            tell(error)

    with Progress("prepare", 100) as progress:
        count = Count(progress, PrepareConfig(max_failed_fraction=0.03))
        errors = [None, "missing file", "missing file (and 2 more)", "empty file"]
        ray.get([work.remote(count.run, "a", errors), work.remote(count.run, "b", [None] * 5)])
        assert told(count.run) == {
            "a": PieceCounts(4, Counter({"missing file": 2, "empty file": 1})),
            "b": PieceCounts(5),
        }
        count.look()
        assert (progress.seen, progress.done, progress.failed) == (9, 0, 3)
        count.finished("a", 6, {"missing file (and 1 more)": 4})
        count.look()
        assert (progress.seen, progress.done, progress.reasons) == (11, 6, {"missing file": 4})
        count.settings = PrepareConfig(max_failed_fraction=0.03, fail_fast=True)
        with pytest.raises(MegptError, match="4 of 100 studies have failed after 11"):
            count.look()
        count.forget()
        assert progress.seen == 6 and told(count.run) == {}


def test_telling_costs_nothing_between_seconds(ray_cluster: None) -> None:
    tell = Teller("run", "piece")
    for _ in range(1000):
        tell(None)
    assert tell.counts.done == 1000 and told("run") == {}
    forget("run")
