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


@contextlib.contextmanager
def deferred() -> Iterator[threading.Event]:
    """SIGTERM and Ctrl-C inside the block set the event, and take effect behind it.

    An exception that a handler raises inside a call of Ray's core aborts the process, so a loop that calls Ray waits
    for the event instead.

    Raises:
        Terminated, KeyboardInterrupt: at the end of the block, for the signal that came.
    """
    stop, came = threading.Event(), list[int]()

    def note(number: int, frame: Any) -> None:
        came.append(number)
        stop.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise Terminated if came[0] == signal.SIGTERM else KeyboardInterrupt


def end_process(code: int) -> NoReturn:
    """End without taking apart what was imported, which takes two seconds after torch and transformers."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
