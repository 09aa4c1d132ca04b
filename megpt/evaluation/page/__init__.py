"""index.html: every study to work with, scores beside their baselines, and nothing loaded from elsewhere.

    write_page(output / "index.html", [System("MeGPT", evaluation)], Extras(films=films))

The page is its own program (page.js, no library). Up to `INLINE_BYTES` of studies and films lie inside the file; more
lie beside it, as scripts and JPEG files in `page/`: a page opened from a disk may load those, but may not fetch.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from megpt.evaluation.clinical_scores import verdicts
from megpt.evaluation.coverage import SIGNALS
from megpt.evaluation.metrics import Evaluation, Runner, run_here
from megpt.evaluation.page.payload import KINDS, described
from megpt.evaluation.page.summary import Summary, study_scores, summarised
from megpt.evaluation.page.titles import TITLES
from megpt.evaluation.pairs import Pair
from megpt.output import write_aside
from megpt.study import CHEXPERT

INLINE_BYTES = 8 * 2**20
CHUNK = 500
"""Studies in one script beside the page."""
FOLDER = "page"
HERE = Path(__file__).parent


@dataclass(frozen=True)
class System:
    """One model's evaluation under the name that the page shows."""

    name: str
    evaluation: Evaluation


@dataclass(frozen=True)
class Extras:
    """What the page shows if it is known.

    films: (study_id, encoded JPEG films), streamed; prompts: cluster → text; curves: title → [(step, value), …];
    differences: the `comparisons` of compare.json.
    """

    films: Iterable[tuple[str, Sequence[bytes]]] = ()
    prompts: Mapping[int, str] = field(default_factory=dict)
    curves: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    differences: Sequence[Mapping[str, Any]] = ()


def write_page(
    path: str | Path, systems: Sequence[System], extras: Extras | None = None, *, run: Runner = run_here
) -> None:
    """Write the page, and what it needs beside it; the page itself comes last, whole or not at all.

    Args:
        systems: models over the same studies in the same order; the first one's scores lead.
        run: runs the tasks that mark the findings.
    """
    path, extras = Path(path), extras or Extras()
    folder = path.parent / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    films = _Films(folder / "films", systems[0].evaluation.pairs.every, extras.films)
    inline = _text_bytes(systems) + 4 * films.bytes // 3 <= INLINE_BYTES
    rows = study_rows(systems, films.inline if inline else films.beside, run=run)
    chunks = []
    while not inline and (part := list(islice(rows, CHUNK))):
        chunks.append(_write_chunk(folder, len(chunks), part))
    summary = summarised(systems, extras)
    data = {
        "findings": CHEXPERT,
        "kinds": KINDS,
        "scores": summary.study_scores,
        "titles": TITLES,
        "curves": [{"title": title, "points": points} for title, points in extras.curves.items()],
        "studies": list(rows) if inline else None,
    }
    html = _render(summary, data, chunks)
    with write_aside(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    if inline:
        shutil.rmtree(folder, ignore_errors=True)


class _Films:
    """The films as files, one study's in memory at a time; row of the study → what an image element loads."""

    def __init__(self, folder: Path, pairs: Sequence[Pair], films: Iterable[tuple[str, Sequence[bytes]]]):
        self.folder, self.bytes = folder, 0
        self._files: dict[int, list[Path]] = {}
        row_of = {pair.study_id: row for row, pair in enumerate(pairs)}
        for study, images in films:
            row = row_of[study]
            self._files[row] = [folder / f"film-{row:06d}-{number}.jpg" for number in range(len(images))]
            folder.mkdir(parents=True, exist_ok=True)
            for file, image in zip(self._files[row], images, strict=True):
                file.write_bytes(image)
                self.bytes += len(image)

    def inline(self, row: int) -> list[str]:
        encoded = (base64.b64encode(file.read_bytes()).decode() for file in self._files.get(row, ()))
        return [f"data:image/jpeg;base64,{text}" for text in encoded]

    def beside(self, row: int) -> list[str]:
        return [f"{FOLDER}/films/{file.name}" for file in self._files.get(row, ())]


def study_rows(
    systems: Sequence[System], films: Callable[[int], list[str]], *, run: Runner = run_here
) -> Iterator[dict[str, Any]]:
    """The studies as page.js takes them, the scored ones first.

    Args:
        films: row of a study → the sources of its films.
    """
    pairs = [system.evaluation.pairs.every for system in systems]
    scores = [_study_values(system.evaluation) for system in systems]
    told = [_verdicts(system.evaluation) for system in systems]
    shown = study_scores(systems)
    spans = [slice(start, start + CHUNK) for start in range(0, len(pairs[0]), CHUNK)]
    tasks = [(described, (*_texts(part[s]), kinds[s])) for s in spans for part, kinds in zip(pairs, told, strict=True)]
    results = iter(run(tasks))
    for span in spans:
        marks = [next(results) for _ in systems]
        for row, first in enumerate(pairs[0][span], start=span.start):
            yield {
                "id": first.study_id,
                "split": first.split,
                "prompt": first.prompt_id,
                "reference": first.reference or None,
                "films": films(row),
                "reports": [
                    {
                        "name": system.name if len(systems) > 1 else None,
                        "text": part[row].generated,
                        "error": part[row].error,
                        "finish": part[row].finish_reason,
                        "scores": [_rounded(values, name, row) for name in shown],
                        **marked[row - span.start],
                    }
                    for system, part, values, marked in zip(systems, pairs, scores, marks, strict=True)
                ],
            }


def _study_values(evaluation: Evaluation) -> dict[str, Sequence[float | None] | np.ndarray]:
    """The scores of each study alone, and what its model has said of its own report."""
    pairs = evaluation.pairs.every
    return {**evaluation.statistics.per_study(), **{name: [getattr(p, name) for p in pairs] for name in SIGNALS}}


def _verdicts(evaluation: Evaluation) -> np.ndarray:
    """(M, 14) of all studies: zeros for those that are not scored."""
    statistics = evaluation.statistics
    assert statistics.found is not None and statistics.truth is not None
    scored = verdicts(statistics.found, statistics.truth)
    return np.vstack([scored, np.zeros((len(evaluation.pairs.unscored), len(CHEXPERT)), scored.dtype)])


def _texts(pairs: Sequence[Pair]) -> tuple[list[str | None], list[str | None]]:
    return [pair.generated for pair in pairs], [pair.reference or None for pair in pairs]


def _rounded(values: Mapping[str, Any], name: str, row: int) -> float | None:
    column = values.get(name, ())
    value = column[row] if row < len(column) else None
    return None if value is None or value != value else round(float(value), 4)


def _text_bytes(systems: Sequence[System]) -> int:
    """About as many bytes as the studies' texts and marks take inside the page."""
    return 3 * sum(len(p.generated or "") + len(p.reference or "") for s in systems for p in s.evaluation.pairs.every)


def _write_chunk(folder: Path, number: int, rows: Iterable[dict[str, Any]]) -> str:
    """A script that hands its studies to the page as one JSON string, which browsers read faster than a literal."""
    name = f"studies-{number:04d}.js"
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(json.dumps(list(rows), ensure_ascii=False, separators=(",", ":")), ensure_ascii=False)
    with write_aside(folder / name) as temporary:
        temporary.write_text(f"megpt.add({_in_script(text)});\n", encoding="utf-8")
    return f"{FOLDER}/{name}"


def template(name: str) -> jinja2.Template:
    """A template of this folder; what it is not given is an error, and text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _render(summary: Summary, data: Mapping[str, Any], chunks: Sequence[str]) -> str:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return template("index.html.j2").render(
        vars(summary),
        chunks=chunks,
        data=Markup(_in_script(text)),
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "page.js").read_text(encoding="utf-8")),
    )


def _in_script(text: str) -> str:
    """JSON that may stand inside a script element: nothing in it can close the element or open another."""
    for character in "&<>\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
