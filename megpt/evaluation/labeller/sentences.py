"""A report as sentences of words, each with its place in the text.

Letter case and line ends inside a sentence do not matter. Words are joined over hyphens ("left-sided" is two words);
clinical shorthand is written out ("w/o" → without, "s/p" → status post). A section that does not describe the film
(indication, history, comparison, technique) is not read, nor is a sentence's rest beyond `LONGEST_SENTENCE` without a
new start, nor a report beyond `LONGEST_REPORT`: what a looping model writes must not stall a set of a million.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

LONGEST_REPORT = 100_000
"""Characters of a report that are read; the rest is counted. The longest report of MIMIC-CXR has some 6,000."""

LONGEST_SENTENCE = 120
"""Words of a sentence that are read as one; a longer one is cut into pieces, over which no negation reaches."""

_END = re.compile(
    r"(?<!\bvs)(?<!\bdr)(?<!\bapprox)(?<!\be\.g)(?<!\bi\.e)(?:[.!;](?=\s|$)|\?(?=\s|$)(?!\s*(?:no|none|not)\b))"
    r"|(?<=[a-z]{3})\.(?=[a-z]{2})"  # "effusion.No pneumothorax"
    r"|\n\s*\n|\n(?=\s*(?:[-*•]|\d{1,2}[.)])\s)|\n(?=[ \t]*[a-z][a-z /]{2,30}:)"
)
_TOKEN = re.compile(r"w/o\b|s/p\b|r/o\b|h/o\b|c/w\b|d/t\b|b/l\b|w/|\d+\.\d+|[^\W_]+(?:'[st]\b)?|[^\s\w]")
_HYPHEN = re.compile(r"(?<=\w)[-–](?=\w)")

_INDICATION = r"(?:clinical |patient )?(?:indications?|history|information)|reason for (?:the )?(?:exam\w*|study|test)"
_OTHER_HEADING = r"comparisons?|technique|exam|examination|procedure|prior studies|(?:number of )?views?"
_UNREAD = re.compile(rf"(?:(?P<indication>{_INDICATION})|{_OTHER_HEADING})\s*:")
_READ = re.compile(r"\b(?:findings?|impressions?|conclusions?|final report|report|interpretation)\s*:")
_BLANK_LINE = re.compile(r"\n\s*\n")

SHORTHAND: dict[str, tuple[str, ...]] = {
    **{"w/o": ("without",), "w/": ("with",), "s/p": ("status", "post"), "r/o": ("rule", "out")},
    **{"h/o": ("history", "of"), "c/w": ("consistent", "with"), "d/t": ("due", "to"), "b/l": ("bilateral",)},
    **{"bilat": ("bilateral",), "bil": ("bilateral",), "mod": ("moderate",), "sm": ("small",), "lg": ("large",)},
    **{"rt": ("right",), "lt": ("left",), "r": ("right",), "l": ("left",), "hx": ("history",), "fx": ("fracture",)},
    **{"fxs": ("fractures",), "nl": ("normal",), "eval": ("evaluate",), "poss": ("possible",), "prob": ("probable",)},
    **{"neg": ("negative",), "pos": ("positive",), "cont": ("continued",), "unch": ("unchanged",), "&": ("and",)},
    **{"isn't": ("is", "not"), "aren't": ("are", "not"), "can't": ("cannot",), "doesn't": ("does", "not")},
    **{"wasn't": ("was", "not"), "hasn't": ("has", "not"), "don't": ("do", "not"), "effs": ("effusions",)},
    **{"incr": ("increased",), "decr": ("decreased",), "dx": ("diagnosis",), "postop": ("post", "operative")},
}
"""Shorthand written out, word for word."""


class Word(NamedTuple):
    """A word as it is read, lower case, and the characters [start, end) of the sentence that it comes from."""

    text: str
    start: int
    end: int


def lowered(report: str) -> str:
    """Lower case with every character in its place (a few, such as "İ", are longer in lower case: they stay)."""
    low = report.lower()
    return low if len(low) == len(report) else "".join(c.lower() if len(c.lower()) == 1 else c for c in report)


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """(offset, text) of each sentence of a lower-case text, without the sections that are not about this film."""
    start, unread_until = 0, 0
    for end in (*(m.end() for m in _END.finditer(text)), len(text)):
        begin = start + len(text[start:end]) - len(text[start:end].lstrip())
        if heading := _UNREAD.match(text, begin, end):
            unread_until = max(unread_until, _end_of_section(text, heading, end))
        begin = max(begin, unread_until)
        if begin < end:
            yield begin, text[begin:end]
        start = end


def _end_of_section(text: str, heading: re.Match[str], sentence_end: int) -> int:
    """Where reading goes on: the next heading; else the end of an indication's paragraph, of another's sentence."""
    blank = _BLANK_LINE.search(text, heading.end())
    if following := _READ.search(text, heading.end(), blank.start() if blank else len(text)):
        return following.start()
    return blank.start() if blank and heading["indication"] else sentence_end


def words_of(sentence: str) -> list[Word]:
    """The words of a lower-case sentence; a full stop is not one."""
    words: list[Word] = []
    for match in _TOKEN.finditer(_HYPHEN.sub(" ", sentence.replace("’", "'"))):
        text = match.group().removesuffix("'s")
        words += [Word(w, match.start(), match.end()) for w in SHORTHAND.get(text, (text,)) if w not in ".;"]
    return words


def tokens_of(phrase: str) -> list[str]:
    """The words of a phrase, as `words_of` reads them in a report."""
    return [word.text for word in words_of(phrase)]
