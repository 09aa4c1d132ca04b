"""How far the pieces in flight have come: a worker tells, the command that started it asks.

    tell = Teller(run, "train-00003")       # in a worker, for each piece
    tell(None), tell("missing file")        # for each study: fine, or why it failed
    told(run)                               # in the command: {"train-00003": PieceCounts(2, {"missing file": 1})}

A run is a name, and what is told lies in the cluster's own key-value store; or it is a folder of this machine, and it
lies there. It is for people, and for `fail_fast`: nothing that is written depends on
it, so what cannot be told is left out.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from megpt.output import write_aside
from megpt.progress import PieceCounts

TELL_EVERY_S = 1.0
_SO_MANY = re.compile(r" \(and \d+ more\)$")


class Teller:
    """Tells how far a piece has come, once a second at most; called for each study.

    Args:
        run: names the execution.
        piece: what is counted together, and is done again as a whole.
    """

    def __init__(self, run: str, piece: str):
        self.run, self.piece, self.counts = run, piece, PieceCounts()
        self._told = time.monotonic()

    def __call__(self, error: str | None) -> None:
        """One more study is done; `error` says why it failed, if it did."""
        self.counts.done += 1
        if error:
            self.counts.failed[plain_reason(error)] += 1
        if time.monotonic() - self._told >= TELL_EVERY_S:
            self._told = time.monotonic()
            self.tell()

    def tell(self) -> None:
        """Tell what is known now."""
        text = json.dumps({"done": self.counts.done, "failed": self.counts.failed})
        with unheard():
            if Path(self.run).is_absolute():
                with write_aside(Path(self.run) / self.piece) as temporary:
                    temporary.write_text(text)
                return
            from ray_jobs import ray_private

            ray_private.tell(f"{self.run}/{self.piece}", text)


def told(run: str) -> dict[str, PieceCounts] | None:
    """What the workers of an execution have told last, by piece; None where the cluster does not answer."""
    found: dict[str, str | bytes] | None = None
    with unheard():
        if Path(run).is_absolute():
            found = {path.name: path.read_bytes() for path in Path(run).iterdir() if not path.name.startswith(".")}
        else:
            from ray_jobs import ray_private

            found = {**ray_private.told(f"{run}/")}
    if found is None:
        return None
    counts = {name: json.loads(text) for name, text in found.items()}
    return {name: PieceCounts(each["done"], Counter(each["failed"])) for name, each in counts.items()}


def forget(run: str) -> None:
    """Remove what the workers of an execution have told to the cluster."""
    with unheard():
        from ray_jobs import ray_private

        ray_private.forget(f"{run}/")


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """What cannot be told, or asked, is left out."""
    try:
        yield
    except OSError:
        return
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "ray":  # without an import of Ray, which takes seconds
            raise


def plain_reason(reason: str) -> str:
    """A reason without the number of a study's further films, to be counted by."""
    return _SO_MANY.sub("", reason)
