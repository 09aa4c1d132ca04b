"""What exactly is compared: the text of a report after cleaning, as words between single spaces.

R2Gen's convention, in which the field's figures are reported: texts cleaned by a named cleaner, words split at spaces,
no further tokenizer. The cleaner is part of a score's name; `none` takes the text as it stands, which is right for
texts that were cleaned before.
"""

from __future__ import annotations

import re

from megpt.data.cleaning import clean

TOKENIZER = "whitespace"
"""The tokenizer named in metrics.json."""

# METEOR reads one line a text; these end a line for Java or for one of the metrics.
_LINE_ENDS = re.compile("[ \t]*[\t\r\n\v\f\x00\x1c-\x1f\x85\u2028\u2029]+[ \t]*")
_SEPARATOR = re.compile(r"\|{2,}")


def scored_text(report: str | None, cleaner: str) -> str:
    """The text that is scored: cleaned, on one line, never cut; "" for an absent or blank report.

    A blank report stays "" whatever the cleaner makes of it: some turn it into " .", which would earn points.
    """
    if report is None or not any(c.isalnum() for c in report):
        return ""
    # Cleaned first, so that the cleaner sees what its authors' code would have seen.
    text = _SEPARATOR.sub("|", _LINE_ENDS.sub(" ", clean(report, cleaner)))
    return text if any(c.isalnum() for c in text) else ""
