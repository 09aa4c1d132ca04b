"""One sentence of a report → what it says of each observation, where and on which side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from megpt.evaluation.labeller import context, findings, modifiers, sides
from megpt.evaluation.labeller.phrases import Match, PhraseTable
from megpt.evaluation.labeller.sentences import LONGEST_SENTENCE, Word, words_of
from megpt.evaluation.labeller.spelling import corrected

PRESENT, ABSENT, UNCERTAIN = 1, 0, -1

_SIZE = "size:"
_MENTIONS = PhraseTable(findings.MENTIONS | {_SIZE + name: phrases for name, phrases in findings.SIZES.items()})
_ORGANS = PhraseTable(findings.ORGANS)
_UNDERSTOOD = PhraseTable({"": findings.UNDERSTOOD})
_KNOWN = frozenset(_MENTIONS.words | _ORGANS.words | _UNDERSTOOD.words | context.TABLE.words)

_SIZE_OF_A_FINDING = 2
"""Words between "large" and the finding that it is said of: "large right pleural effusion"."""


class Reading(NamedTuple):
    """An observation in a sentence: characters [start, end). `status` is None for what is set aside."""

    observation: str
    status: int | None
    side: int
    size: int
    start: int
    end: int


class Sentence(NamedTuple):
    readings: tuple[Reading, ...]
    understood: bool
    """Whether it names a finding or says that something is normal."""


def read(sentence: str) -> Sentence:
    """What a lower-case sentence says. Time grows with its length: it is read in pieces of `LONGEST_SENTENCE` words."""
    words = words_of(sentence)
    found: list[Reading] = []
    understood = False
    for start in range(0, len(words), LONGEST_SENTENCE):
        readings, known = _read(words[start : start + LONGEST_SENTENCE])
        found += readings
        understood = understood or known
    return Sentence(tuple(found), understood)


def _read(words: Sequence[Word]) -> tuple[list[Reading], bool]:
    texts = [corrected(word.text, _KNOWN) for word in words]
    matches = _MENTIONS.find(texts)
    organs = _ORGANS.find(texts)
    spans = [(m.start, m.end, name) for m in matches for name in m.names if not name.startswith(_SIZE)]
    named = len(spans)
    sizes = [m for m in matches if m.names[0].startswith(_SIZE)]
    borderline, normal = _sized(texts, sizes, organs, spans)
    understood = bool(matches) or bool(_UNDERSTOOD.find(texts))
    effects = context.effects(texts, spans) if spans else []
    placed = sides.sides_and_sizes(texts, spans) if spans else []
    found = [
        Reading(name, _status(effect, start in borderline and index >= named), *place, words[start].start, words[end - 1].end)
        for index, ((start, end, name), effect, place) in enumerate(zip(spans, effects, placed, strict=True))
        if name != findings.IGNORED
    ]
    found += [Reading(name, ABSENT, 0, 0, words[start].start, words[end - 1].end) for start, end, name in normal]
    return found, understood


def _status(effects: set[str], borderline: bool) -> int | None:
    if modifiers.SET_ASIDE in effects:
        return None
    if modifiers.DENIED in effects:
        return ABSENT
    return UNCERTAIN if borderline or modifiers.DOUBTED in effects else PRESENT


def _sized(
    texts: Sequence[str], sizes: Sequence[Match], organs: Sequence[Match], spans: list[tuple[int, int, str]]
) -> tuple[set[int], list[tuple[int, int, str]]]:
    """Organs by their size: adds the large to `spans`; gives where the borderline begin, and the normal ones' spans."""
    starts = {start for start, _, _ in spans}
    borderline: set[int] = set()
    sized: set[str] = {name for _, _, name in spans}
    for match in sizes:
        size = match.names[0].removeprefix(_SIZE)
        of_a_finding = any(s in starts for s in range(match.end, match.end + _SIZE_OF_A_FINDING + 1))
        if size == findings.NORMAL or (of_a_finding and not _owners(texts, match, organs, before=True)):
            continue
        if of_a_finding and texts[match.end - 1] in ("large", "increased", "big"):
            continue
        names = {name for organ in _owners(texts, match, organs) for name in organ.names}
        spans += [(match.start, match.end, name) for name in sorted(names)]
        sized |= names
        if size == findings.BORDERLINE:
            borderline.add(match.start)
    normal = []
    ends = [m for m in sizes if m.names[0] == _SIZE + findings.NORMAL]
    for organ in organs if ends else ():
        state = min(ends, key=lambda m: abs(m.start - organ.start))
        span = min(organ.start, state.start), max(organ.end, state.end)
        normal += [(*span, name) for name in organ.names if name != findings.OTHER and name not in sized]
        sized.update(organ.names)
    return borderline, normal


def _owners(texts: Sequence[str], size: Match, organs: Sequence[Match], *, before: bool = False) -> list[Match]:
    """The organs whose size it is: those before it, else the one behind, only bridging words between."""
    inside = {i for organ in organs for i in range(organ.start, organ.end)}

    def bridged(start: int, end: int) -> bool:
        return all(i in inside or texts[i] in findings.BRIDGE for i in range(start, end))

    ahead = [o for o in organs if o.end <= size.start and bridged(o.end, size.start)]
    if ahead or before:
        return ahead
    return [o for o in organs if o.start >= size.end and bridged(size.end, o.start)][:1]
