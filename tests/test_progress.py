"""Progress in a log: plain lines with done, failed, per second and time left; an earlier run's work counted in.

The time left follows the pace since the first results: an hour of loading weights does not make it a year.
"""

from __future__ import annotations

import re

import pytest

from megpt import progress


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
        bar._first = (bar._first[0] - 10, bar._first[1])  # ten seconds ago
        bar.advance(20)
        assert bar.seconds_left == pytest.approx(35, rel=0.2)
    assert re.search(r"30/100 studies, 0 failed, 0\.0/s, 3\d s left", capsys.readouterr().err)


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
