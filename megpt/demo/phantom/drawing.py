"""Drawing a phantom's films: soft shapes on a unit frame, about a millisecond each.

The frame: u runs from -1 (the patient's right, which is the image's left) to +1, v from -1 (neck) to +1 (abdomen);
on a lateral film u runs from front to back. Frontal and lateral of one patient are drawn from the same findings,
so what is high and in front on one is high and in front on the other.
"""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np

from megpt.demo.phantom.patient import Finding, Patient, generator

Array = np.ndarray
LUNG_X, LUNG_WIDTH, LUNG_TOP = 0.44, 0.33, -0.68
"""Centre and half width of a lung, and its apex."""
FLOOR = 0.52
"""Where the diaphragm stands in the middle of a lung."""
NOISE = 0.018


def draw_film(patient: Patient, position: str, size: int, seed: int) -> Array:
    """One film, 8 bit grey.

    Args:
        position: "PA" (frontal) or "LATERAL".
        size: the shorter side in pixels.

    Returns:
        (H, W) uint8; the same bytes for the same arguments.
    """
    lateral = position == "LATERAL"
    rng = generator(seed, patient.index, 2 if lateral else 1)
    u, v = _posed(size, round(size * (1.2 if lateral else 1.05)), rng)
    image = (_lateral if lateral else _frontal)(patient, u, v)
    gain, gamma = rng.uniform(0.85, 1.0), rng.uniform(0.85, 1.2)
    image = gain * np.clip(image, 0, 1) ** gamma + rng.normal(0, NOISE, image.shape).astype(np.float32)
    return np.asarray(np.clip(image, 0, 1) * 255, np.uint8)


@lru_cache(maxsize=8)
def _frame(width: int, height: int) -> tuple[Array, Array]:
    v, u = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    return u.astype(np.float32), v.astype(np.float32)


def _posed(width: int, height: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """The frame as this patient stood: a little shifted, turned and scaled."""
    u, v = _frame(width, height)
    turn, (du, dv), scale = rng.normal(0, 0.025), rng.normal(0, 0.025, 2), rng.uniform(0.95, 1.06)
    return (
        np.float32(scale) * (u + np.float32(turn) * v + np.float32(du)),
        np.float32(scale) * (v - np.float32(turn) * u + np.float32(dv)),
    )


def _edge(distance: Array, softness: float = 0.02) -> Array:
    """1 where `distance` is well above 0, 0 well below, smooth between."""
    return 0.5 + 0.5 * np.tanh(distance / softness)


def _ellipse(u: Array, v: Array, x: float, y: float, a: float, b: float, softness: float = 0.08) -> Array:
    return _edge(1 - ((u - x) / a) ** 2 - ((v - y) / b) ** 2, softness)


def _blob(u: Array, v: Array, x: float, y: float, a: float, b: float) -> Array:
    return np.exp(-(((u - x) / a) ** 2) - ((v - y) / b) ** 2)


def _stroke(u: Array, v: Array, points: list[tuple[float, float]], width: float) -> Array:
    """A polyline as a soft mask: nearest distance to any of its segments."""
    nearest = np.full_like(u, np.inf)
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        dx, dy = x1 - x0, y1 - y0
        t = np.clip(((u - x0) * dx + (v - y0) * dy) / (dx * dx + dy * dy), 0, 1)
        nearest = np.minimum(nearest, (u - x0 - t * dx) ** 2 + (v - y0 - t * dy) ** 2)
    return np.exp(-nearest / width**2)


def _over(image: Array, mask: Array, level: float) -> Array:
    """Paint `level` where `mask` is 1."""
    return image + mask * (level - image)


def _sign(side: str) -> float:
    return 1.0 if side == "left" else -1.0


def _lung(u: Array, v: Array, sign: float) -> tuple[Array, Array]:
    """Mask of one lung on a frontal film, and the height of its floor (the diaphragm's dome) at each u."""
    across = (u - sign * LUNG_X) / LUNG_WIDTH
    floor = FLOOR + 0.10 * across**2
    top = LUNG_TOP + 0.30 * np.abs(across) ** 3
    mask = _edge(1 - np.abs(across), 0.06) * _edge(floor - v) * _edge(v - top, 0.04)
    return mask, floor


def _place(finding: Finding) -> tuple[float, float]:
    """Where a lung finding lies on a frontal film."""
    height = -0.36 if finding.zone == "upper" else 0.22
    return _sign(finding.side) * (LUNG_X + 0.10 * finding.x), height + 0.09 * finding.y


def _frontal(patient: Patient, u: Array, v: Array) -> Array:
    body = _edge(0.95 - np.abs(u) - 0.25 * np.maximum(0, -0.55 - v), 0.03)
    image = 0.04 + body * (0.62 + 0.08 * _edge(v - 0.6, 0.2))
    lungs = {side: _lung(u, v, _sign(side)) for side in ("left", "right")}
    for mask, _ in lungs.values():
        image = _over(image, mask, 0.24)
    ribs = np.cos(14 * (v + 0.25 * (np.abs(u) - 0.45) ** 2 - 0.12 * np.abs(u)))
    image = image + 0.035 * body * _edge(ribs - 0.4, 0.3) * _edge(np.abs(u) - 0.1, 0.05)
    for sign in (-1, 1):
        image = image + 0.10 * _stroke(u, v, [(sign * 0.10, -0.60), (sign * 0.80, -0.76)], 0.035)
        image = image + 0.12 * _blob(u, v, sign * 0.19, -0.10, 0.09, 0.14)
    for finding in patient.findings:
        if finding.observation in _UNDER_HEART:
            image = _UNDER_HEART[finding.observation](image, finding, u, v, lungs)
    image = _over(image, _edge(0.13 - np.abs(u), 0.03) * _edge(0.7 - v, 0.1) * body, 0.74)
    heart = _ellipse(u, v, 0.32 * patient.heart, 0.26, patient.heart, 0.20 + 0.30 * patient.heart)
    image = _over(image, heart * _edge(0.62 - v), 0.76)
    for finding in patient.findings:
        if finding.observation in _OVER_HEART:
            image = _OVER_HEART[finding.observation](image, finding, u, v, lungs)
    return image


def _consolidation(image: Array, finding: Finding, u: Array, v: Array, lungs: dict) -> Array:
    x, y = _place(finding)
    extent = 0.17 + 0.07 * finding.size
    patches = 0.85 + 0.15 * np.sin(23 * u + 5 * finding.x) * np.sin(19 * v + 5 * finding.y)
    return _over(image, 0.95 * lungs[finding.side][0] * _blob(u, v, x, y, extent, extent) * patches, 0.72)


def _edema(image: Array, finding: Finding, u: Array, v: Array, lungs: dict) -> Array:
    haze = sum(_blob(u, v, sign * 0.34, -0.05, 0.20, 0.38) for sign in (-1, 1))
    streaks = 0.7 + 0.3 * np.sin(40 * v + 18 * np.abs(u)) * np.sin(34 * np.abs(u) - 12 * v)
    mask = lungs["left"][0] + lungs["right"][0]
    return image + (0.24 + 0.10 * finding.size) * haze * streaks * mask


def _atelectasis(image: Array, finding: Finding, u: Array, v: Array, lungs: dict) -> Array:
    sign, y = _sign(finding.side), 0.34 + 0.05 * finding.y
    bands = sum(
        _stroke(u, v, [(sign * 0.26, y + step), (sign * 0.68, y + step - 0.05 * finding.x - 0.08)], 0.038)
        for step in (-0.12, 0.02)
    )
    return image + (0.50 + 0.08 * finding.size) * lungs[finding.side][0] * bands


def _effusion(image: Array, finding: Finding, u: Array, v: Array, lungs: dict) -> Array:
    for side in ("left", "right") if finding.side == "both" else (finding.side,):
        mask, _ = lungs[side]
        outward = (u * _sign(side) - LUNG_X) / LUNG_WIDTH
        meniscus = 0.36 - 0.42 * finding.size - 0.14 * np.maximum(outward, -0.5) ** 2 * np.sign(outward)
        image = _over(image, mask * _edge(v - meniscus, 0.03), 0.72)
    return image


def _pneumothorax(image: Array, finding: Finding, u: Array, v: Array, lungs: dict) -> Array:
    """The lung's edge falls away from the chest wall; beyond its fine line there is air alone."""
    mask, _ = lungs[finding.side]
    depth = 0.12 + 0.16 * finding.size
    outward = (u * _sign(finding.side) - LUNG_X) / LUNG_WIDTH
    distance = 1 - 2.2 * depth - np.maximum(outward, -0.6) - 0.9 * np.maximum(0, -0.15 - v) ** 1.5
    air = mask * _edge(-distance, 0.04)
    line = mask * np.exp(-((distance / 0.07) ** 2))
    return image * (1 - 0.85 * air) + 0.28 * line


def _lesion(image: Array, finding: Finding, u: Array, v: Array, lungs: dict) -> Array:
    """A round nodule, about a tenth of a lung's width: the small finding."""
    x, y = _place(finding)
    radius = 0.070 + 0.025 * finding.size
    ratio = u.shape[0] / u.shape[1]
    return _over(image, 0.95 * _ellipse(u, v, x + 0.05 * finding.z, y, radius, radius / ratio, 0.25), 0.86)


def _device(image: Array, finding: Finding, u: Array, v: Array, lungs: dict) -> Array:
    sign = _sign(finding.side)
    if finding.kind == "pacemaker":
        box = _edge(0.12 - np.abs(u - sign * 0.62)) * _edge(0.09 - np.abs(v + 0.50 + 0.03 * finding.y))
        lead = _stroke(u, v, [(sign * 0.58, -0.48), (sign * 0.12, -0.42), (0.0, -0.10), (0.14, 0.38)], 0.018)
        return _over(_over(image, lead, 1.0), box, 1.0)
    if finding.kind == "central venous catheter":
        route = [(sign * 0.28, -0.98), (sign * 0.22, -0.62), (-0.10, -0.42), (-0.12, 0.02 + 0.05 * finding.y)]
        return _over(image, _stroke(u, v, route, 0.022), 1.0)
    tip = -0.28 + 0.06 * finding.y
    for x in (-0.035, 0.035):
        image = _over(image, _stroke(u, v, [(x, -1.0), (x, tip)], 0.018), 1.0)
    return image


_UNDER_HEART = {
    "Consolidation": _consolidation,
    "Edema": _edema,
    "Atelectasis": _atelectasis,
    "Pneumothorax": _pneumothorax,
    "Pleural Effusion": _effusion,
}
_OVER_HEART = {"Lung Lesion": _lesion, "Support Devices": _device}


def _lateral(patient: Patient, u: Array, v: Array) -> Array:
    body = _edge(0.85 - np.abs(u), 0.03)
    image = 0.04 + body * (0.60 + 0.08 * _edge(v - 0.5, 0.2))
    floor = 0.42 + 0.22 * _edge(u - 0.2, 0.35)
    lung = _edge(1 - (u / 0.72) ** 4 - ((v + 0.10) / 0.72) ** 4, 0.1) * _edge(floor - v)
    image = _over(image, lung, 0.26)
    image = image + 0.12 * body * _stroke(u, v, [(0.62, -1.0), (0.70, 0.0), (0.60, 1.0)], 0.10)
    image = image + 0.06 * lung * _edge(np.cos(14 * (v + 0.3 * u)) - 0.5, 0.3)
    heart = _ellipse(u, v, -0.28, 0.20, 0.7 * patient.heart + 0.06, 0.18 + 0.32 * patient.heart)
    image = _over(image, heart * lung, 0.66)
    for finding in patient.findings:
        image = _lateral_finding(image, finding, u, v, lung)
    return image


def _lateral_finding(image: Array, finding: Finding, u: Array, v: Array, lung: Array) -> Array:
    """What a finding looks like from the side, at the height it has on the frontal film."""
    name, y = finding.observation, _place(finding)[1]
    depth = 0.15 + 0.30 * finding.z
    if name == "Consolidation":
        extent = 0.19 + 0.07 * finding.size
        return _over(image, 0.9 * lung * _blob(u, v, depth, y, extent, extent), 0.72)
    if name == "Lung Lesion":
        radius = 0.065 + 0.025 * finding.size
        return _over(image, 0.95 * _ellipse(u, v, depth, y, radius, radius * u.shape[1] / u.shape[0], 0.25), 0.86)
    if name == "Pleural Effusion":
        return _over(image, lung * _edge(v - (0.42 - 0.40 * finding.size) + 0.25 * (u - 0.2), 0.03), 0.72)
    if name == "Edema":
        return image + (0.22 + 0.10 * finding.size) * lung * _blob(u, v, 0.0, -0.05, 0.35, 0.40)
    if name == "Atelectasis":
        y = 0.34 + 0.05 * finding.y
        return image + 0.36 * lung * _stroke(u, v, [(-0.1, y + 0.04), (0.45, y - 0.06)], 0.025)
    if name == "Pneumothorax":
        return image * (1 - 0.7 * lung * _edge(-0.42 - v + 0.1 * finding.size, 0.04))
    if finding.kind == "pacemaker":
        return _over(image, _ellipse(u, v, -0.72, -0.50, 0.06, 0.12), 1.0)
    if name == "Support Devices":
        tip = -0.28 if finding.kind == "endotracheal tube" else 0.02
        return _over(image, _stroke(u, v, [(0.05, -1.0), (0.0, tip + 0.05 * finding.y)], 0.022), 1.0)
    return image
