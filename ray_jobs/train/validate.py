"""Validation during training: every worker writes the reports of its share, one place scores all of them, once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from megpt.config import Config
from megpt.data.cleaning import clean
from megpt.data.sources import open_source
from megpt.data.studies import read_studies
from megpt.errors import InputError, did_you_mean
from megpt.films.decode import UnreadableFilm, load_films
from megpt.study import Study
from ray_jobs.extras import require_extras

PAPER_MEAN = "(BLEU_4 + CIDEr) / 2"


def check_validation(config: Config) -> None:
    """Raise InputError for a `train.best_metric` that no score has, or a validation split that is not there."""
    metric = config.train.best_metric
    if config.train.val_every is not None or metric != PAPER_MEAN:
        require_extras("train.val_every", ("metrics",))
        from megpt.evaluation.statistics import SCORES

        if metric not in (*SCORES, PAPER_MEAN):
            raise InputError(
                f"train.best_metric = {metric!r} is no score", next=did_you_mean(metric, [*SCORES, PAPER_MEAN], most=3)
            )
    if config.train.val_every is not None and next(validation_studies(config, columns=["report"]), None) is None:
        raise InputError(
            "train.val_every is set, but there is no study of the val split",
            where=config.studies or config.source,
            next="leave train.val_every out, or give a table with split=val",
        )


def best_score(scores: dict[str, float], metric: str) -> float:
    """The number by which the best checkpoint is picked."""
    return (scores["BLEU_4"] + scores["CIDEr"]) / 2 if metric == PAPER_MEAN else scores[metric]


def validation_studies(config: Config, columns: list[str] | None = None) -> Iterator[Study]:
    """The validation split, at most `train.val_limit` of it."""
    if config.studies:
        return read_studies(config.studies, "val", columns, config.train.val_limit)
    source = open_source(str(config.source), data=config.data)
    return islice((study for study in source.studies() if study.split == "val"), config.train.val_limit)


def validator(config: Config) -> Callable[[Any, Any], dict[str, float]]:
    """`Hooks.validate`: (model, processor) → scores, the same on every worker. A collective."""
    import torch.distributed as dist

    def validate(model: Any, processor: Any) -> dict[str, float]:
        rank, world = dist.get_rank(), dist.get_world_size()
        mine = islice(validation_studies(config), rank, None, world)
        shares: list[list[tuple[str, str, str]]] = [[] for _ in range(world)]
        dist.all_gather_object(shares, write_reports(config, model, processor, mine))
        box = [score(config, shares) if rank == 0 else None]
        dist.broadcast_object_list(box, src=0)
        scores = box[0]
        assert scores is not None
        return scores

    return validate


def write_reports(config: Config, model: Any, processor: Any, studies: Iterator[Study]) -> list[tuple[str, str, str]]:
    """(study id, report, whole reference) of each study; a study that fails has an empty report and counts."""
    from megpt.generation.writer import ReportWriter

    writer = ReportWriter((model, processor), config.generate, config.seed)
    written = []
    for prediction in writer.write(with_films(config, processor, studies)):
        reference = getattr(prediction.study, config.data.section)
        if reference and clean(reference, config.data.cleaner).strip():
            written.append((prediction.study.study_id, prediction.report or "", reference))
    return written


def with_films(config: Config, processor: Any, studies: Iterator[Study]) -> Iterator[tuple[Study, Any]]:
    for study in studies:
        try:
            yield (
                study,
                load_films(
                    study,
                    size=processor.image_size,
                    max_views=config.data.max_views,
                    max_pixels=config.data.max_pixels,
                ),
            )
        except UnreadableFilm as error:
            yield study, error


def score(config: Config, shares: list[list[tuple[str, str, str]]]) -> dict[str, float]:
    """Scores over the shares of all workers, each study once."""
    from megpt.evaluation import score_reports
    from megpt.evaluation.statistics import CLINICAL

    by_study = {study: (report, reference) for share in shares for study, report, reference in share}
    pairs = [by_study[study] for study in sorted(by_study)]
    metric = config.train.best_metric
    return score_reports(
        [report for report, _ in pairs],
        [reference for _, reference in pairs],
        cleaner=config.data.cleaner,
        meteor=metric == "METEOR",
        clinical=metric in CLINICAL,
    )
