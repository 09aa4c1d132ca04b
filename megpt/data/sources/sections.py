"""The sections of a free-text report."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import zip_longest

# A heading stands at the beginning of a line, in capitals, and ends with a colon.
_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z0-9 ,/()&_-]{2,60}?)[ \t]*:", re.MULTILINE)
_FINDINGS = frozenset({"FINDINGS", "FINDING", "FINDINGS AND IMPRESSION", "FINDINGS/IMPRESSION", "CHEST FINDINGS"})
_IMPRESSION = frozenset({"IMPRESSION", "IMPRESSIONS", "CONCLUSION", "CONCLUSIONS", "SUMMARY", "OPINION"})


@dataclass(frozen=True)
class Report:
    """A report's parts; None for one it does not have. `text` is what there is to learn from it."""

    text: str | None
    findings: str | None
    impression: str | None


def parse_report(raw: str) -> Report:
    """Find the FINDINGS and IMPRESSION sections of a report such as MIMIC-CXR's.

    White space is folded. `text` is the findings followed by the impression; a report with neither section gives
    its last paragraph, which is where radiologists then put both.
    """
    parts: dict[str, list[str]] = {"findings": [], "impression": []}
    headings = list(_HEADING.finditer(raw))
    for heading, following in zip_longest(headings, headings[1:]):
        name = " ".join(heading.group(1).split())
        kind = "findings" if name in _FINDINGS else "impression" if name in _IMPRESSION else None
        if kind:
            parts[kind].append(raw[heading.end() : following.start() if following else len(raw)])
    findings, impression = (fold(" ".join(parts[kind])) for kind in ("findings", "impression"))
    text = join(findings, impression)
    if text is None:
        paragraphs = [p for p in re.split(r"\n[ \t]*\n", raw[headings[-1].end() :] if headings else raw) if p.strip()]
        text = fold(paragraphs[-1]) if paragraphs else None
    return Report(text, findings, impression)


def fold(text: str | None) -> str | None:
    """Runs of white space as one space; None when nothing is left."""
    return " ".join((text or "").split()) or None


def join(findings: str | None, impression: str | None) -> str | None:
    """Findings, then impression; None when there is neither."""
    return " ".join(part for part in (findings, impression) if part) or None
