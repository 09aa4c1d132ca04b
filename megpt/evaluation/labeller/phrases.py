"""Looks up many phrases in a sentence at once, in time that grows with the sentence and not with the phrases.

    table = PhraseTable({"absent": ("not (clearly|) (seen|identified)",)})
    table.find(["effusion", "is", "not", "seen"])  → [Match(start=2, end=4, names=("absent",))]

A template stands for all its readings: "(a|b) c" for "a c" and "b c", an empty choice for leaving the word out.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from megpt.evaluation.labeller.sentences import tokens_of

_CHOICE = re.compile(r"\(([^()]*)\)")
_NAMES = ""
"""The key of a node that ends a phrase; no token is empty."""


class Match(NamedTuple):
    """Tokens [start, end) of a sentence and what they are the name of, one or several."""

    start: int
    end: int
    names: tuple[str, ...]


class PhraseTable:
    """A trie of phrases, token by token. `table` maps a name to its templates; a phrase may have several names."""

    def __init__(self, table: Mapping[str, Iterable[str]]):
        self._root: dict[str, Any] = {}
        self.words: set[str] = set()
        for name, templates in table.items():
            for phrase in itertools.chain.from_iterable(map(expand, templates)):
                self._add(tokens_of(phrase), name)

    def find(self, words: Sequence[str]) -> list[Match]:
        """The phrases in `words`, left to right; of those that begin at one word the longest, none inside another."""
        found, position, root = [], 0, self._root
        while position < len(words):
            node, end, names = root.get(words[position]), position, None
            step = position
            while node is not None:
                step += 1
                if _NAMES in node:
                    end, names = step, node[_NAMES]
                node = node.get(words[step]) if step < len(words) else None
            if names is not None:
                found.append(Match(position, end, names))
                position = end
            else:
                position += 1
        return found

    def _add(self, tokens: Sequence[str], name: str) -> None:
        node = self._root
        for token in tokens:
            node = node.setdefault(token, {})
        self.words.update(tokens)
        if name not in node.get(_NAMES, ()):
            node[_NAMES] = (*node.get(_NAMES, ()), name)


def expand(template: str) -> list[str]:
    """All readings of a template; choices do not nest."""
    parts = _CHOICE.split(template)
    choices = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
    return [" ".join("".join(chosen).split()) for chosen in itertools.product(*choices)]
