"""The errors a user meets: one screen that says what, where, the likely cause and the next command."""

from __future__ import annotations


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
        lines = [self.what]
        for label, text in (("where", self.where), ("cause", self.cause), ("next", self.next)):
            if text:
                lines.append(f"  {label + ':':<7}{text}")
        return "\n".join(lines)


class InputError(MegptError):
    """A bad command, config or input: exit code 2, nothing written."""

    exit_code = 2


class TooManyFailed(MegptError):
    """The job is done, but more studies failed than allowed: exit code 3."""

    exit_code = 3


def did_you_mean(name: str, known: list[str], *, most: int = 3) -> str:
    """The known names nearest to a mistyped one, as a hint that can follow an error's first sentence."""
    import difflib

    near = difflib.get_close_matches(name, known, n=most, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"known names: {', '.join(sorted(known)[:20])}"
