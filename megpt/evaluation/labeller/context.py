"""Which findings of a sentence are denied, doubted or set aside, by the modifiers around them (ConText)."""

from __future__ import annotations

from collections.abc import Sequence

from megpt.evaluation.labeller import clauses
from megpt.evaluation.labeller import modifiers as rules
from megpt.evaluation.labeller.modifiers import AROUND, BEFORE, BEHIND, DENIED, SET_ASIDE, THROUGHOUT
from megpt.evaluation.labeller.phrases import Match, PhraseTable

_CONTRAST, _DEVICES = "contrast", "Support Devices"
_LISTED = ("or", "nor")
_OF_THE_PAST = 4
"""Words that "prior" reaches."""

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
    """For each finding (first word, end, name) what its sentence does to it: DENIED, DOUBTED, SET_ASIDE, or nothing."""
    reading = _Sentence(words, spans)
    found: list[set[str]] = [set() for _ in spans]
    for modifier in reading.modifiers:
        for effect, begin, end in reading.scopes(modifier):
            if begin < end:
                for index, (start, stop, _) in enumerate(spans):
                    if begin <= start and stop <= end:
                        found[index].add(effect)
    for index, (start, _, name) in enumerate(spans):
        if name in _OF_A_PERIOD and not any(w.startswith("compar") for w in words) and reading.is_prior(start):
            found[index].add(SET_ASIDE)
    return found


class _Sentence:
    """One sentence's words, findings and modifiers."""

    def __init__(self, words: Sequence[str], spans: Sequence[tuple[int, int, str]]):
        self.words = words
        self.starts = sorted(start for start, _, _ in spans)
        self.devices = {start for start, _, name in spans if name == _DEVICES}
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
        self.last_or = max((i for i, word in enumerate(words) if word in _LISTED), default=-1)
        self.opens_clause = self._clauses()
        self.predicates = {i for m in self.modifiers for i in range(m.start, m.end)}

    def scopes(self, modifier: Match) -> list[tuple[str, int, int]]:
        """(effect, begin, end) of the words that the modifier governs."""
        read = [_rule(name) for name in modifier.names]
        either = {rule.place for rule in read} == {BEFORE, BEHIND}
        follows = either and (self._follows(modifier.end) or not self._findings((DENIED, 0, modifier.start)))
        scopes = []
        for rule in read:
            if rule.place == AROUND:
                scopes += [
                    self._nearest(self._ahead(modifier, rule)),
                    self._nearest(self._back(modifier, rule), last=True),
                ]
            elif rule.place == THROUGHOUT:
                scopes += [self._ahead(modifier, rule), self._back(modifier, rule)]
            elif either:
                if (rule.place == BEFORE) == follows:
                    scopes.append(self._ahead(modifier, rule) if follows else self._back(modifier, rule))
            elif rule.place == BEHIND or (rule.effect == DENIED and self._is_answer(modifier)):
                scopes.append(self._back(modifier, rule))
            else:
                ahead = self._ahead(modifier, rule)
                # "Pneumothorax: no evidence." denies what it stands behind.
                unused = rule.effect == DENIED and self._is_asked(modifier) and not self._findings(ahead)
                scopes.append(self._back(modifier, rule) if unused else ahead)
        return scopes

    def is_prior(self, start: int) -> bool:
        """Whether a disease at `start` is said to be one of the past."""
        for i in range(start - 1, max(-1, start - 1 - _OF_THE_PAST), -1):
            if self.words[i] in clauses.PRIOR:
                compared = i > 0 and self.words[i - 1] in ("from", "than", "since")
                return not compared and clauses.CURRENT.isdisjoint(self.words[start:])
            if not self.words[i].isalpha() or self.words[i] in clauses.NOT_PRIOR or i in self.inside:
                return False
        return False

    def _follows(self, start: int) -> bool:
        """Whether a finding comes before anything that would part it from what stands at `start`."""
        for i in range(start, len(self.words)):
            if i in self.inside:
                return True
            word = self.words[i]
            if i in self.stops or word in clauses.VERBS or not word[0].isalnum() or word in ("and", "or", "with", "by"):
                return False
        return False

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
        """Whether it closes what stands before it: "Pneumothorax: no", "effusion (no), …"."""
        closed = self.words[modifier.end : modifier.end + 1] in ([], [","], [")"])
        return closed and (self._is_asked(modifier) or modifier.start - 1 in self.inside)

    def _is_asked(self, modifier: Match) -> bool:
        return modifier.start > 0 and self.words[modifier.start - 1] in (":", "-", "–", "?", "(", "=")

    def _back(self, modifier: Match, rule: rules.ModifierRule) -> tuple[str, int, int]:
        """The scope of a modifier behind its findings."""
        return rule.effect, self._first(modifier, rule), modifier.start

    def _ahead(self, modifier: Match, rule: rules.ModifierRule) -> tuple[str, int, int]:
        """The scope of a modifier before its findings."""
        return rule.effect, modifier.end, self._end(modifier, rule)

    def _first(self, modifier: Match, rule: rules.ModifierRule) -> int:
        """The first word that a modifier behind its findings reaches."""
        position = modifier.start
        least = max(0, modifier.start - rule.reach)
        while position > least:
            word = self.words[position - 1]
            if self.stops.get(position - 1) or (position - 1 in self.denials and self.words[position - 1] == "no"):
                break
            if word in clauses.VERBS and position - 1 not in self.predicates and not self._is_relative(position - 1):
                if self.words[max(0, position - 2)] == "there":
                    # "There is A and B is not seen" says nothing against A.
                    return next((i for i in range(position, modifier.start) if self.words[i] in (",", "and")), position)
                if rule.effect == DENIED or self._findings((rule.effect, position, modifier.start)):
                    break
            if word == ":" and rule.effect == DENIED and position < modifier.start:
                break
            position -= 1
        return position

    def _is_relative(self, position: int) -> bool:
        return position > 0 and self.words[position - 1] in ("which", "that", "previously")

    def _end(self, modifier: Match, rule: rules.ModifierRule) -> int:
        """The end of the words that a modifier before its findings reaches."""
        end = min(len(self.words), modifier.end + rule.reach)
        passed = False
        for i in range(modifier.end, end):
            if i in self.stops and (passed or self.words[i] not in ("with", "now", "the")):
                return i
            if passed and self._starts_anew(i, rule):
                return i
            passed = passed or i in self.inside
        return end

    def _starts_anew(self, i: int, rule: rules.ModifierRule) -> bool:
        """Whether word `i`, behind a governed finding, begins a statement of its own."""
        word, before = self.words[i], self.words[i - 1]
        if word in (",", "and") and self.opens_clause[i + 1]:
            return True
        if i in self.denials and (rule.effect != DENIED or self.words[i + 1 : i + 2] not in ([], [","], [")"])):
            return True  # the next denial takes over
        if word == "," and before in clauses.EXISTENCE and self.last_or < i:
            return True
        ends_item = before in (",", "-", "and") or i - 1 in self.inside
        if not ends_item or before in _LISTED:
            return False
        # A report lists findings that are not there, and devices that are: "no pneumothorax, ETT in place".
        opens = (
            word in clauses.ASSERTIVE
            or (i in self.devices and before == ",")
            or (i in self.doubts and word != "suspicious" and rule.effect == DENIED)
        )
        return opens and self.last_or < i

    def _clauses(self) -> list[bool]:
        """At each word, whether a clause with a verb of its own begins, unless it only ends a list ("are seen")."""
        opens = [False] * (len(self.words) + 1)
        for i in range(len(self.words) - 1, -1, -1):
            word = self.words[i]
            if word in (",", "and", *_LISTED) or i in self.stops:
                continue
            opens[i] = self.words[i + 1 : i + 2] == [] or self.words[i + 1] not in clauses.EXISTENCE
            if word not in clauses.VERBS:
                opens[i] = opens[i + 1]
        return opens


def _rule(name: str) -> rules.ModifierRule:
    return rules.RULES[int(name)]
