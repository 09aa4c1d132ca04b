"""On which side of the patient a finding is said to be, and how large an effusion or a pneumothorax is.

A finding's side stands in the words that belong to it: those before it up to the nearest "and" or comma that leaves it
a side ("left basilar | and right apical | opacity"), and those behind it up to where the next finding's begin.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from megpt.evaluation.labeller.phrases import PhraseTable

LEFT, RIGHT, BOTH = 1, 2, 3
"""Bits, so that left and right make both; 0 is not said."""

TRACE, SMALL, MODERATE, LARGE = 1, 2, 3, 4
"""Sizes; 0 is not said."""

WITHOUT_SIDE = frozenset(("Cardiomegaly", "Enlarged Cardiomediastinum", "No Finding"))
WITH_SIZE = frozenset(("Pleural Effusion", "Pneumothorax"))

_SIDES = {
    str(LEFT): ("left", "lll", "lul", "lingula", "lingular", "leftward", "levo"),
    str(RIGHT): ("right", "rll", "rul", "rml", "middle lobe", "right middle lobe"),
    str(BOTH): (
        *("bilateral", "bilaterally", "both", "bibasilar", "bibasal", "biapical", "either side", "biapically"),
        *("(right|left) (greater|more|larger|worse) than (the|) (left|right)", "both (lungs|sides|bases|apices)"),
    ),
    # A chamber of the heart is no side of the chest.
    "0": (
        "(right|left) (atrium|atrial|ventricle|ventricular|heart|main pulmonary artery|to right shunt)",
        *("(right|left) to (left|right)", "right of midline", "both (ventricles|atria)", "right (cavoatrial|atriocaval)"),
    ),
}
_PLURAL = frozenset(("bases", "apices", "hemithoraces", "lobes", "hila"))
"""Both sides, where no side is named."""

_SIZES = {
    str(TRACE): ("trace", "tiny", "minimal", "minute", "miniscule", "minuscule", "slight", "very small", "minimally"),
    str(SMALL): ("small", "mild", "small volume", "smaller"),
    str(MODERATE): ("moderate", "moderately", "moderate sized", "medium", "medium sized"),
    str(LARGE): ("large", "massive", "extensive", "huge", "very large", "severe", "moderately large", "larger", "tension"),
}

_SIDE_TABLE, _SIZE_TABLE = PhraseTable(_SIDES), PhraseTable(_SIZES)

_SEPARATORS = frozenset(
    (",", "and", "with", "or", "but", "while", "whereas", "plus", "versus", "vs", "/", "+", "without", "no", "(", ":")
)
_CLAUSES = frozenset(("but", "while", "whereas", "although", "however", "though", "without", "no"))
_LINKS = frozenset(
    (
        *("in", "on", "at", "of", "within", "involving", "along", "overlying", "is", "are", "has", "seen", "greater"),
        *("worse", "noted", "projecting", "projects", "measuring", "(", "present", "more", "unchanged", "remains", ">"),
        *("was", "were", "identified", "appears", "stable", "larger", "again", "about", "throughout", "persists"),
    )
)
"""Words with which what is said of a finding goes on behind it."""

_PLACES = frozenset(
    (
        *("the", "a", "lower", "upper", "middle", "lobe", "mid", "lung", "base", "basilar", "basal", "apex", "apical"),
        *("zone", "side", "sided", "lateral", "posterior", "anterior", "medial", "small", "moderate", "large", "trace"),
        *("mild", "tiny", "in", "on", "at", "from", "retrocardiac", "perihilar", "pleural", "hemithorax", "minimal"),
        *("internal", "jugular", "subclavian", "rib", "stable", "there", "is", "are", "chest", "costophrenic", "angle"),
    )
)
"""Words that stand with a side: "| left lower lobe | and right base" are two places of one finding."""

_SHARING = _SEPARATORS - _CLAUSES - {"(", ":", "no"} | {
    *("associated", "adjacent", "small", "moderate", "large", "trace", "mild", "tiny", "minimal", "possible", "some"),
    *("overlying", "underlying", "likely", "pleural", "a", "subsegmental", "compressive", "patchy", "focal", "probable"),
}
"""Between two findings that share a side: "left atelectasis | and small | effusion"."""


def sides_and_sizes(words: Sequence[str], spans: Sequence[tuple[int, int, str]]) -> list[tuple[int, int]]:
    """(side, size) of each finding (first word, end, name), in the order of the sentence."""
    reading = _Reading(words)
    found: list[tuple[int, int]] = []
    own: list[tuple[int, int]] = []
    places = sorted({(start, end) for start, end, _ in spans})
    for index, (start, end) in enumerate(places):
        earliest = places[index - 1][1] if index else 0
        latest = places[index + 1][0] if index + 1 < len(places) else len(words)
        before = _begin(words, earliest, start) if index else 0
        behind = _begin(words, end, latest) if index + 1 < len(places) else latest
        side = reading.side_inside(start, end)
        ahead = reading.side_before(before, start)
        after = reading.side_behind(end, behind)
        size = reading.size_before(before, start) or reading.size_inside(start, end) or reading.size_behind(end, behind)
        own.append((side | ahead or after, size))
        if ahead and after and words[end] in ("in", "on", "at", ",", "greater", "more", "worse", ">"):
            own[-1] = (side | ahead | after, size)
    shared = _share([side for side, _ in own], places, words)
    by_place = {place: (side, size) for place, side, (_, size) in zip(places, shared, own, strict=True)}
    for start, end, name in spans:
        side, size = by_place[start, end]
        found.append((0 if name in WITHOUT_SIDE else side, size if name in WITH_SIZE else 0))
    return found


def _begin(words: Sequence[str], start: int, end: int) -> int:
    """Where, between two findings, the words of the second begin."""
    for i in range(end - 1, start - 1, -1):
        if words[i] in _SEPARATORS:
            return i
    return end if start < end and words[start] in _LINKS else start


def _share(sides: list[int], places: Sequence[tuple[int, int]], words: Sequence[str]) -> list[int]:
    """Findings joined by nothing but "and" take the side of the one before, else of the one behind."""

    def joined(first: int, second: int) -> bool:
        between = words[places[first][1] : places[second][0]]
        return all(word in _SHARING for word in between)

    shared = list(sides)
    for i in range(1, len(shared)):
        if not shared[i] and shared[i - 1] and joined(i - 1, i):
            shared[i] = shared[i - 1]
    for i in range(len(shared) - 2, -1, -1):
        if not shared[i] and shared[i + 1] and joined(i, i + 1):
            shared[i] = shared[i + 1]
    return shared


class _Reading:
    """The side and size words of a sentence, each at its place."""

    def __init__(self, words: Sequence[str]):
        self.words = words
        self.sides = [(m.start, m.end, int(m.names[0])) for m in _SIDE_TABLE.find(words)]
        self.sizes = [(m.start, m.end, int(m.names[0])) for m in _SIZE_TABLE.find(words)]
        self.sided = {i for start, end, _ in self.sides for i in range(start, end)}

    def side_inside(self, start: int, end: int) -> int:
        return _joined(value for begin, stop, value in self.sides if start <= begin and stop <= end)

    def side_before(self, start: int, end: int) -> int:
        """The side in the part nearest to `end` that names one, and in parts before it that hold a place and no more."""
        side = 0
        while end > start:
            cut = end - 1
            while cut > start and self.words[cut] not in _SEPARATORS:
                cut -= 1
            part = self._side_of(cut, end)
            if side:
                if not part or not self._is_place(cut, end):
                    return side
                side |= part
            else:
                side = part
            if self.words[cut] in _CLAUSES and side == 0:
                return 0
            if self.words[cut] in _CLAUSES:
                return side
            end = cut
        return side

    def side_behind(self, start: int, end: int) -> int:
        stop = next((i for i in range(start, end) if self.words[i] in _CLAUSES), end)
        return self._side_of(start, stop)

    def size_inside(self, start: int, end: int) -> int:
        return max((value for begin, stop, value in self.sizes if start <= begin and stop <= end), default=0)

    def size_before(self, start: int, end: int) -> int:
        """The largest size in the part nearest to `end` that names one ("small to moderate" is moderate)."""
        while end > start:
            cut = end - 1
            while cut > start and self.words[cut] not in _SEPARATORS:
                cut -= 1
            if size := self.size_inside(cut, end):
                return size
            end = cut
        return 0

    def size_behind(self, start: int, end: int) -> int:
        stop = next((i for i in range(start, end) if self.words[i] in _SEPARATORS - {":", ",", "("}), end)
        return self.size_inside(start, stop)

    def _side_of(self, start: int, end: int) -> int:
        side = self.side_inside(start, end)
        named = any(start <= begin < end and value for begin, _, value in self.sides)
        return BOTH if not named and _PLURAL.intersection(self.words[start:end]) else side

    def _is_place(self, start: int, end: int) -> bool:
        return all(i in self.sided or self.words[i] in _PLACES | _SEPARATORS for i in range(start, end))


def _joined(values: Iterable[int]) -> int:
    side = 0
    for value in values:
        side |= value
    return side
