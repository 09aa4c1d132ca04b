"""index.html: scores beside both baselines, and studies to look at, in one file that loads nothing else."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from megpt.evaluation.films import spread
from megpt.evaluation.metrics import Evaluation
from megpt.evaluation.statistics import SCORES
from megpt.evaluation.table import per_study
from megpt.output import write_aside
from megpt.study import CHEXPERT

TITLES = {
    **{f"BLEU_{n}": f"BLEU-{n}" for n in range(1, 5)},
    "ROUGE_L": "ROUGE-L",
    "clinical_micro_f1": "Clinical F1, micro",
    "clinical_macro_f1": "Clinical F1, macro",
    "clinical_f1": "Clinical F1",
}
CARD_SCORES = ("clinical_f1", "ROUGE_L", "BLEU_4", "CIDEr", "METEOR")
BASELINES = ("constant", "permuted")
MAX_ERRORS = 200
_SCALES = (0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10)


def gallery(evaluation: Evaluation, count: int) -> list[int]:
    """Rows of the studies that the page shows."""
    scores = evaluation.statistics.per_study()
    return spread(scores["clinical_f1"] + scores["ROUGE_L"], count)


def write_page(
    path: str | Path, evaluation: Evaluation, *, rows: Sequence[int], films: Mapping[str, Sequence[str]]
) -> None:
    """Write the page, whole or not at all.

    Args:
        rows: which studies are shown, as `gallery` gives them.
        films: study_id → data URIs of its films; studies without are shown as text.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = _number
    metrics = evaluation.metrics
    table = per_study(evaluation)
    failed = [p for p in evaluation.pairs.pairs if p.generated is None]
    html = environment.get_template("page.html.j2").render(
        metrics=metrics,
        titles=TITLES,
        score_rows=score_rows(metrics),
        chart=chart(metrics),
        observations=metrics["clinical"],
        cards=[_card(table.slice(row, 1).to_pylist()[0], films) for row in rows],
        card_scores=[name for name in CARD_SCORES if not (name == "METEOR" and metrics["scores"]["METEOR"] is None)],
        names=CHEXPERT,
        errors=[(p.study_id, p.error or "no report") for p in failed[:MAX_ERRORS]],
        more_errors=max(0, len(failed) - MAX_ERRORS),
    )
    with write_aside(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def score_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a score: value, interval, both baselines, and whether the better baseline is beaten."""
    rows = []
    for name in SCORES:
        value = metrics["scores"].get(name)
        baselines = {b: (metrics["baselines"][b] or {}).get(name) for b in BASELINES}
        known = [v for v in baselines.values() if v is not None]
        rows.append(
            {
                "name": name,
                "title": TITLES.get(name, name),
                "value": value,
                "interval": metrics["intervals"].get(name),
                **baselines,
                "beaten": None if value is None or not known else value > max(known),
            }
        )
    return rows


def chart(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Positions (0 to 100) on each score's own axis, which begins at 0 and ends at a round number."""
    rows = []
    for row in score_rows(metrics):
        if row["value"] is None:
            continue
        low, high = row["interval"] or (row["value"], row["value"])
        values = [v for v in (high, row["value"], *(row[b] for b in BASELINES)) if v is not None]
        end = next((s for s in _SCALES if max(values) <= s), max(values))
        place = {k: 100 * v / end for k, v in (("low", low), ("high", high), ("model", row["value"]))}
        place |= {b: 100 * row[b] / end for b in BASELINES if row[b] is not None}
        rows.append({"title": row["title"], "end": f"{end:g}", "value": row["value"], "place": place})
    return rows


def differences(generated: str, reference: str) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Both texts as runs of words, each with whether the other text has it at that place; case does not count."""
    ours, theirs = generated.split(), reference.split()
    matcher = difflib.SequenceMatcher(None, [_bare(w) for w in ours], [_bare(w) for w in theirs], autojunk=False)
    left: list[tuple[str, bool]] = []
    right: list[tuple[str, bool]] = []
    for kind, a, b, c, d in matcher.get_opcodes():
        for side, words in ((left, ours[a:b]), (right, theirs[c:d])):
            if words:
                side.append((" ".join(words), kind == "equal"))
    return left, right


def _bare(word: str) -> str:
    return word.lower().strip(".,;:") or word


def _card(row: dict[str, Any], films: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    generated, reference = differences(row["generated"] or "", row["reference"])
    ours, theirs = set(row["generated_labels"]), set(row["reference_labels"])
    return {
        **row,
        "films": films.get(row["study_id"], ()),
        "generated_runs": generated,
        "reference_runs": reference,
        "labels": [
            (name, "both" if name in ours & theirs else "generated only" if name in ours else "reference only")
            for name in CHEXPERT
            if name in ours | theirs
        ],
    }


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or (isinstance(value, float) and not np.isfinite(value)) else f"{value:.{digits}f}"
