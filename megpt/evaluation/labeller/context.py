"""Which findings of a sentence are denied, doubted or set aside, by the modifiers around them (ConText)."""

from __future__ import annotations

from collections.abc import Sequence

from megpt.evaluation.labeller import modifiers as rules
from megpt.evaluation.labeller.modifiers import AROUND, BEFORE, BEHIND, DENIED, DOUBTED, SET_ASIDE
from megpt.evaluation.labeller.phrases import Match, PhraseTable

_CONTRAST = "contrast"
_LISTED = ("or", "nor")
_AT_ONCE = 4
"""Words within which a finding follows at once."""

_OF_A_PERIOD = frozenset(("Pneumonia", "Pneumothorax", "Pleural Effusion", "Lung Lesion", "Edema", "Atelectasis"))

TABLE = PhraseTable(
    {
        **{str(number): rule.phrases for number, rule in enumerate(rules.RULES)},
        rules.PSEUDO: rules.PSEUDOS,
        rules.STOP: rules.STOPS,
        _CONTRAST: rules.CONTRASTS,
    }
)


def effects(words: Sequence[str], spans: Sequence[tuple[int, int, str]]) -> list[set[str]]:
    """For each finding (first word, end, name), in order, what the sentence does to it: of DENIED, DOUBTED, SET_ASIDE."""
    reading = _Sentence(words, spans)
    found: list[set[str]] = [set() for _ in spans]
    for modifier in reading.modifiers:
        for effect, begin, end in reading.scopes(modifier):
            for index, (start, stop, _) in enumerate(spans):
                if begin <= start and stop <= end:
                    found[index].add(effect)
    for index, (start, _, name) in enumerate(spans):
        if name in _OF_A_PERIOD and reading.is_prior(start):
            found[index].add(SET_ASIDE)
    return found


class _Sentence:
    """One sentence's words, findings and modifiers."""

    def __init__(self, words: Sequence[str], spans: Sequence[tuple[int, int, str]]):
        self.words = words
        self.starts = sorted(start for start, _, _ in spans)
        self.inside = {i for start, end, _ in spans for i in range(start, end)}
        self.modifiers: list[Match] = []
        self.stops: dict[int, bool] = {}
        """Where a stop begins → whether it is a contrast, which stops on both sides."""
        self.doubts: set[int] = set()
        self.denials: set[int] = set()
        for match in TABLE.find(words):
            if rules.PSEUDO in match.names or match.start in self.inside:
                continue
            if rules.STOP in match.names or _CONTRAST in match.names:
                self.stops[match.start] = _CONTRAST in match.names
                continue
            self.modifiers.append(match)
            for rule in map(_rule, match.names):
                if rule.place == BEFORE:
                    (self.denials if rule.effect == DENIED else self.doubts).add(match.start)
        self.predicates = {i for m in self.modifiers for i in range(m.start, m.end)}

    def scopes(self, modifier: Match) -> list[tuple[str, int, int]]:
        """(effect, begin, end) of the words that the modifier governs."""
        read = [_rule(name) for name in modifier.names]
        places = {rule.place for rule in read}
        scopes = []
        for rule in read:
            ahead = rule.effect, modifier.end, self._ahead(modifier, rule)
            back = rule.effect, self._back(modifier, rule), modifier.start
            if rule.place == AROUND:
                scopes += [self._nearest(ahead), self._nearest(back, last=True)]
            elif places == {BEFORE, BEHIND}:
                follows = any(modifier.end <= s < modifier.end + _AT_ONCE for s in self._findings(ahead))
                if (rule.place == BEFORE) == follows:
                    scopes.append(ahead if follows else back)
            elif rule.place == BEHIND:
                scopes.append(back)
            elif rule.effect == DENIED and not self._findings(ahead) and self._is_answer(modifier):
                scopes.append(back)
            else:
                scopes.append(ahead)
        return scopes

    def is_prior(self, start: int) -> bool:
        """Whether a disease at `start` is said to be one of the past."""
        before = self.words[start - 1] if start else ""
        if before not in rules.PRIOR or (start > 1 and self.words[start - 2] in ("to", "with", "from", "than", "the")):
            return False
        return not rules.CURRENT.intersection(self.words)

    def _findings(self, scope: tuple[str, int, int]) -> list[int]:
        return [s for s in self.starts if scope[1] <= s < scope[2]]

    def _nearest(self, scope: tuple[str, int, int], *, last: bool = False) -> tuple[str, int, int]:
        """The part of a scope with one finding: "A versus B" doubts its neighbours, not the opacity they explain."""
        effect, begin, end = scope
        found = self._findings(scope)
        if len(found) < 2:
            return scope
        return (effect, found[-1], end) if last else (effect, begin, found[1])

    def _is_answer(self, modifier: Match) -> bool:
        """Whether it answers what stands before it ("Pneumothorax: no", "Effusion - none, …")."""
        rest = self.words[modifier.end : modifier.end + 1]
        before = self.words[modifier.start - 1] if modifier.start else ""
        return before in (":", "-", "–", "?", "(", "=") or (modifier.start - 1 in self.inside and rest in ([], [","]))

    def _back(self, modifier: Match, rule: rules.Rule) -> int:
        """The first word that a modifier behind its findings reaches."""
        position = modifier.start
        least = max(0, modifier.start - rule.reach)
        while position > least:
            word = self.words[position - 1]
            if self.stops.get(position - 1) or (position - 1 in self.denials and self.words[position - 1] == "no"):
                break
            if word in rules.VERBS and position - 1 not in self.predicates and not self._is_relative(position - 1):
                break
            if word == ":" and rule.effect == DENIED and position < modifier.start:
                break
            position -= 1
        return position

    def _is_relative(self, position: int) -> bool:
        return position > 0 and self.words[position - 1] in ("which", "that", "previously")

    def _ahead(self, modifier: Match, rule: rules.Rule) -> int:
        """The end of the words that a modifier before its findings reaches."""
        end = min(len(self.words), modifier.end + rule.reach)
        passed = False
        for i in range(modifier.end, end):
            if i in self.stops and (passed or self.words[i] not in ("with", "now", "the")):
                return i
            fresh = passed and self._starts_anew(i, modifier, rule)
            if fresh:
                return i
            passed = passed or i in self.inside
        return end

    def _starts_anew(self, i: int, modifier: Match, rule: rules.Rule) -> bool:
        """Whether word `i`, behind a governed finding, begins a statement of its own."""
        word, before = self.words[i], self.words[i - 1]
        if word in (",", "and") and self._has_predicate(i + 1):
            return True
        if i in self.denials and rule.effect != DENIED:
            return True
        ends_item = before in (",", "-") or i - 1 in self.inside
        if not ends_item or before in _LISTED:
            return False
        if i in self.doubts and rule.effect == DENIED:
            return True
        return word in rules.ASSERTIVE and not any(w in _LISTED for w in self.words[i:])

    def _has_predicate(self, start: int) -> bool:
        """Whether a clause with a verb of its own begins at `start`, other than one that closes a list ("are seen")."""
        for i in range(start, len(self.words)):
            word = self.words[i]
            if word in (",", "and", *_LISTED) or i in self.stops:
                return False
            if word in rules.VERBS:
                following = self.words[i + 1] if i + 1 < len(self.words) else ""
                return following not in rules.EXISTENCE
        return False


def _rule(name: str) -> rules.Rule:
    return rules.RULES[int(name)]
