"""One study's films → its report on the screen: the text that `megpt generate` writes for the same films.

    megpt report frontal.dcm lateral.dcm checkpoint=runs/checkpoint
    megpt report film.png checkpoint=runs/checkpoint --json

The report goes to standard output, everything else to standard error. Needs no cluster and writes no file.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megpt.config import Config
from megpt.data.one_study import NEXT_FILM, one_study
from megpt.errors import InputError, MegptError, printable
from megpt.films.decode import UnreadableFilm, load_film
from megpt.generation.answer import RESEARCH_ONLY, Author
from megpt.model.checkpoint.decoding import RULES, described
from megpt.progress import log
from megpt.study import Study, View
from ray_jobs.imports import uncollected

if TYPE_CHECKING:
    from megpt.generation.writer import Prediction


class Report:
    """Prints one report."""

    name = "report"
    reads = (
        *("checkpoint", "seed", "model.llm", "data.max_views", "data.max_pixels", "data.modalities"),
        *("generate.backend", "generate.precision", *(f"generate.{rule}" for rule in RULES)),
    )
    always: tuple[str, ...] = ()
    """It has no output and needs no cluster."""

    @staticmethod
    def run(config: Config, *films: str, dry_run: bool = False, as_json: bool = False) -> int:
        """Print the report of the films, which are one study.

        Args:
            dry_run: check films and checkpoint, load no model.
            as_json: print all that is known of the report, as one JSON object.

        Raises:
            InputError: no film, one that cannot be used, films of several patients or studies, or no checkpoint.
            MegptError: the model fails on the films.
        """
        views = [View(film, uri=str(Path(film).absolute())) for film in films]
        study = one_study(views, config.data, lambda note: log(f"report: {note}"))
        used = len(study.views[: config.data.max_views])
        if used < len(films):
            log(f"report: {len(films) - used} of {len(films)} films are not used: data.max_views={used}")
        author = Author.of(config)
        if dry_run:
            log(f"report: would describe {used} films; {described(author.config.generate, author.origins)}")
            return 0
        prediction = _written(author, study)
        answer: dict[str, Any] = author.answer(prediction)
        print(
            json.dumps(answer, indent=1, ensure_ascii=False)
            if as_json
            else printable(str(prediction.report), lines=True)
        )
        log(RESEARCH_ONLY)
        return 0


def _written(author: Author, study: Study) -> Prediction:
    # For a short computation threads that spin while they wait cost more than they gain, and ten times so if the
    # machine is busy. OpenMP reads it when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with uncollected():
        from megpt.generation.writer import ReportWriter
        from megpt.model import MeGPTForConditionalGeneration, MeGPTProcessor  # noqa: F401 (the writer's)

    config = author.config
    # One study needs one slot.
    rules = config.generate.model_copy(update={"slots": 1})
    llm = config.model.llm if "model.llm" in config.named else None
    writer = ReportWriter(author.folder, rules, config.seed, llm=llm)
    films = []
    for view in study.views[: config.data.max_views]:
        try:
            films.append(load_film(view, size=writer.processor.image_size, max_pixels=config.data.max_pixels))
        except UnreadableFilm as error:
            raise InputError(f"{view.image_id} cannot be used: {error.reason}", next=NEXT_FILM) from None
    (prediction,) = writer.write([(study, films)])
    if prediction.error:
        raise MegptError(
            f"no report: {prediction.error}",
            next="try generate.backend=hf, or another checkpoint",
        )
    return prediction
