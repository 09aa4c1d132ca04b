"""The probability from which findings are told, chosen on the validation split when a run has ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megpt.config import Config
from megpt.errors import InputError
from megpt.films.decode import UnreadableFilm
from megpt.model.findings import THRESHOLD, best_threshold
from megpt.study import Study
from megpt.training.observations import stated_by
from ray_jobs.train.validate import validation_studies, with_films


def threshold_setter(config: Config, observe: Callable[[list[str]], Any]) -> Callable[[Any, Any], dict[str, Any]]:
    """`Hooks.exported`: chooses `model.findings_threshold` on the validation split, where the config leaves it open.

    Its part of the summary is `findings`: the threshold, the head's micro-F1 over 13 observations, and the studies.
    """

    def choose(model: Any, processor: Any) -> dict[str, Any]:
        if not config.model.findings:
            return {}
        given = config.generate.findings_threshold, config.model.findings_threshold
        if (named := next((value for value in given if value is not None), None)) is not None:
            model.config.findings_threshold = named  # also where no validation has said so
            return {}
        probabilities, stated = [], []
        studies = with_films(config, processor, _held_out(config))
        while batch := list(islice(studies, config.generate.slots)):
            readable = [(study, films) for study, films in batch if not isinstance(films, UnreadableFilm)]
            if readable:
                probabilities.append(_probabilities(model, processor, [films for _, films in readable]))
                stated.append(stated_by([study for study, _ in readable], config.data.section, observe))
        if not probabilities:
            return {"findings": {"threshold": THRESHOLD, "micro_f1": None, "studies": 0}}
        threshold, f1 = best_threshold(torch.cat(probabilities), torch.from_numpy(np.concatenate(stated)))
        model.config.findings_threshold = threshold
        return {"findings": {"threshold": threshold, "micro_f1": round(f1, 4), "studies": sum(map(len, stated))}}

    return choose


def _held_out(config: Config) -> Iterator[Study]:
    try:
        yield from validation_studies(config)
    except InputError:  # a table without that split, which a run without validation need not have
        return


def _probabilities(model: Any, processor: Any, films: list[Any]) -> Tensor:
    """(N, 13) of the observations that the films show."""
    made, weight = processor(images=films, return_tensors="pt"), next(model.parameters())
    training = model.training
    with torch.no_grad():
        model.eval()
        visual = model.encode(made["pixel_values"].to(weight.device, weight.dtype), made["view_mask"].to(weight.device))
        model.train(training)
    return visual.findings.sigmoid().cpu()
