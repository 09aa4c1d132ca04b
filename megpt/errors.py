"""The errors a user meets: one screen that says what, where, the likely cause and the next command."""

from __future__ import annotations

import difflib
import json
import re

# The layout of an error screen: `MegptError.__str__` writes it, `from_text` reads it.
LABELS = ("where", "cause", "next")


_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, *, lines: bool = False) -> str:
    r"""Text that may go to a terminal: what moves its cursor, changes its colours or turns its words around is escaped.

    An id such as `s1\x1b[2J` comes from a table that anyone may have written.

    Args:
        lines: leave line ends as they are.
    """
    safe = _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return safe if lines else safe.replace("\n", r"\n")


def _line(label: str) -> str:
    return f"  {label + ':':<7}"


class MegptError(Exception):
    """Something the user can act on. Exit code 1 unless a subclass says otherwise.

    Args:
        what: one sentence; names the field and the value.
        where: the file, field or study id.
        cause: the likely cause.
        next: the next command or edit.

    None of the four may hold report text or a DICOM field that names a person: they are printed and logged.
    """

    exit_code = 1

    def __init__(self, what: str, where: str | None = None, cause: str | None = None, next: str | None = None):
        # All four go through args so that the error survives the pickling between Ray's processes.
        super().__init__(what, where, cause, next)
        self.what, self.where, self.cause, self.next = what, where, cause, next

    def __str__(self) -> str:
        labelled = ((label, getattr(self, label)) for label in LABELS)
        # a cause may be a list, such as that of the known formats; all else is one line
        told = [_line(label) + printable(str(text), lines=label == "cause") for label, text in labelled if text]
        return "\n".join([printable(self.what), *told])


class InputError(MegptError):
    """A bad command, config or input: exit code 2, nothing written."""

    exit_code = 2


class TooManyFailed(MegptError):
    """The job is done, but more studies failed than allowed: exit code 3."""

    exit_code = 3


KINDS = {kind.__name__: kind for kind in (MegptError, InputError, TooManyFailed)}


def to_json(error: MegptError) -> str:
    """The error as text, for another process."""
    return json.dumps({"kind": type(error).__name__, "parts": error.args})


def from_json(text: str) -> MegptError:
    """What `to_json` wrote."""
    written = json.loads(text)
    return KINDS.get(written["kind"], MegptError)(*written["parts"])


_SCREEN = re.compile(
    r"^megpt\.errors\.(?P<kind>\w+): (?P<what>.+)"
    + "".join(rf"(?:\n{re.escape(_line(label))}(?P<{label}>.+))?" for label in LABELS),
    re.MULTILINE,
)


def from_text(traceback: str) -> MegptError | None:
    """The error whose screen a printed traceback contains; None if it contains none."""
    found = _SCREEN.search(traceback)
    if not found or found["kind"] not in KINDS:
        return None
    return KINDS[found["kind"]](found["what"], *(found[label] for label in LABELS))


def did_you_mean(name: str, known: list[str], *, most: int = 3) -> str:
    """The known names nearest to a mistyped one, as a hint that can follow an error's first sentence.

    Dotted names are compared by their last part first, then by section: `train.learning_rate` means `train.lr`.
    """
    ranked = sorted(((_closeness(name, other), other) for other in known), key=lambda pair: (-pair[0], pair[1]))
    best = ranked[0][0] if ranked else 0.0
    near = [other for score, other in ranked[:most] if score >= 0.6 and score >= best - 0.15]
    if near:
        return f"did you mean {' or '.join(near)}?"
    section = name.rpartition(".")[0]
    siblings = [other for other in known if section and other.rpartition(".")[0] == section]
    return f"known names: {', '.join(sorted(siblings or known))}"


def _closeness(name: str, other: str) -> float:
    """How likely `other` is what was meant by `name`: 0 to 1."""
    section, _, leaf = name.rpartition(".")
    other_section, _, other_leaf = other.rpartition(".")
    return 0.8 * _likeness(leaf, other_leaf) + 0.2 * _likeness(section, other_section)


def _likeness(one: str, two: str) -> float:
    if one == two:
        return 1.0
    words, others = (text.replace("-", "_").split("_") for text in (one, two))
    if len(words) != len(others) and "" not in (one, two):
        shorter, longer = sorted((words, others), key=len)
        # learning_rate and lr: the one is made of the other's first letters
        if len(longer) > 1 and shorter == ["".join(word[:1] for word in longer)]:
            return 0.95
        # batch_size and global_batch_size: the one leaves a word of the other out
        if all(word in longer for word in shorter):
            return 0.9
    return difflib.SequenceMatcher(None, one, two).ratio()
