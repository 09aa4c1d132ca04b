"""Ids that mean the same study though they are written otherwise: 12, 12.0, "0012", "s12".

They are matched only where nothing is ambiguous, and it is said how many were.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import Any

SCREENFUL = 100
"""Ids that an error names."""
AMBIGUOUS = "\0"
_DIGITS = re.compile(r"s?0*([0-9]+)(?:\.0+)?", re.IGNORECASE)
_FLOAT = re.compile(r"[0-9]{1,20}(?:\.[0-9]{1,20})?[eE]\+?[0-9]{1,2}")


def as_id(value: Any) -> str | None:
    """An id as text; None for an empty one. A whole float is the integer that pandas made it from."""
    if value is None or isinstance(value, (bool, dict, list)) or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None


def loose(study: str) -> str:
    """The same text for ids that differ only in type, leading zeros, MIMIC's `s` or letter case."""
    study = study.strip()
    if match := _DIGITS.fullmatch(study):
        return match[1]
    if _FLOAT.fullmatch(study):
        try:
            number = Decimal(study)
        except InvalidOperation:
            return study.casefold()
        if number == number.to_integral_value():
            return str(int(number))
    return study.casefold()


class Matcher:
    """The ids of the predictions, to be found by those of another file.

    `find` is exact, or loose where only one prediction has that loose form. A loose form that two predictions share
    matches nothing.
    """

    def __init__(self, ids: Iterable[str]):
        self.exact = set(ids)
        self._loose: dict[str, str] = {}
        for study in self.exact:
            form = loose(study)
            self._loose[form] = AMBIGUOUS if form in self._loose else study

    def find(self, other: str) -> tuple[str | None, bool]:
        """(the prediction's id or None, whether it is written in the same way)."""
        if other in self.exact:
            return other, True
        found = self._loose.get(loose(other))
        return (None if found == AMBIGUOUS else found), False


def named(ids: list[str]) -> str:
    """Ids in one line, up to a screenful."""
    rest = f" and {len(ids) - SCREENFUL} more" if len(ids) > SCREENFUL else ""
    return ", ".join(map(shown, ids[:SCREENFUL])) + rest


def shown(study: str) -> str:
    """An id for the screen; of what cannot be one, such as a report in the wrong column, only the length."""
    return study if len(study) <= 64 and len(study.split()) < 4 else f"({len(study)} characters)"
