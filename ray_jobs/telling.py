"""How far the pieces in flight have come: a worker tells, the command that started it asks.

    tell = Teller(run, "train-00003")       # in a worker, for each piece
    tell(None), tell("missing file")        # for each study: fine, or why it failed
    told(run)                               # in the command: {"train-00003": PieceCounts(2, {"missing file": 1})}

It lies in the cluster's own key-value store. It is for people, and for `fail_fast`: nothing that is written depends on
it, so what cannot be told is left out.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections import Counter

from ray.exceptions import RayError

from megpt.progress import PieceCounts
from ray_jobs import ray_private

TELL_EVERY_S = 1.0
_SO_MANY = re.compile(r" \(and \d+ more\)$")


class Teller:
    """Tells how far a piece has come, once a second at most; called for each study.

    Args:
        run: names the execution.
        piece: what is counted together, and is done again as a whole.
    """

    def __init__(self, run: str, piece: str):
        self.key, self.counts = f"{run}/{piece}", PieceCounts()
        self._told = time.monotonic()

    def __call__(self, error: str | None) -> None:
        """One more study is done; `error` says why it failed, if it did."""
        self.counts.done += 1
        if error:
            self.counts.failed[plain_reason(error)] += 1
        if time.monotonic() - self._told >= TELL_EVERY_S:
            self._told = time.monotonic()
            with contextlib.suppress(RayError):
                ray_private.tell(self.key, json.dumps({"done": self.counts.done, "failed": self.counts.failed}))


def told(run: str) -> dict[str, PieceCounts] | None:
    """What the workers of an execution have told last, by piece; None where the cluster does not answer."""
    try:
        found = {name: json.loads(text) for name, text in ray_private.told(f"{run}/").items()}
    except RayError:
        return None
    return {name: PieceCounts(counts["done"], Counter(counts["failed"])) for name, counts in found.items()}


def forget(run: str) -> None:
    """Remove what the workers of an execution have told."""
    with contextlib.suppress(RayError):
        ray_private.forget(f"{run}/")


def plain_reason(reason: str) -> str:
    """A reason without the number of a study's further films, to be counted by."""
    return _SO_MANY.sub("", reason)
