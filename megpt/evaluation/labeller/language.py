"""Whether a report is English. Others are not labelled: a shared word ("kein Pneumothorax") would say the opposite."""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORD = re.compile(r"[^\W\d_]+")
_READ = 4_000
"""Characters by which a report's language is told."""

_ENGLISH = frozenset(
    (
        *("the", "of", "is", "are", "and", "with", "there", "without", "to", "for", "be", "has", "have", "was", "not"),
        *("seen", "normal", "left", "right", "lungs", "lung", "heart", "or", "within", "clear", "evidence", "size"),
        *("small", "chest", "mild", "large", "no", "in", "on", "at", "a", "an", "both", "status", "xxxx"),
    )
)
_FOREIGN = frozenset(
    (
        # French
        *("les", "est", "sont", "dans", "avec", "aux", "sur", "une", "pas", "poumon", "poumons", "coeur", "cœur"),
        *("epanchement", "droite", "gauche", "sans", "aucun", "aucune", "taille", "pleurale"),
        # Spanish, Portuguese, Italian
        *("los", "las", "del", "una", "sin", "hay", "con", "derrame", "izquierdo", "derecho", "izquierda", "derecha"),
        *("corazon", "pulmones", "silueta", "cardiaca", "neumonia", "neumotorax", "sem", "nao", "uma", "direito"),
        *("esquerdo", "pulmao", "gli", "della", "senza", "versamento", "polmoni", "cuore", "destro", "sinistro"),
        *("el", "ni", "observa", "pleurico", "cardiomegalia", "pneumotorace", "nel", "dei"),
        # German, Dutch
        *("kein", "keine", "keinen", "keiner", "und", "der", "das", "die", "den", "dem", "mit", "ohne", "nicht", "ist"),
        *("beidseits", "links", "rechts", "erguss", "pleuraerguss", "herz", "lunge", "lungen", "nachweis", "von"),
        *("het", "een", "geen", "zonder", "hart", "longen", "ein", "eine", "stauung", "infiltrat", "fraktur", "zum"),
    )
)
_CERTAIN = 2
"""Foreign words that make a report foreign where they outnumber the English ones."""


def is_foreign(text: str) -> bool:
    """Whether a lower-case text is written in another language, by its small words, accents and script."""
    words: Sequence[str] = _WORD.findall(text, 0, _READ)
    foreign = sum(map(_FOREIGN.__contains__, words))
    if not text.isascii():
        foreign += sum(not word.isascii() and word not in _FOREIGN for word in words)
    english = sum(map(_ENGLISH.__contains__, words))
    return foreign > english and (foreign >= _CERTAIN or not english)
