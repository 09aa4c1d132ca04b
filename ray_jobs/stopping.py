"""How a command ends: SIGTERM is an exception, so that a job cleans up as after Ctrl-C; a report ends at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn


class Terminated(BaseException):
    """SIGTERM, as KeyboardInterrupt is SIGINT."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM inside the block raises Terminated; a second one ends the process at once."""

    def stop(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_process(code: int) -> NoReturn:
    """End without taking apart what was imported, which takes two seconds after torch and transformers."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
