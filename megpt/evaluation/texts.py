"""What exactly is compared: the text of a report after cleaning, as words between spaces.

R2Gen's convention, in which the field's figures are reported: texts cleaned by a named cleaner, words split at spaces,
no further tokenizer. The cleaner is part of a score's name; `none` takes the text to the letter, which is right for
texts that were cleaned before. The published cleaners leave two spaces before a full stop in a text that they have
cleaned already (as a generated one is); ROUGE-L would count a word between them, so runs of blanks become one.
"""

from __future__ import annotations

from megpt.data.cleaning import clean

TOKENIZER = "whitespace"
"""The tokenizer named in metrics.json."""


def is_blank(text: str | None) -> bool:
    """Whether a report says nothing: absent, or without a single letter or digit."""
    return text is None or not any(c.isalnum() for c in text)


def scored_text(report: str | None, cleaner: str) -> str:
    """The text that is scored: cleaned, never cut; "" for an absent or blank report.

    A blank report stays "" whatever the cleaner makes of it: some turn it into " .", which would earn points.
    """
    if report is None or is_blank(report):
        return ""
    text = clean(report, cleaner)
    if cleaner != "none":
        text = " ".join(text.split())
    return "" if is_blank(text) else text
