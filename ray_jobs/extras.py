"""What a job needs beside the base of megpt, as its installed metadata says, and whether it is there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement

from megpt.errors import InputError


def require_extras(what: str, extras: Sequence[str]) -> None:
    """Raise InputError if a package of these extras of megpt is not installed.

    Nothing is known, and nothing raised, of a source tree that was not installed.

    Args:
        what: needs them: a job or a setting.
    """
    lacking = {extra: sorted(set(missing(Requirement(f"megpt[{extra}]")))) for extra in extras}
    if names := sorted({name for found in lacking.values() for name in found} - {"megpt"}):
        wanted = ",".join(extra for extra, found in lacking.items() if found)
        raise InputError(
            f"{what} needs packages that are not installed: {', '.join(names)}",
            cause="the base of megpt is what `prepare`, `generate` and `report` need; the rest is in extras",
            next=f'pip install "megpt[{wanted}]"',
        )


def missing(requirement: Requirement) -> Iterator[str]:
    """Names of distributions that a requirement with extras asks for and that are not installed."""
    try:
        found = distribution(requirement.name)
    except PackageNotFoundError:
        yield requirement.name
        return
    for line in found.requires or ():
        part = Requirement(line)
        if part.marker and any(_only_by(part, extra) for extra in requirement.extras):
            yield from missing(part)


def _only_by(part: Requirement, extra: str) -> bool:
    """Whether the extra asks for this part, and nothing else does."""
    assert part.marker
    return part.marker.evaluate({"extra": extra}) and not part.marker.evaluate({"extra": ""})
