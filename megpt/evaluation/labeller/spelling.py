"""Misspelt words of findings set right: "pnuemothorax", "atelectesis", "effsion".

A word that is not known and one slip (letter dropped, added, replaced, or two swapped) from exactly one word that
matters is read as that word; two slips where the word is long. A word that exists is left alone: `NEIGHBOURS` are the
English and medical words that lie as near.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

TARGETS = (
    *("atelectasis", "atelectatic", "cardiomegaly", "consolidation", "consolidations", "edema", "effusion", "effusions"),
    *("pneumothorax", "pneumothoraces", "pneumonia", "opacity", "opacities", "opacification", "infiltrate"),
    *("infiltrates", "infiltration", "nodule", "nodules", "fracture", "fractures", "pacemaker", "catheter", "catheters"),
    *("tracheostomy", "pleural", "emphysema", "mediastinum", "mediastinal", "cardiomediastinal", "enlarged"),
    *("enlargement", "congestion", "thickening", "scarring", "granuloma", "silhouette", "hydropneumothorax", "hemothorax"),
    *("defibrillator", "malignancy", "metastases", "carcinoma", "subsegmental", "bibasilar", "bilateral", "without"),
    *("evidence", "unchanged", "resolved", "removed", "cardiac", "vascular", "interstitial", "pulmonary", "airspace"),
    *("bronchopneumonia", "hyperinflation", "widened", "possible", "probable", "questionable", "suspicious", "moderate"),
)
"""Words whose misspelling would change a label, a side or a size."""

NEIGHBOURS = frozenset(
    (
        *("module", "modules", "noodle", "modular", "nodular", "nodulus", "nobule", "pleura", "plural", "pleurae"),
        *("traction", "fractured", "facture", "factures", "fraction", "fractions", "fracturing", "catheterized"),
        *("catheterize", "enlarge", "enlarges", "enlarger", "diffusion", "perfusion", "infusion", "effusive", "profusion"),
        *("suffusion", "affusion", "infiltrated", "infiltrating", "filtrate", "filtrates", "filtration", "infiltrative"),
        *("opaque", "capacity", "capacities", "scaring", "starring", "searing", "scarred", "sparring", "congestive"),
        *("digestion", "suggestion", "congestions", "pneumonic", "pneumonias", "pneumonitis", "enema", "edemas"),
        *("consolidated", "consolidating", "consolidative", "thickened", "thickenings", "bilaterally", "lateral"),
        *("unilateral", "collateral", "trilateral", "removes", "remover", "remove", "removal", "resolve", "resolves"),
        *("resolving", "dissolved", "involved", "revolved", "evolved", "evident", "evidenced", "evidences", "changed"),
        *("within", "witless", "vasculature", "avascular", "vasculer", "jugular", "valvular", "cardia", "cardial"),
        *("granulomas", "granulomata", "possibly", "probably", "passible", "moderately", "moderated", "moderates"),
        *("suspicion", "suspicions", "widener", "widens", "windowed", "whitened", "hardened", "widen", "proable"),
        *("metastasis", "metastatic", "metastasized", "emphysematous", "empyema", "mediastinitis", "metastase"),
        *("atelectases", "pneumothoraxes", "pneumatic", "pacemakers", "peacemaker", "tracheotomy", "silhouettes"),
        *("malignant", "benignancy", "enlarging", "segmental", "subsegment", "subsegments", "airspaces", "opacified"),
        *("defibrillators", "carcinomas", "carcinoid", "granulated", "hyperinflated", "interstitium", "without"),
        *("hypoinflation", "inflation", "cardiomyopathy", "fissures", "structures", "ruptured", "sutures", "textures"),
        *("deflation", "reinflation", "hypoinflated", "hydrothorax", "haemothorax", "pyothorax", "chylothorax"),
        *("pyopneumothorax", "hemopneumothorax", "fibrothorax", "pneumothorace", "evidential", "provable"),
    )
)
"""Words as near to a target that mean something else, or are forms that the dictionary has itself."""

_LETTERS_FOR_ONE, _LETTERS_FOR_TWO = 5, 9


@functools.cache
def _deletions() -> dict[str, set[str]]:
    """What is left of each target after up to two deletions → the targets."""
    found: dict[str, set[str]] = {}
    for target in TARGETS:
        for left in _shortened(target, 2 if len(target) >= _LETTERS_FOR_TWO else 1):
            found.setdefault(left, set()).add(target)
    return found


@functools.lru_cache(maxsize=50_000)
def corrected(word: str, known: frozenset[str]) -> str:
    """`word`, or the target it is a misspelling of."""
    if word in known or word in NEIGHBOURS or len(word) < _LETTERS_FOR_ONE or len(word) > 24 or not word.isalpha():
        return word
    two = len(word) >= _LETTERS_FOR_TWO
    near = {t for left in _shortened(word, 2 if two else 1) for t in _deletions().get(left, ())}
    best: list[tuple[int, str]] = []
    for target in near:
        most = 2 if two and len(target) >= _LETTERS_FOR_TWO else 1
        slips = distance(word, target)
        # Few slip at the first letter but for a silent p, and a short word is another one then.
        if slips <= most and (word[0] == target[0] or (slips == 1 and len(target) >= _LETTERS_FOR_TWO - 1)):
            best.append((slips, target))
    best.sort()
    alone = best and (len(best) == 1 or best[0][0] < best[1][0])
    return best[0][1] if alone else word


def distance(a: str, b: str) -> int:
    """Letters dropped, added, replaced or swapped with their neighbour between two words (optimal string alignment)."""
    rows = [list(range(len(b) + 1))]
    for i in range(1, len(a) + 1):
        row = [i]
        for j in range(1, len(b) + 1):
            cost = min(rows[i - 1][j] + 1, row[j - 1] + 1, rows[i - 1][j - 1] + (a[i - 1] != b[j - 1]))
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                cost = min(cost, rows[i - 2][j - 2] + 1)
            row.append(cost)
        rows.append(row)
    return rows[-1][-1]


def _shortened(word: str, deletions: int) -> Iterator[str]:
    seen: Iterable[str] = {word}
    yield word
    for _ in range(deletions):
        seen = {w[:i] + w[i + 1 :] for w in seen for i in range(len(w))}
        yield from seen
