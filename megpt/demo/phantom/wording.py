"""A phantom's report: several wordings per finding, negatives among them, in an order that varies.

The phrases are those that rule-based labellers of chest reports expect; `{size}` and `{side}` come from the finding.
About one report in fifteen has a removed word, "XXXX", as in the public collections.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megpt.demo.phantom.patient import Finding, Patient, generator

XXXX_FRACTION = 0.07

POSITIVE: dict[str, tuple[str, ...]] = {
    "Atelectasis": (
        "there is atelectasis at the {side} base",
        "{side} basilar atelectasis",
        "linear atelectasis is seen at the {side} base",
    ),
    "Cardiomegaly": (
        "the heart is {degree} enlarged",
        "there is {degree2} cardiomegaly",
        "{degree2} cardiomegaly is seen",
    ),
    "Consolidation": (
        "there is consolidation in the {side} {zone} lobe",
        "{side} {zone} lobe consolidation",
        "focal consolidation is seen in the {side} {zone} lobe",
    ),
    "Edema": (
        "there is {degree2} pulmonary edema",
        "{degree2} pulmonary edema is seen",
        "findings of {degree2} interstitial edema",
    ),
    "Lung Lesion": (
        "there is a small nodule in the {side} {zone} lung",
        "small {side} {zone} lung nodule",
        "a pulmonary nodule is seen in the {side} {zone} lobe",
    ),
    "Pleural Effusion": (
        "there is a {size} {side} pleural effusion",
        "{size} {side} pleural effusion",
        "a {size} {side} pleural effusion is seen",
    ),
    "Pneumothorax": (
        "there is a {size} {side} pneumothorax",
        "{size} {side} pneumothorax",
        "a {size} {side} pneumothorax is seen",
    ),
    "pacemaker": ("{side} chest pacemaker is in place", "a {side} pacemaker is seen", "there is a {side} pacemaker"),
    "central venous catheter": (
        "{side} central venous catheter is in place",
        "a {side} central line is seen",
        "there is a {side} central venous catheter",
    ),
    "endotracheal tube": (
        "endotracheal tube is in place",
        "an endotracheal tube is seen",
        "there is an endotracheal tube above the carina",
    ),
}

NEGATIVE: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("Cardiomegaly",), ("the heart is normal in size", "heart size is normal", "no cardiomegaly")),
    (
        ("Pleural Effusion", "Pneumothorax"),
        ("no pleural effusion or pneumothorax", "there is no pneumothorax or pleural effusion"),
    ),
    (("Pleural Effusion",), ("no pleural effusion", "there is no pleural effusion")),
    (("Pneumothorax",), ("no pneumothorax", "there is no pneumothorax")),
    (("Consolidation",), ("no focal consolidation", "there is no focal consolidation")),
    (("Edema",), ("no pulmonary edema", "there is no pulmonary edema")),
    (("Lung Lesion",), ("no pulmonary nodule", "there is no lung nodule")),
)
NORMAL = ("the lungs are clear", "no acute cardiopulmonary abnormality", "normal chest")
NEGATIVE_FRACTION = 0.3
"""Chance that a report denies an absent finding, for each phrase of `NEGATIVE`."""


@dataclass(frozen=True, slots=True)
class DrawnReport:
    """`findings` is the body, `impression` its one-line conclusion; `denied` are the observations it rules out."""

    findings: str
    impression: str
    denied: tuple[str, ...]


def write_report(patient: Patient, seed: int) -> DrawnReport:
    """The report of one patient; the same text for the same arguments."""
    rng = generator(seed, patient.index, 3)
    present = {finding.observation for finding in patient.findings}
    positive = [_pick(POSITIVE[f.device or f.observation], rng).format(**_words(f)) for f in patient.findings]
    if not positive:
        positive = [_pick(NORMAL, rng)]
    negative: list[str] = []
    denied: list[str] = []
    for number in rng.permutation(len(NEGATIVE)):
        names, phrases = NEGATIVE[number]
        if rng.random() < NEGATIVE_FRACTION and not present & set(names) and not set(denied) & set(names):
            negative.append(_pick(phrases, rng))
            denied += names
    sentences = positive + negative
    order = rng.permutation(len(sentences))
    body = " ".join(f"{s[0].upper()}{s[1:]}." for s in (sentences[i] for i in order))
    if rng.random() < XXXX_FRACTION:
        body = _remove_word(body, rng)
    return DrawnReport(findings=body, impression=_impression(patient), denied=tuple(sorted(denied)))


def _pick(phrases: tuple[str, ...], rng: np.random.Generator) -> str:
    return phrases[int(rng.integers(len(phrases)))]


def _words(finding: Finding) -> dict[str, str]:
    large = finding.size >= 0.5
    return {
        "side": "bilateral" if finding.side == "both" else finding.side,
        "zone": finding.zone,
        "size": "large" if large else "small",
        "degree": "markedly" if large else "mildly",
        "degree2": "marked" if large else "mild",
    }


def _remove_word(body: str, rng: np.random.Generator) -> str:
    """Black out a word that carries no finding, as de-identification does when it takes too much."""
    words = body.split()
    harmless = [i for i, word in enumerate(words) if word in ("small", "large", "mild", "marked", "place.", "seen.")]
    if not harmless:
        return f"Comparison XXXX. {body}"
    spot = harmless[int(rng.integers(len(harmless)))]
    words[spot] = "XXXX." if words[spot].endswith(".") else "XXXX"
    return " ".join(words)


def _impression(patient: Patient) -> str:
    if not patient.findings:
        return "No acute disease."
    return " ".join(f"{(f.device or f.observation).capitalize()}." for f in patient.findings)
