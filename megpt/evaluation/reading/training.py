"""The training reports of an evaluation: for the constant baseline, and for recipes that count words in them."""

from __future__ import annotations

from megpt.config import Config
from megpt.errors import InputError
from megpt.evaluation.pairs import training_reports
from megpt.evaluation.reading.references import has_training, training_texts
from megpt.places import place
from megpt.recipe import parse_recipe


def find_training(config: Config) -> tuple[list[str] | None, list[str]]:
    """(training reports or None, what was taken).

    They are those of `training`, else of `studies` (training split), else of a `references` file that lists the
    training split too, as R2Gen's annotation.json does. None where nothing needs them or no file has them.

    Raises:
        InputError: `training` holds no report, or `studies` is no table.
    """
    if not (config.evaluate.baselines or parse_recipe(config.data.cleaner).unk):
        return None, []
    section, settings = config.data.section, config.evaluate
    path = config.training
    if path is None and config.studies:
        return _of_studies(config.studies, section), []
    if path is None and config.references and has_training(config.references, settings, section):
        path = config.references
    if path is None:
        return None, []
    texts, said = training_texts(path, settings=settings, section=section)
    return texts, [said]


def _of_studies(studies: str, section: str) -> list[str] | None:
    try:
        return list(training_reports(studies, section))
    except InputError:
        if any(place(studies).glob("**/split=*/*.parquet")):
            return None
        raise
