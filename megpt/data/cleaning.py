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

from megpt.errors import InputError
from megpt.recipe import Recipe, parse_recipe

PUNCTUATION = r"[.,?;*!%^&_+():-\[\]{}]"
PUNCTUATION_KEEPING_COLON = r"[.,?;*!%^&_+()\[\]{}]"

_QUOTES = str.maketrans("", "", "\"'/\\")


@dataclass(frozen=True)
class CleaningRule:
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
    "r2gen-iu": CleaningRule(folds=False, dot_passes=3, removed=re.compile(PUNCTUATION)),
    "r2gen-mimic": CleaningRule(folds=True, dot_passes=8, removed=re.compile(PUNCTUATION)),
    "r2gengpt-iu": CleaningRule(folds=False, dot_passes=3, removed=re.compile(PUNCTUATION)),
    "r2gengpt-mimic": CleaningRule(
        folds=True, dot_passes=8, removed=re.compile(PUNCTUATION_KEEPING_COLON), spaced_colon=True
    ),
}
UNDERSCORE_PASSES, SPACE_PASSES = 7, 6

_WORD_END_STOP = re.compile(r"(?<=[^\s.])(\.+)(?=\s|$)")

# The numbers of a numbered list, in the order in which they are removed.
_NUMBERS = (("1. ", ""), *((f". {n}. ", ". ") for n in "2345"), *((f" {n}. ", ". ") for n in "2345"))


def clean(text: str, cleaner: str) -> str:
    """A report as the named convention writes it, to be learnt from.

    Args:
        text: the report as the archive has it.
        cleaner: `none` (the text unchanged), r2gen-iu, r2gen-mimic, r2gengpt-iu or r2gengpt-mimic, and `+dotsplit`.

    Raises:
        InputError: as for `learnable`.
    """
    recipe = learnable(cleaner)
    text = published(text, recipe.base)
    return split_stops(text) if recipe.dotsplit else text


def learnable(cleaner: str) -> Recipe:
    """The recipe of text that is learnt.

    Raises:
        InputError: an unknown cleaner, or a part of one that only a score can have (`+unk3`, `+59`, `ptb`).
    """
    recipe = parse_recipe(cleaner)
    if part := recipe.scoring_only:
        raise InputError(
            f"the cleaner {cleaner!r} is for scores only",
            cause=f"{part} changes what is compared, not the reports that a model learns",
            next=f"set data.cleaner={recipe.base} for this job, and keep {cleaner} for `megpt evaluate`",
        )
    return recipe


def split_stops(text: str) -> str:
    """`effusion.` → `effusion .`: full stops at the end of a word become words of their own; `3.5` stays."""
    return _WORD_END_STOP.sub(lambda match: "".join(" ." for _ in match[1]), text)


def published(text: str, base: str) -> str:
    """The text as the published cleaner `base` returns it, to the letter; unchanged for `none`."""
    if base == "none":
        return text
    rule = RULES[base]
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


def _sentence(sentence: str, rule: CleaningRule) -> str:
    return rule.removed.sub("", sentence.translate(_QUOTES).strip().lower())


def _repeat(text: str, old: str, new: str, times: int) -> str:
    for _ in range(times):
        text = text.replace(old, new)
    return text
