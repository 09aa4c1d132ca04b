"""Progress in a log: plain lines with done, failed, per second and time left; an earlier run's work counted in.

The time left follows the pace of the last results: an hour of loading weights does not make it a year.
"""

from __future__ import annotations

import re
from collections import Counter

import pytest

from megpt import progress
from megpt.progress import PieceCounts


def test_a_log_gets_one_plain_line_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Progress("generate", total=4) as bar:
        bar.advance(done=3, failed=1)
    line = capsys.readouterr().err.strip()
    assert re.fullmatch(r"generate: 3/4 studies, 1 failed, \d+\.\d/s", line)


def test_time_left_is_told_once_the_pace_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Progress("generate", total=100) as bar:
        bar.began -= 1000  # a slow start
        assert bar.seconds_left is None
        bar.advance(10)
        assert bar.seconds_left is None
        bar._marks[0] = (bar._marks[0][0] - 10, bar._marks[0][1])  # ten seconds ago
        bar.advance(20)
        assert bar.seconds_left == pytest.approx(35, rel=0.2)
    assert re.search(r"30/100 studies, 0 failed, [12]\.\d/s, 3\d s left", capsys.readouterr().err)


def test_the_pace_is_that_of_the_last_two_minutes() -> None:
    with progress.Progress("generate", total=1000) as bar:
        bar.advance(1)
        bar._marks[0] = (bar._marks[0][0] - 1000, 1)
        bar.advance(100)
        bar._marks[1] = (bar._marks[1][0] - 200, 101)
        bar.advance(200)
        assert bar.rate == pytest.approx(1.0, rel=0.1)
        assert bar.seconds_left == pytest.approx(699, rel=0.1)


def test_studies_of_unfinished_pieces_count_and_failures_say_why(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Progress("prepare", total=500, start=100, failed={"missing file": 2}) as bar:
        bar.in_flight({"a": PieceCounts(30, Counter({"empty file": 1})), "b": PieceCounts(7)})
        assert (bar.seen, bar.done, bar.failed) == (137, 100, 3)
        bar.advance(50, {"empty file": 3, "missing file": 1}, piece="a")
        assert (bar.seen, bar.done, bar.failed) == (157, 150, 6)
        # what was told before a piece was finished does not count twice
        bar.in_flight(
            {"a": PieceCounts(30, Counter({"empty file": 1})), "b": PieceCounts(9, Counter({"x": 1, "y": 1, "z": 1}))}
        )
        assert (bar.seen, bar.failed) == (159, 9)
    line = capsys.readouterr().err
    assert "prepare: 159/500 studies, 9 failed (3 × missing file, 3 × empty file, 1 × x, 2 more reasons), " in line


def test_lines_come_at_intervals_not_per_study(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 3600.0)
    with progress.Progress("prepare", total=100) as bar:
        for _ in range(100):
            bar.advance()
        assert capsys.readouterr().err == ""
    assert capsys.readouterr().err.count("\n") == 1


def test_work_of_an_earlier_run_counts_as_done_but_not_as_speed(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Progress("generate", total=1000, start=990) as bar:
        bar.advance(done=10)
        assert bar.done == 1000
        bar.began -= 10  # ten seconds ago
        assert bar.rate == pytest.approx(1.0, rel=0.2)
    assert "1000/1000" in capsys.readouterr().err


def test_an_unknown_total_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Progress("prepare", total=None, unit="films") as bar:
        bar.advance(done=7)
    assert capsys.readouterr().err.startswith("prepare: 7 films, 0 failed")
