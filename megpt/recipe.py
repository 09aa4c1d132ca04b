"""A recipe: how report text is made into the words that are compared, as one name that travels with every score.

    r2gen-iu              a published cleaner
    r2gen-iu+unk3+59      its words seen fewer than three times in training become <unk>; references end after 59 words
    none+dotsplit         the text unchanged, but `effusion.` becomes `effusion .`
    ptb                   the PTB tokenizer of pycocoevalcap: lower case, punctuation removed

A name is a base, then parts joined by `+`, each at most once and in any order; `str(recipe)` gives the usual order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from megpt.errors import InputError, did_you_mean

BASES = ("none", "r2gen-iu", "r2gen-mimic", "r2gengpt-iu", "r2gengpt-mimic", "ptb")
PARTS = "unkN (words seen fewer than N times in training), N (references cut after N words), dotsplit, ptb"
UNKNOWN = "<unk>"
"""What R2Gen's tokenizer writes for a rare word."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A parsed name; the parts are applied in the order of the fields."""

    base: str = "none"
    dotsplit: bool = False
    """A full stop at the end of a word becomes a word of its own."""
    ptb: bool = False
    """The PTB tokenizer runs over the text, as in COCO's evaluation."""
    unk: int | None = None
    """Words seen fewer times than this in the training reports become `<unk>`, in both texts."""
    cut: int | None = None
    """References end after this many words, as R2Gen's data loader cuts them; generated text is never cut."""

    def __str__(self) -> str:
        if self == Recipe(ptb=True):
            return "ptb"
        parts = [self.base, *(["dotsplit"] if self.dotsplit else []), *(["ptb"] if self.ptb else [])]
        parts += [f"unk{self.unk}"] if self.unk else []
        return "+".join([*parts, *([str(self.cut)] if self.cut else [])])

    @property
    def to_the_letter(self) -> bool:
        """Whether texts are compared exactly as they stand, repeated blanks included."""
        return self == Recipe()

    @property
    def scoring_only(self) -> str | None:
        """The first part that makes sense for a score only, not for text that is learnt; None without one."""
        if self.ptb:
            return "ptb"
        return f"+unk{self.unk}" if self.unk else f"+{self.cut}" if self.cut else None


@lru_cache(maxsize=64)
def parse_recipe(name: str) -> Recipe:
    """The recipe with a given name.

    Raises:
        InputError: an unknown base or part, a part given twice, or a number that makes no sense. Names the choices.
    """
    base, *parts = name.split("+")
    if base not in BASES:
        raise InputError(f"unknown cleaner {base!r}" + _of(name, base), next=did_you_mean(base, list(BASES)))
    found: dict[str, bool | int] = {"ptb": True} if base == "ptb" else {}
    for part in parts:
        field, value = _part(part, name)
        if field in found:
            raise InputError(f"cleaner {name!r} sets {field} twice", cause=f"at {part!r}", next="name each part once")
        found[field] = value
    return Recipe(base="none" if base == "ptb" else base, **found)  # type: ignore[arg-type]


def _part(part: str, name: str) -> tuple[str, bool | int]:
    if part in ("dotsplit", "ptb"):
        return part, True
    match = re.fullmatch(r"(unk)?([0-9]{1,6})", part)
    if match is None:
        raise InputError(f"unknown part {part!r} of the cleaner {name!r}", next=f"known parts: {PARTS}")
    number, least = int(match[2]), 2 if match[1] else 1
    if number < least:
        raise InputError(
            f"part {part!r} of the cleaner {name!r} does nothing", next=f"give a number of {least} or more"
        )
    return ("unk" if match[1] else "cut"), number


def _of(name: str, base: str) -> str:
    return "" if name == base else f" in {name!r}"
