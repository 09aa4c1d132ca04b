"""The 14 CheXpert observations in a report's text: present, absent, uncertain or not mentioned.

    Labeler().label("Small left pleural effusion. No pneumothorax.")
    → {"Pleural Effusion": 1, "Pneumothorax": 0}

Mentions come from `lexicon`, their negation and uncertainty from medspacy's ConText (Eyre et al., 2021; Harkema et
al., 2009) with radiology rules, and mentions become labels as in the CheXpert labeller (Irvin et al., 2019): present
over uncertain over absent, and "No Finding" where nothing but a support device is present or uncertain.
About 1 ms a report; sentences that come again are looked up. Report text is never logged.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from megpt.evaluation import lexicon as words
from megpt.evaluation.texts import is_blank
from megpt.study import CHEXPERT

if TYPE_CHECKING:
    from spacy.tokens import Doc, Span

NO_FINDING, DEVICES = "No Finding", "Support Devices"
PRESENT, ABSENT, UNCERTAIN = 1, 0, -1

_ORGAN, _STATE = "organ:", "state:"
_SENTENCE_END = re.compile(r"(?<!\bvs)(?<!\bdr)(?<!\bapprox)[.!?;](?=\s|$)|\n\s*\n", re.IGNORECASE)
_CACHE = 200_000
_GROUP = "observations"


class Labeler:
    """A rule-based labeller; loads medspacy when first made."""

    def __init__(self) -> None:
        self._nlp = _pipeline()
        self._sentence = functools.lru_cache(maxsize=_CACHE)(self._label_sentence)

    def label(self, report: str) -> dict[str, int]:
        """Labels of one report: observation → 1, 0 or -1; an unmentioned one is missing.

        A blank report is not a normal one: it has no label, not even "No Finding".
        """
        if is_blank(report):
            return {}
        mentions: dict[str, set[int]] = {}
        for sentence in _SENTENCE_END.split(report.lower()):
            for name, value in self._sentence(" ".join(sentence.split())):
                mentions.setdefault(name, set()).add(value)
        abnormal = {name for name, values in mentions.items() if values & {PRESENT, UNCERTAIN}}
        labels = {name: _strongest(values) for name, values in mentions.items() if name in CHEXPERT}
        if not abnormal - {DEVICES}:
            labels[NO_FINDING] = PRESENT
        return labels

    def positives(self, reports: Iterable[str]) -> np.ndarray:
        """(N, 14) bool: the observations labelled present, in the order of `megpt.study.CHEXPERT`."""
        rows = [[labels.get(name) == PRESENT for name in CHEXPERT] for labels in map(self.label, reports)]
        return np.array(rows, dtype=bool).reshape(-1, len(CHEXPERT))

    def _label_sentence(self, sentence: str) -> tuple[tuple[str, int], ...]:
        if not sentence:
            return ()
        doc = self._nlp(sentence)
        found = [(name, ABSENT) for name in doc._.normal]
        for span in doc.spans[_GROUP]:
            if span.label_ == words.IGNORED or span._.is_historical or span._.is_hypothetical or span._.is_family:
                continue
            doubtful = span._.is_uncertain or span.start in doc._.borderline
            found.append((span.label_, ABSENT if span._.is_negated else UNCERTAIN if doubtful else PRESENT))
        return tuple(found)


def label_reports(reports: Sequence[str]) -> np.ndarray:
    """(N, 14) bool for N reports, with one labeller per process."""
    return labeler().positives(reports)


@functools.cache
def labeler() -> Labeler:
    """The labeller of this process."""
    return Labeler()


def _strongest(values: set[int]) -> int:
    return PRESENT if PRESENT in values else UNCERTAIN if UNCERTAIN in values else ABSENT


class _Mentions:
    """Finds what a sentence mentions: `doc.spans["observations"]`, `doc._.normal` organs, `doc._.borderline` starts."""

    def __init__(self, nlp: Any):
        from spacy.matcher import PhraseMatcher
        from spacy.tokens import Doc

        Doc.set_extension("normal", default=(), force=True)
        Doc.set_extension("borderline", default=frozenset(), force=True)
        self._matcher = PhraseMatcher(nlp.vocab, attr="LOWER")
        tables = (("", words.MENTIONS), (_ORGAN, words.ORGANS), (_STATE, words.STATES))
        for prefix, table in tables:
            for name, phrases in table.items():
                self._matcher.add(prefix + name, [nlp.tokenizer(phrase) for phrase in phrases])

    def __call__(self, doc: Doc) -> Doc:
        spans = self._matcher(doc, as_spans=True)
        organs = _longest([s for s in spans if s.label_.startswith(_ORGAN)])
        # A word of size inside a mention ("cardiac enlargement") belongs to it.
        others = _longest([s for s in spans if not s.label_.startswith(_ORGAN)])
        found = [s for s in others if not s.label_.startswith(_STATE)]
        borderline = set()
        for state in (s for s in others if s.label_.startswith(_STATE)):
            kind = state.label_.removeprefix(_STATE)
            if kind != "normal" and (names := {o.label_.removeprefix(_ORGAN) for o in _owners(state, organs)}):
                found += [_relabelled(state, name) for name in sorted(names)]
                if kind == "borderline":
                    borderline.add(state.start)
        if any(s.label_ == _STATE + "normal" for s in others):
            sized = {s.label_ for s in found}
            named = {s.label_.removeprefix(_ORGAN) for s in organs} - {words.OTHER}
            doc._.normal = tuple(sorted(named - sized))
        doc._.borderline = frozenset(borderline)
        doc.spans[_GROUP] = sorted(found)
        return doc


def _relabelled(span: Span, label: str) -> Span:
    from spacy.tokens import Span

    return Span(span.doc, span.start, span.end, label=label)


def _longest(spans: list[Span]) -> list[Span]:
    """Drop what lies inside a longer match; several labels of the same words stay."""
    from spacy.util import filter_spans

    kept = {(s.start, s.end) for s in filter_spans(spans)}
    return [s for s in spans if (s.start, s.end) in kept]


def _owners(state: Span, organs: list[Span]) -> list[Span]:
    """The organs whose size `state` gives: those before it, else the one behind, only bridging words between."""
    inside = {token.i for organ in organs for token in organ}
    before = [o for o in organs if o.end <= state.start and _bridged(state.doc, o.end, state.start, inside)]
    behind = [o for o in organs if o.start >= state.end and _bridged(state.doc, state.end, o.start, inside)]
    return before or behind[:1]


def _bridged(doc: Doc, start: int, end: int, organs: set[int]) -> bool:
    return all(token.i in organs or token.lower_ in words.BRIDGE for token in doc[start:end])


def _pipeline() -> Callable[[str], Doc]:
    import spacy
    from medspacy.context import ConText

    nlp = spacy.blank("en")
    # medspacy's own splitter logs what it reads and lets a negation leak over " . ".
    sentencizer = nlp.add_pipe("sentencizer")
    mentions = _Mentions(nlp)
    context = ConText(nlp, rules=None, input_span_type="group", span_group_name=_GROUP)
    context.add(_rules(ConText(nlp, rules="default").rules))
    return lambda text: context(mentions(sentencizer(nlp.tokenizer(text))))


def _rules(default: list[Any]) -> list[Any]:
    """ConText's own rules without those for clinic notes, and radiology's."""
    from medspacy.context import ConTextRule

    added = [
        ConTextRule(
            literal,
            category,
            direction=direction,
            max_scope=words.REACH.get((category, direction)),
            # "A versus B" doubts its two neighbours, not the opacity they explain.
            max_targets=2 if (category, direction) == (words.DOUBT, "BIDIRECTIONAL") else None,
        )
        for category, table in ((words.NEGATION, words.NEGATING), (words.DOUBT, words.DOUBTING))
        for direction, literals in table.items()
        for literal in literals
    ]
    added += [ConTextRule(literal, words.HISTORY, direction="FORWARD", max_scope=8) for literal in words.PAST]
    added += [ConTextRule(literal, words.SCOPE_END, direction="TERMINATE") for literal in words.SCOPE_ENDS]
    added += [ConTextRule(literal, words.PSEUDO, direction="PSEUDO") for literal in words.PSEUDO_NEGATIONS]
    ours = {rule.literal for rule in added}
    return added + [r for r in default if r.literal not in ours and r.literal not in words.DROPPED_DEFAULTS]
