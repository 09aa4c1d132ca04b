"""What exactly is compared: the text of a report after cleaning, as words between spaces.

R2Gen's convention, in which the field's figures are reported: texts cleaned by a named recipe (`megpt.recipe`), words
split at spaces. The recipe is part of a score's name; `none` takes the text to the letter, which is right for texts
that were cleaned before. The published cleaners leave two spaces before a full stop in a text that they have cleaned
already (as a generated one is); ROUGE-L would count a word between them, so runs of blanks become one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from megpt import __version__
from megpt.data.cleaning import published, split_stops
from megpt.errors import InputError
from megpt.evaluation.ptb import tokenize
from megpt.recipe import UNKNOWN, Recipe, parse_recipe

TOKENIZER = "whitespace"
"""The tokenizer named in metrics.json, unless the recipe has the PTB tokenizer."""
_LETTER_OR_DIGIT = re.compile(r"[^\W_]")
MOST_FULL_STOPS = 0.05
"""More words than this that end in a full stop are taken for texts whose stops were not split off."""


@dataclass(frozen=True)
class Cleaning:
    """A recipe with what it needs: the words that training reports know, and the texts the PTB tokenizer has seen."""

    recipe: Recipe
    vocabulary: frozenset[str] | None = None
    """Words that are not `<unk>`; None where the recipe has no `+unkN`."""
    tokenized: dict[str, str] = field(default_factory=dict, repr=False)
    """Text → text by the PTB tokenizer; `prepare` fills it in one run of the Java program."""

    @classmethod
    def of(cls, name: str, *, training: Iterable[str] | None = None) -> Cleaning:
        """The cleaning that a recipe's name stands for.

        Args:
            training: training reports as they stand; needed for `+unkN`, whose words are counted in them.

        Raises:
            InputError: an unknown recipe, or `+unkN` without training reports.
        """
        recipe = parse_recipe(name)
        if recipe.unk is None:
            return cls(recipe)
        plain = cls(Recipe(recipe.base, recipe.dotsplit, recipe.ptb))
        reports = list(training or ())
        plain.prepare(reports)
        counts = Counter(word for report in reports for word in plain.words(report))
        if not counts:
            raise InputError(
                f"the cleaner {name!r} needs training reports",
                cause=f"+unk{recipe.unk} replaces words that they hold fewer than {recipe.unk} times",
                next="set training=PATH (R2Gen's annotation.json, a studies/ table, a file of reports)",
            )
        return cls(recipe, frozenset(word for word, times in counts.items() if times >= recipe.unk))

    def prepare(self, reports: Iterable[str | None]) -> None:
        """Run the PTB tokenizer over many texts at once, where the recipe has it: it takes seconds to start."""
        if self.recipe.ptb:
            texts = {self._split(report) for report in reports if report} - self.tokenized.keys()
            ordered = sorted(texts)
            self.tokenized.update(zip(ordered, tokenize(ordered), strict=True))

    def words(self, report: str) -> list[str]:
        """The words of a report by this recipe, not cut."""
        text = self._split(report)
        if self.recipe.ptb:
            if text not in self.tokenized:
                self.prepare([report])
            # a fraction (`1 1/2`) is one word with a no-break space inside, as pycocoevalcap has it
            words = self.tokenized[text].split(" ")
        else:
            words = text.split()
        if self.vocabulary is not None:
            words = [word if word in self.vocabulary else UNKNOWN for word in words]
        return words

    def text(self, report: str | None, *, reference: bool = False) -> str:
        """The text that is scored; see `scored_text`."""
        if report is None or is_blank(report):
            return ""
        if self.recipe.to_the_letter:
            return report
        words = self.words(report)
        text = " ".join(words[: self.recipe.cut] if reference and self.recipe.cut else words)
        return "" if is_blank(text) else text

    def _split(self, report: str) -> str:
        text = published(report, self.recipe.base)
        return split_stops(text) if self.recipe.dotsplit else text

    @property
    def tokenizer(self) -> str:
        """What splits a text into words, as metrics.json names it."""
        return "ptb" if self.recipe.ptb else TOKENIZER

    def __str__(self) -> str:
        return str(self.recipe)


def is_blank(text: str | None) -> bool:
    """Whether a report says nothing: absent, or without a single letter or digit."""
    return text is None or _LETTER_OR_DIGIT.search(text) is None


def scored_text(report: str | None, cleaner: str | Cleaning, *, reference: bool = False) -> str:
    """The text that is scored: cleaned; "" for an absent or blank report.

    A blank report stays "" whatever the cleaner makes of it: some turn it into " .", which would earn points. A
    reference is whole unless the recipe cuts it (`+59`), which the score's signature then says.

    Raises:
        InputError: an unknown cleaner; one that needs training reports, given by its name alone.
    """
    cleaning = cleaner if isinstance(cleaner, Cleaning) else Cleaning.of(cleaner)
    return cleaning.text(report, reference=reference)


def signature(cleaner: str | Cleaning, n: int, score: str = "BLEU-4") -> str:
    """One line that says what a score is a score of, as sacrebleu's do: `BLEU-4|n:590|clean:…|ref:…|v:…`.

    Args:
        n: studies that are scored.
    """
    recipe = cleaner.recipe if isinstance(cleaner, Cleaning) else parse_recipe(cleaner)
    references = f"cut{recipe.cut}" if recipe.cut else "full"
    return f"{score}|n:{n}|clean:{recipe}|ref:{references}|v:{__version__}"


def full_stop_warnings(generated: Sequence[str], references: Sequence[str], cleaner: str | Cleaning) -> list[str]:
    """What to say when the stops of scored texts were not split off, so that `effusion.` is no `effusion`."""
    result = []
    for name, texts in (("generated reports", generated), ("references", references)):
        words = stops = 0
        for text in texts:
            parts = text.split()
            words += len(parts)
            stops += sum(len(word) > 1 and word[-1] == "." for word in parts)
        if words and stops > MOST_FULL_STOPS * words:
            result.append(
                f"{100 * stops / words:.0f} % of the words in the {name} end in a full stop and count as other words "
                f"(`effusion.` is not `effusion`): set data.cleaner={cleaner}+dotsplit, or a published cleaner"
            )
    return result
