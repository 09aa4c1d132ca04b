"""index.html: every study to work with, scores beside their baselines, and nothing loaded from elsewhere.

    write_page(output / "index.html", [System("MeGPT", evaluation)], films=films)

The page is its own program (page.js, no library). Up to `INLINE_BYTES` of studies and films lie inside the file; more
lie beside it, as scripts and JPEG files in `page/`: a page opened from a disk may load those, but may not fetch.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from megpt.evaluation.metrics import Evaluation, Runner, run_here
from megpt.evaluation.page.payload import KINDS, described
from megpt.evaluation.page.summary import Summary, summarised
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

    films: study_id → encoded JPEG films; prompts: cluster → text; curves: title → [(step, value), …].
    """

    films: Mapping[str, Sequence[bytes]] = field(default_factory=dict)
    prompts: Mapping[int, str] = field(default_factory=dict)
    curves: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)


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
    inline = _weight(systems, extras) <= INLINE_BYTES
    rows = study_rows(systems, extras, folder=None if inline else folder, run=run)
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


def study_rows(
    systems: Sequence[System], extras: Extras, *, folder: Path | None, run: Runner = run_here
) -> Iterator[dict[str, Any]]:
    """The studies as page.js takes them; films go into `folder`, or into the row itself without one."""
    pairs = [system.evaluation.pairs.pairs for system in systems]
    scores = [system.evaluation.statistics.per_study() for system in systems]
    shown = summarised(systems, extras).study_scores
    spans = [range(start, min(start + CHUNK, len(pairs[0]))) for start in range(0, len(pairs[0]), CHUNK)]
    tasks = [(described, _texts(part[span.start : span.stop])) for span in spans for part in pairs]
    results = iter(run(tasks))
    for span in spans:
        marks = [next(results) for _ in systems]
        for row in span:
            first = pairs[0][row]
            yield {
                "id": first.study_id,
                "split": first.split,
                "prompt": first.prompt_id,
                "reference": first.reference or None,
                "films": _film_sources(extras.films.get(first.study_id, ()), row, folder),
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


def _texts(pairs: Sequence[Pair]) -> tuple[list[str | None], list[str | None]]:
    return [pair.generated for pair in pairs], [pair.reference or None for pair in pairs]


def _rounded(values: Mapping[str, Any], name: str, row: int) -> float | None:
    value = values[name][row] if name in values else None
    return None if value is None or value != value else round(float(value), 4)


def _film_sources(films: Sequence[bytes], row: int, folder: Path | None) -> list[str]:
    if folder is None:
        return [f"data:image/jpeg;base64,{base64.b64encode(film).decode()}" for film in films]
    names = []
    for number, film in enumerate(films):
        name = f"film-{row:06d}-{number}.jpg"
        (folder / "films").mkdir(parents=True, exist_ok=True)
        (folder / "films" / name).write_bytes(film)
        names.append(f"{FOLDER}/films/{name}")
    return names


def _weight(systems: Sequence[System], extras: Extras) -> int:
    """About as many bytes as the studies take inside the page."""
    texts = sum(len(p.generated or "") + len(p.reference or "") for s in systems for p in s.evaluation.pairs.pairs)
    return 3 * texts + sum(len(film) * 4 // 3 for films in extras.films.values() for film in films)


def _write_chunk(folder: Path, number: int, rows: Iterable[dict[str, Any]]) -> str:
    """A script that hands its studies to the page as one JSON string, which browsers read faster than a literal."""
    name = f"studies-{number:04d}.js"
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(json.dumps(list(rows), ensure_ascii=False, separators=(",", ":")), ensure_ascii=False)
    with write_aside(folder / name) as temporary:
        temporary.write_text(f"megpt.add({_in_script(text)});\n", encoding="utf-8")
    return f"{FOLDER}/{name}"


def _render(summary: Summary, data: Mapping[str, Any], chunks: Sequence[str]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return environment.get_template("index.html.j2").render(
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
