"""Large imports, of a process that starts. Imports nothing large itself."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """For the large imports of a process that starts: nobody looks for garbage meanwhile.

    Importing torch and transformers makes hundreds of thousands of objects that all stay; looking them through again
    and again is a sixth of the time it takes.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
