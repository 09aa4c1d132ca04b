r"""The published ways of normalising a report, and none.

A score without its cleaner's name is not comparable: R2Gen (Chen et al., 2020) and R2GenGPT (Wang et al., 2023) each
clean IU X-Ray and MIMIC-CXR reports in their own way, and CIDEr moves by 15 % between conventions. What they share:
numbered lists lose their numbers, text is split into sentences at `. `, punctuation goes, and the sentences are
joined with ` . `. `RULES` says where they differ. Their quirks are kept to the letter, because published scores depend
on them: `10. Ten 11. Eleven` becomes `10 . ten 1eleven .`, and a character class written `:-\[` in R2Gen removes
everything from `:` to `[` in ASCII (`: ; < = > ? @ A-Z [`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from megpt.errors import InputError, did_you_mean

PUNCTUATION = r"[.,?;*!%^&_+():-\[\]{}]"
PUNCTUATION_KEEPING_COLON = r"[.,?;*!%^&_+()\[\]{}]"

_QUOTES = str.maketrans("", "", "\"'/\\")


@dataclass(frozen=True)
class Rule:
    """The rules in which one convention differs from another."""

    folds: bool
    """Line feeds become spaces; runs of spaces and of underscores become one (up to the published repetitions)."""
    dot_passes: int
    """How often `..` becomes `.`."""
    removed: re.Pattern[str]
    """The characters deleted inside a sentence."""
    spaced_colon: bool = False
    """`:` becomes ` :` and stays."""


RULES = {
    "r2gen-iu": Rule(folds=False, dot_passes=3, removed=re.compile(PUNCTUATION)),
    "r2gen-mimic": Rule(folds=True, dot_passes=8, removed=re.compile(PUNCTUATION)),
    "r2gengpt-iu": Rule(folds=False, dot_passes=3, removed=re.compile(PUNCTUATION)),
    "r2gengpt-mimic": Rule(folds=True, dot_passes=8, removed=re.compile(PUNCTUATION_KEEPING_COLON), spaced_colon=True),
}
UNDERSCORE_PASSES, SPACE_PASSES = 7, 6
CLEANERS = ("none", *RULES)

# The numbers of a numbered list, in the order in which they are removed.
_NUMBERS = (("1. ", ""), *((f". {n}. ", ". ") for n in "2345"), *((f" {n}. ", ". ") for n in "2345"))


def clean(text: str, cleaner: str) -> str:
    """A report as the named convention writes it.

    Args:
        text: the report from the archive.
        cleaner: `none` (the text unchanged), r2gen-iu, r2gen-mimic, r2gengpt-iu or r2gengpt-mimic.

    Raises:
        InputError: an unknown cleaner.
    """
    if cleaner == "none":
        return text
    rule = RULES.get(cleaner)
    if rule is None:
        raise InputError(f"unknown cleaner {cleaner!r}", next=did_you_mean(cleaner, list(CLEANERS)))
    if rule.folds:
        text = _repeat(text.replace("\n", " "), "__", "_", UNDERSCORE_PASSES)
        text = _repeat(text, "  ", " ", SPACE_PASSES)
    text = _repeat(text, "..", ".", rule.dot_passes)
    for number, replacement in _NUMBERS:
        text = text.replace(number, replacement)
    if rule.spaced_colon:
        # before the split into sentences: `.:` ends one after it has become `. :`
        text = text.replace(":", " :")
    sentences = [_sentence(sentence, rule) for sentence in text.strip().lower().split(". ")]
    return " . ".join(sentences) + " ."


def _sentence(sentence: str, rule: Rule) -> str:
    return rule.removed.sub("", sentence.translate(_QUOTES).strip().lower())


def _repeat(text: str, old: str, new: str, times: int) -> str:
    for _ in range(times):
        text = text.replace(old, new)
    return text
