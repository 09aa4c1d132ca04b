"""METEOR 1.5 by the Java program that pycocoevalcap ships, in a process of its own that can neither hang nor stay.

pycocoevalcap's wrapper waits for ever once the program has met a line it does not like; here every text is one line,
the locale is fixed, and a program that stays silent is ended. Answers are read as they come, so the pair on which the
program stalls or dies is known at once: it is scored alone with capped texts, and the others go on in a new process.
The program's statistics are kept per study: their sums give the score of any set of studies.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pycocoevalcap.meteor

from megpt.evaluation.java import Conversation

COLUMNS = 23
# METEOR 1.5's parameters for English, task "rank" (Denkowski and Lavie, 2014): α, β, γ, δ and the weights of exact,
# stem, synonym and paraphrase matches.
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.20, 0.60, 0.75
_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])

_JAR = Path(next(iter(pycocoevalcap.meteor.__path__))) / "meteor-1.5.jar"
_PROBE = ("a", "a")

MAX_WORDS = 1_000
"""Words of a text that METEOR reads: its alignment takes 6 s for 4,000 words of a loop, and dies of 12,000."""
RETRY_WORDS = 100
"""Words that are read of both texts of a pair on which the program stalled or died."""
START_S, PAIR_S = 180.0, 60.0
"""Seconds allowed for the first answer, and for each later one: 12 and 0.003 are usual on an idle core."""
MAX_RESTARTS = 20


class MeteorUnavailable(Exception):
    """METEOR could not be computed; the text says why and holds no report text."""


@dataclass(frozen=True)
class MeteorRows:
    """What METEOR counted in N pairs, and which of them it could not read whole."""

    statistics: np.ndarray
    """(N, 23), see `meteor`."""
    cut: list[int] = field(default_factory=list)
    """Pairs with a text of more than MAX_WORDS words: the first MAX_WORDS were scored."""
    capped: list[int] = field(default_factory=list)
    """Pairs on which the program stalled or died: the first RETRY_WORDS of both texts were scored."""
    failed: list[int] = field(default_factory=list)
    """Pairs on which it stalled or died even so: scored as an empty report, that is 0."""


def meteor_statistics(
    generated: Sequence[str], references: Sequence[str], *, java: str = "java", limit_s: float | None = None
) -> np.ndarray:
    """(N, 23) statistics of N pairs, as METEOR counts them; see `meteor` and `meteor_rows`."""
    return meteor_rows(generated, references, java=java, start_s=limit_s or START_S).statistics


def meteor_rows(
    generated: Sequence[str],
    references: Sequence[str],
    *,
    java: str = "java",
    start_s: float = START_S,
    pair_s: float = PAIR_S,
) -> MeteorRows:
    """METEOR's statistics of N pairs, with the pairs it could not read whole.

    Args:
        start_s: seconds until the first answer of a process.
        pair_s: seconds until each later answer.

    Raises:
        MeteorUnavailable: no Java, no answer even to a harmless pair, an answer that is none, or more than
            MAX_RESTARTS pairs on which the program stalled or died.
    """
    if not generated:
        return MeteorRows(np.zeros((0, COLUMNS)))
    program = shutil.which(java)
    if program is None:
        raise MeteorUnavailable("Java is not installed (METEOR needs Java 8 or newer)")
    pairs = [(_words(g), _words(r)) for g, r in zip(generated, references, strict=True)]
    cut = [i for i, pair in enumerate(pairs) if max(map(len, pair)) > MAX_WORDS]
    rows, stuck = _score([_line(g[:MAX_WORDS], r[:MAX_WORDS]) for g, r in pairs], program, start_s, pair_s)
    failed: list[int] = []
    if stuck:
        short = [_line(pairs[i][0][:RETRY_WORDS], pairs[i][1][:RETRY_WORDS]) for i in stuck]
        again, still = _score(short, program, start_s, pair_s)
        if still:
            empty, dead = _score([_line([], pairs[stuck[i]][1][:1]) for i in still], program, start_s, pair_s)
            if dead:
                raise MeteorUnavailable("METEOR's Java program cannot score an empty report")
            for i, row in zip(still, empty, strict=True):
                again[i] = row
            failed = [stuck[i] for i in still]
        for i, row in zip(stuck, again, strict=True):
            rows[i] = row
    statistics = np.array(rows, dtype=np.float64)
    # A text matched whole and in order is no fragment: METEOR leaves its one chunk out of every sum.
    whole = (statistics[:, 20] == 1) & np.all(statistics[:, 21:23] == statistics[:, 0:2], axis=1)
    statistics[whole, 20] = 0
    capped = [i for i in stuck if i not in failed]
    return MeteorRows(statistics, [i for i in cut if i not in stuck], capped, failed)


def _score(lines: list[str], program: str, start_s: float, pair_s: float) -> tuple[list[list[float]], list[int]]:
    """An answer for each line, and the lines without one (their answers are empty)."""
    rows: list[list[float]] = []
    stuck: list[int] = []
    while len(rows) < len(lines):
        if len(stuck) > MAX_RESTARTS:
            raise MeteorUnavailable(f"METEOR's Java program stalled or died on more than {MAX_RESTARTS} pairs")
        answers, reason = _ask(lines[len(rows) :], program, start_s, pair_s)
        if answers is None:
            raise MeteorUnavailable(reason)
        rows += answers
        if len(rows) < len(lines):
            stuck.append(len(rows))
            rows.append([])
    return rows, stuck


def _ask(lines: list[str], program: str, start_s: float, pair_s: float) -> tuple[list[list[float]] | None, str]:
    """The answers of one process until it has answered all, stalls or dies; None with a reason where it never began.

    A harmless pair goes first: a program that cannot score that one is not worth trying again.
    """
    command = [program, "-Xmx2G", "-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8"]
    command += ["-jar", str(_JAR), "-", "-", "-stdio", "-l", "en", "-norm"]
    answers: list[list[float]] = []
    read = 0
    try:
        with Conversation(command, [_line(*map(_words, _PROBE)), *lines], cwd=_JAR.parent) as program_answers:
            for line in program_answers.read(first_s=start_s, next_s=pair_s):
                read += 1
                try:
                    answer = [float(value) for value in line.split()]
                except ValueError:
                    break
                if len(answer) != COLUMNS:
                    break
                answers.append(answer)
            code = program_answers.code()
    except OSError as error:
        return None, f"Java cannot be started ({type(error).__name__})"
    if not answers:
        if code is None:
            return None, f"METEOR's Java program gave no answer within {start_s:.0f} s"
        return None, f"METEOR's Java program ended with code {code} and {read} answers"
    return answers[1:], ""


def meteor(sums: np.ndarray) -> np.ndarray:
    """METEOR (…) of statistics or their sums (…, 23).

    Columns: words of the generated text and of the reference, their function words, then for each kind of match
    content words (generated, reference) and function words (generated, reference), then chunks and matched words.
    """
    sums = np.asarray(sums, dtype=np.float64)
    words, function = sums[..., 0:2], sums[..., 2:4]
    kinds = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 4)
    matches = _DELTA * kinds[..., 0:2] + (1 - _DELTA) * kinds[..., 2:4]
    weighted = np.einsum("k,...kt->...t", _WEIGHTS, matches)
    total = _DELTA * (words - function) + (1 - _DELTA) * function
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.moveaxis(np.where(total > 0, weighted / total, 0.0), -1, 0)
        mean = 1 / (_ALPHA / recall + (1 - _ALPHA) / precision)
        chunks, matched = sums[..., 20], sums[..., 21:23]
        fragments = chunks / matched.mean(axis=-1)
        score = mean * (1 - _GAMMA * fragments**_BETA)
    return np.where((precision > 0) & (recall > 0), score, 0.0)


def _words(text: str) -> list[str]:
    """Words without what METEOR takes for a separator; split() knows every line end that Java or Python does."""
    return text.replace("|||", " ").split()


def _line(generated: list[str], reference: list[str]) -> str:
    return f"SCORE ||| {' '.join(reference)} ||| {' '.join(generated)}\n"
