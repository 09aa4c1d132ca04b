"""Which observations each training report calls present: for balanced sampling, and for the label loss.

    present = open_observations(samples, lambda: training_studies(config), folder, config.data, observe)
    GlobalOrder(len(samples), 16, seed, weights=rarity(present, power=0.5))

They are the archive's own labels where a study has any, else those that are read from its report.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megpt.config import DataConfig
from megpt.output import write_aside
from megpt.study import CHEXPERT, Study
from megpt.training.samples import Samples

Observe = Callable[[list[str]], npt.NDArray[np.bool_]]
"""N report texts → (N, 14): which observations they call present, in the order of `megpt.study.CHEXPERT`."""
FILE = "observations.npy"
BATCH = 256


def open_observations(
    samples: Samples, studies: Callable[[], Iterable[Study]], folder: Path, data: DataConfig, observe: Observe
) -> npt.NDArray[np.bool_]:
    """(N, 14) of the samples in their order; the first process of a node computes them, the others read its file."""
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / FILE).exists():
            found = dict(_read(studies(), data.section, observe))
            with write_aside(folder / FILE) as temporary, temporary.open("wb") as file:
                np.save(file, np.stack([found[name] for name in samples.ids]))
    present: npt.NDArray[np.bool_] = np.load(folder / FILE)
    return present


def _read(studies: Iterable[Study], section: str, observe: Observe) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    stream = iter(studies)
    while group := list(islice(stream, BATCH)):
        for study, row in zip(group, stated_by(group, section, observe), strict=True):
            yield study.study_id, row


def stated_by(studies: list[Study], section: str, observe: Observe) -> npt.NDArray[np.bool_]:
    """(N, 14): the archive's own labels of a study, else what its report says."""
    read = observe([getattr(study, section) or "" for study in studies])
    return np.stack(
        [
            np.array([study.labels.get(name) == 1 for name in CHEXPERT]) if study.labels else row
            for study, row in zip(studies, read, strict=True)
        ]
    )


def rarity(present: npt.NDArray[np.bool_], *, power: float) -> npt.NDArray[np.float64]:
    """How often to draw each study, (N,) ≥ 1: (f_max / f)^power of its rarest observation, where f is the share of
    studies that have it and f_max that of the commonest; 1 for a study without any.

    Source: repeat factor sampling (Gupta et al., "LVIS", 2019), which has a power of ½, with f_max as its threshold.
    """
    count = present.sum(0)
    factor = (count.max() / np.maximum(count, 1)) ** power
    return np.maximum(1.0, (present * factor).max(1))
