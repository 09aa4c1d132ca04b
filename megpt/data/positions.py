"""The names of projections: is a film frontal or lateral?"""

from __future__ import annotations

import re

_FRONTAL = re.compile(r"(?:^|[^a-z])(?:pa|ap|frontal|front|postero.?anterior|antero.?posterior)(?:[^a-z]|$)")
_LATERAL = re.compile(r"(?:^|[^a-z])(?:lateral|lat|ll|rl|rlat|llat|l|xtl|dlat|left.?lateral)(?:[^a-z]|$)")


def side_of(position: str) -> str:
    """`frontal`, `lateral`, `other` (any further projection, such as an oblique), or "" if nothing is known."""
    text = position.strip().lower()
    if not text or text in ("unk", "unknown"):
        return ""
    if _LATERAL.search(text):
        return "lateral"
    return "frontal" if _FRONTAL.search(text) else "other"


def side_of_name(name: str) -> str:
    """The side that a film's file name gives, as in `view1_frontal.jpg` or `s1_lat.dcm`; "" for none."""
    words = re.split(r"[^a-z]+", name.lower())
    if {"lateral", "lat"} & set(words):
        return "lateral"
    return "frontal" if {"frontal", "pa", "ap"} & set(words) else ""
