"""Scores that need a package or weights of their own: RadGraph, CheXbert, GREEN and others.

    score = further_score("radgraph")
    score(generated, references)      # {"radgraph_simple": (N,), "radgraph_partial": (N,), "radgraph_complete": (N,)}

The built-in ones run through RadEval (Xu et al., 2025; MIT), which loads their weights from the Hugging Face hub. A
package adds its own by an entry point of the group `megpt.scores`: a function of N generated and N reference reports
that returns N values, or name → N values. A value depends on its own study alone. What is not installed is refused with
what to install, before anything is scored.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from megpt.errors import InputError, did_you_mean
from megpt.evaluation.clinical_scores import CLINICAL

GROUP = "megpt.scores"
Score = Callable[[Sequence[str], Sequence[str]], Mapping[str, Sequence[float]] | Sequence[float] | np.ndarray]

TAKEN = frozenset({*(f"BLEU_{n}" for n in range(1, 5)), "METEOR", "ROUGE_L", "CIDEr", "clinical_f1", *CLINICAL})
"""Names of megpt's own scores."""
RADEVAL = ("radgraph", "f1chexbert", "green", "ratescore", "radcliq", "srrbert", "radeval_bertscore")
"""Names that RadEval knows as well; each loads a language model."""

INSTALL = "printf 'spacy>=3.8\\nnumpy>=2\\n' > overrides.txt && uv pip install --override overrides.txt 'radeval>=2.2'"
"""RadEval asks for medspacy, which pins an older spaCy and numpy; these scores use neither."""


def known_scores() -> list[str]:
    """The names that `further_score` takes."""
    return sorted({*RADEVAL, *(point.name for point in importlib.metadata.entry_points(group=GROUP))})


def check_scores(names: Sequence[str]) -> None:
    """Refuse what `further_score` would refuse without loading any weights.

    Raises:
        InputError: an unknown name, or one whose package is not installed.
    """
    others = {point.name for point in importlib.metadata.entry_points(group=GROUP)}
    for name in names:
        if name not in known_scores():
            known = ", ".join(known_scores())
            raise InputError(
                f"unknown score {name!r}", cause=f"known are {known}", next=did_you_mean(name, known_scores())
            )
        if name not in others and importlib.util.find_spec("radeval") is None:
            raise InputError(f"score {name!r} needs the package radeval, which is not installed", next=INSTALL)


def further_score(name: str) -> Callable[[Sequence[str], Sequence[str]], dict[str, np.ndarray]]:
    """A function (generated, references) → name → (N,) float64, one value a study.

    Raises:
        InputError: unknown name; its package is not installed, or its weights cannot be loaded. From the function: the
            score gave another number of values than there are reports, one that is no number, or the name of another.
    """
    check_scores([name])
    points = {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}
    return _checked(name, points[name].load() if name in points else _radeval(name))


def _radeval(name: str) -> Score:
    """One of RadEval's scores, loaded at once so that a missing weight is said before anything is scored."""
    radeval: Any = importlib.import_module("radeval")
    try:
        evaluator = radeval.RadEval(metrics=[name], per_sample=True, show_progress=False)
    except ModuleNotFoundError as error:
        cause = f"its package {error.name} is missing"
        raise InputError(f"score {name!r} cannot be loaded", cause=cause, next=INSTALL) from error
    except Exception as error:
        raise InputError(
            f"the weights of score {name!r} cannot be loaded",
            cause=f"{type(error).__name__}: no connection to the Hugging Face hub, or no access to the weights",
            next="load them once on a machine with a connection, then copy ~/.cache (HF_HOME names another place)",
        ) from error
    return lambda generated, references: evaluator(refs=list(references), hyps=list(generated))


def _checked(name: str, score: Score) -> Callable[[Sequence[str], Sequence[str]], dict[str, np.ndarray]]:
    def compute(generated: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
        if not generated:
            return {}
        found = score(generated, references)
        named = found if isinstance(found, Mapping) else {name: found}
        columns = {key: np.asarray(values, dtype=np.float64) for key, values in named.items()}
        for key, values in columns.items():
            if key in TAKEN:
                what = f"score {name!r} gave values of {key!r}, which is another score's name"
                raise InputError(what, next=f"leave {name!r} out, or rename its values")
            if values.shape != (len(generated),):
                what = f"score {name!r} gave {values.size} values of {key!r} for {len(generated)} reports"
                raise InputError(what, cause="a score must give one value a study", next=f"leave {name!r} out")
            if not np.isfinite(values).all():
                what = f"score {name!r} gave {int((~np.isfinite(values)).sum())} values of {key!r} that are no numbers"
                raise InputError(what, next=f"leave {name!r} out")
        return columns

    return compute
