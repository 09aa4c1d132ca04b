"""METEOR.

- study and corpus scores as pycocoevalcap's own wrapper gives them, from statistics that add up
- awkward texts (line ends of all kinds, `|||`, empty, equal) get one answer each
- a report that loops or has thousands of words is scored by its first words and told; the others keep their METEOR
- a pair on which the program stalls or dies is scored alone, by fewer words or 0, and told; the others go on
- no Java program is left behind: not after an error, not after this process was killed
- no Java, a silent program and one that answers nonsense are an error with a reason, never a wait
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from pycocoevalcap.meteor.meteor import Meteor

from megpt.evaluation import meteor as module
from megpt.evaluation.meteor import COLUMNS, MeteorUnavailable, meteor, meteor_rows, meteor_statistics
from megpt.evaluation.metrics import score_reports

GENERATED = ["the heart is normal in size . no effusions are seen .", "small left pleural effusion .", "clear lungs ."]
REFERENCES = [
    "heart size is normal . there is no pleural effusion .",
    "there is a small right pleural effusion . no pneumothorax .",
    "the lungs are clear .",
]
AWKWARD = ["line\nend\r\n and\x0b \x0c\u2028 \x85 more", "a ||| bar", "", "é – ü", "the heart is normal"]


@pytest.mark.slow
def test_scores_are_pycocoevalcaps() -> None:
    texts, wanted = [*GENERATED, "the heart is normal"], [*REFERENCES, "the heart is normal"]
    statistics = meteor_statistics([*texts, *AWKWARD, "x"], [*wanted, *AWKWARD, ""])
    assert statistics.shape == (len(texts) + len(AWKWARD) + 1, 23)
    ours = statistics[: len(texts)]
    wrapper = Meteor()
    corpus, each = wrapper.compute_score({i: [t] for i, t in enumerate(wanted)}, {i: [t] for i, t in enumerate(texts)})
    assert meteor(ours) == pytest.approx(each, abs=1e-12)
    assert meteor(ours.sum(0)) == pytest.approx(corpus, abs=1e-12)
    assert meteor(np.stack([ours.sum(0), ours[0]])) == pytest.approx([corpus, each[0]], abs=1e-12)
    awkward = meteor(statistics[len(texts) :])
    assert awkward[0] == awkward[4] == 1 and awkward[2] == awkward[5] == 0


def test_nothing_matched_is_zero() -> None:
    assert meteor(np.zeros(23)) == 0


def test_no_java() -> None:
    with pytest.raises(MeteorUnavailable, match="Java is not installed"):
        meteor_statistics(["a"], ["a"], java="no-such-java")


@pytest.mark.parametrize(
    ("script", "limit_s", "reason"),
    [
        ("exec sleep 60", 1, "no answer within"),
        ("cat > /dev/null; echo oops; exit 3", 2, "ended with code 3 and 1 answers"),
    ],
)
def test_bad_program(tmp_path: Path, script: str, limit_s: float, reason: str) -> None:
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\n{script}\n")
    java.chmod(0o755)
    with pytest.raises(MeteorUnavailable, match=reason):
        meteor_statistics(["a"], ["a"], java=str(java), limit_s=limit_s)


# Answers each line with the number of its words; stalls at "stall", dies at "die" unless the text is one word long.
FAKE = f"""
import sys, time
for line in sys.stdin:
    words = line.rpartition("|||")[2].split()
    if "stall" in words and len(words) > {{few}}: time.sleep(60)
    if "die" in words and len(words) > {{few}}: sys.exit(1)
    print(*[len(words)] * {COLUMNS}, flush=True)
"""


def fake(tmp_path: Path, few: int) -> str:
    java = tmp_path / "java"
    java.write_text(f"#!{sys.executable}\n{FAKE.format(few=few)}")
    java.chmod(0o755)
    return str(java)


def words_seen(java: str, texts: list[str], **limits: float) -> tuple[list[float], module.MeteorRows]:
    rows = meteor_rows(texts, ["x"] * len(texts), java=java, **limits)
    return rows.statistics[:, 0].tolist(), rows


def test_a_pair_that_stalls_or_kills_is_scored_alone(tmp_path: Path) -> None:
    texts = ["a b c", "stall " * 300, "a b", "die " * 200, "a", "w " * 2000]
    seen, rows = words_seen(fake(tmp_path, 100), texts, pair_s=0.5)
    assert seen == [3, 100, 2, 100, 1, 1000]
    assert (rows.cut, rows.capped, rows.failed) == ([5], [1, 3], [])
    seen, rows = words_seen(fake(tmp_path, 0), texts, pair_s=0.5)
    assert seen == [3, 0, 2, 0, 1, 1000]
    assert (rows.cut, rows.capped, rows.failed) == ([5], [], [1, 3])


def test_too_many_bad_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RESTARTS", 2)
    with pytest.raises(MeteorUnavailable, match="stalled or died on more than 2 pairs"):
        words_seen(fake(tmp_path, 0), ["die"] * 5)


def java_programs(parent: int) -> list[psutil.Process]:
    try:
        children = psutil.Process(parent).children(recursive=True)
        return [child for child in children if child.name() in ("java", "sleep", "sh")]  # not those of other tests
    except psutil.NoSuchProcess:
        return []


def test_no_program_is_left_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(MeteorUnavailable):
        meteor_rows(["a"], ["a"], java=_script(tmp_path, "exec sleep 60"), start_s=0.3)
    assert java_programs(os.getpid()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of other systems does not end children")
def test_no_program_is_left_after_a_kill(tmp_path: Path) -> None:
    java = _script(tmp_path, "exec sleep 300")
    code = f"from megpt.evaluation.meteor import meteor_rows; meteor_rows(['a'], ['a'], java={java!r})"
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not (found := java_programs(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    (program,) = found
    process.send_signal(signal.SIGKILL)
    process.wait()
    program.wait(10)  # raises where it still lives


@pytest.mark.slow
def test_one_looping_report_among_600(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, wanted = GENERATED * 200, REFERENCES * 200
    good = meteor_statistics(texts, wanted)
    texts[311] = "the " * 4000
    rows = meteor_rows(texts, wanted)
    assert (rows.cut, rows.capped, rows.failed) == ([311], [], [])
    others = np.arange(600) != 311
    assert (rows.statistics[others] == good[others]).all() and np.isfinite(meteor(rows.statistics.sum(0)))
    # Without the cap on words the real program dies of this pair; the others keep their scores all the same.
    monkeypatch.setattr(module, "MAX_WORDS", 10**9)
    texts[311] = wanted[311] = " ".join(f"{a} {b}" for a, b in zip(WORDS * 60, reversed(WORDS * 60), strict=True))
    rows = meteor_rows(texts, wanted, pair_s=15)
    assert rows.capped == [311] and (rows.statistics[others] == good[others]).all()
    assert java_programs(os.getpid()) == []


WORDS = " ".join(GENERATED + REFERENCES).split() * 2


def _script(folder: Path, body: str) -> str:
    java = folder / "java"
    java.write_text(f"#!/bin/sh\n{body}\n")
    java.chmod(0o755)
    return str(java)


def test_scores_without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    scores = score_reports(GENERATED, REFERENCES, cleaner="none", clinical=False)
    assert "METEOR" not in scores and scores["BLEU_1"] > 0


def test_no_texts() -> None:
    assert meteor_statistics([], []).shape == (0, 23)
