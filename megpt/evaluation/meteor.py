"""METEOR 1.5 by the Java program that pycocoevalcap ships, in a process of its own with a time limit.

pycocoevalcap's wrapper waits for ever once the program has met a line it does not like; here every text is one line,
the locale is fixed, the answer is read whole, and a program that stays silent is ended. The program's statistics are
kept per study: their sums give the score of any set of studies.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pycocoevalcap.meteor

COLUMNS = 23
# METEOR 1.5's parameters for English, task "rank" (Denkowski and Lavie, 2014): α, β, γ, δ and the weights of exact,
# stem, synonym and paraphrase matches.
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.20, 0.60, 0.75
_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])

_JAR = Path(next(iter(pycocoevalcap.meteor.__path__))) / "meteor-1.5.jar"
START_S, PER_PAIR_S = 120.0, 0.05
"""Allowed seconds: some 20 for the start and 0.003 a pair are usual on one busy core."""


class MeteorUnavailable(Exception):
    """METEOR could not be computed; the text says why and holds no report text."""


def meteor_statistics(
    generated: Sequence[str], references: Sequence[str], *, java: str = "java", limit_s: float | None = None
) -> np.ndarray:
    """(N, 23) statistics of N pairs, as METEOR counts them; see `meteor`.

    Raises:
        MeteorUnavailable: no Java, no answer within the time limit, or an answer that is none.
    """
    if not generated:
        return np.zeros((0, COLUMNS))
    program = shutil.which(java)
    if program is None:
        raise MeteorUnavailable("Java is not installed (METEOR needs Java 8 or newer)")
    command = [program, "-Xmx2G", "-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8"]
    command += ["-jar", str(_JAR), "-", "-", "-stdio", "-l", "en", "-norm"]
    lines = [f"SCORE ||| {_line(r)} ||| {_line(g)}\n" for g, r in zip(generated, references, strict=True)]
    limit = limit_s if limit_s is not None else START_S + PER_PAIR_S * len(lines)
    try:
        # communicate() writes and reads at once, so neither side can block on a full pipe.
        done = subprocess.run(
            command,
            input="".join(lines).encode(errors="replace"),
            capture_output=True,
            timeout=limit,
            check=False,
            cwd=_JAR.parent,
        )
    except subprocess.TimeoutExpired:
        raise MeteorUnavailable(f"METEOR's Java program gave no answer within {limit:.0f} s") from None
    except OSError as error:
        raise MeteorUnavailable(f"Java cannot be started ({type(error).__name__})") from None
    rows = [line.split() for line in done.stdout.decode(errors="replace").splitlines()]
    if len(rows) != len(lines) or any(len(row) != COLUMNS for row in rows):
        raise MeteorUnavailable(f"METEOR's Java program ended with code {done.returncode} and {len(rows)} answers")
    statistics = np.array(rows, dtype=np.float64)
    # A text matched whole and in order is no fragment: METEOR leaves its one chunk out of every sum.
    whole = (statistics[:, 20] == 1) & np.all(statistics[:, 21:23] == statistics[:, 0:2], axis=1)
    statistics[whole, 20] = 0
    return statistics


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


def _line(text: str) -> str:
    """One line, without what METEOR takes for a separator; split() knows every line end that Java or Python does."""
    return " ".join(text.replace("|||", " ").split())
