"""What a phantom patient has: findings of known kind, side, place and size, drawn from a seed.

    patient = draw_patient(seed=42, index=7)

Findings are independent of one another and about a quarter of the patients have none, so no report can be guessed
without its films. Lengths are fractions of the film's half width; places lie in the frame of `drawing`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Side = Literal["left", "right", "both", ""]

OBSERVATIONS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Lung Lesion",
    "Pleural Effusion",
    "Pneumothorax",
    "Support Devices",
)
"""The CheXpert observations that are drawn; a patient with none of them is a "No Finding"."""

NORMAL_FRACTION = 0.25
"""Patients without a finding."""
COUNT_WEIGHTS = (0.4, 0.35, 0.25)
"""Odds of one, two and three findings in the others."""

DEVICES = ("pacemaker", "central venous catheter", "endotracheal tube")


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding: a CheXpert observation with what a radiologist would say of it.

    `size` is in [0, 1], small to large; `zone` is upper or lower (lung findings); `kind` names the device.
    `x`, `y`, `z` shift the finding within its place, each in [-1, 1] (across, down, front to back).
    """

    observation: str
    side: Side = ""
    zone: str = ""
    size: float = 0.0
    kind: str = ""
    x: float = 0.0
    y: float = 0.0
    z: float = 0.0


@dataclass(frozen=True, slots=True)
class Patient:
    """One study's truth. The generator that made it draws pose and wording apart, so each can change alone."""

    index: int
    findings: tuple[Finding, ...]
    lateral: bool
    heart: float
    """Half width of the heart."""

    def labels(self, denied: tuple[str, ...] = ()) -> dict[str, int]:
        """CheXpert labels: 1 for what is there, 0 for what the report denies; the rest is not mentioned."""
        labels = dict.fromkeys(denied, 0)
        labels |= {finding.observation: 1 for finding in self.findings}
        # As in CheXpert, a support device alone is no finding.
        if all(finding.observation == "Support Devices" for finding in self.findings):
            labels["No Finding"] = 1
        return labels


def generator(seed: int, index: int, purpose: int) -> np.random.Generator:
    """The random numbers of one patient for one purpose; the same on every machine."""
    return np.random.default_rng([seed, index, purpose])


def draw_patient(seed: int, index: int) -> Patient:
    """The patient number `index` of the archive that `seed` names."""
    rng = generator(seed, index, 0)
    chosen: list[str] = []
    if rng.random() >= NORMAL_FRACTION:
        count = 1 + int(rng.choice(len(COUNT_WEIGHTS), p=COUNT_WEIGHTS))
        chosen = [OBSERVATIONS[i] for i in sorted(rng.choice(len(OBSERVATIONS), size=count, replace=False))]
    findings = tuple(_finding(name, rng) for name in chosen)
    enlarged = next((f for f in findings if f.observation == "Cardiomegaly"), None)
    heart = 0.50 + 0.12 * enlarged.size if enlarged else rng.uniform(0.28, 0.36)
    return Patient(index=index, findings=findings, lateral=bool(rng.random() < 0.5), heart=float(heart))


def _finding(name: str, rng: np.random.Generator) -> Finding:
    side: Side = "left" if rng.random() < 0.5 else "right"
    zone = "upper" if rng.random() < 0.5 else "lower"
    size, x, y, z = (float(v) for v in (rng.random(), *rng.uniform(-1, 1, 3)))
    kind = ""
    if name in ("Cardiomegaly", "Edema"):
        side = ""
    if name == "Pleural Effusion" and rng.random() < 0.2:
        side = "both"
    if name not in ("Consolidation", "Lung Lesion"):
        zone = ""
    if name == "Support Devices":
        kind = DEVICES[int(rng.integers(len(DEVICES)))]
        side = "" if kind == "endotracheal tube" else side
    return Finding(observation=name, side=side, zone=zone, size=size, kind=kind, x=x, y=y, z=z)
