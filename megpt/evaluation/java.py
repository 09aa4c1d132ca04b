"""A conversation with a program that answers one line to each line it is sent, and must not outlive its question.

The program is ended when the conversation is left, however it is left; on Linux the kernel ends it even when this
process is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

_PR_SET_PDEATHSIG = 1
_READ_BYTES = 1 << 16
_END_S = 5.0
"""How long a program that has closed its output may take to end by itself."""
_CLOSE_S = 1.0
"""How long it may take to close its output after its last words."""


class Conversation:
    """A started program, to be used in a `with` block.

    Raises:
        OSError: the program cannot be started.
    """

    def __init__(self, command: Sequence[str], lines: Sequence[str], *, cwd: Path):
        self._lines = lines
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=cwd,
            preexec_fn=_dying_request(),
        )
        # Written beside the reading, or both sides could block on a full pipe.
        self._writer = threading.Thread(target=self._write, daemon=True)

    def __enter__(self) -> Conversation:
        self._writer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._process.kill()
        self._process.wait()
        self._writer.join()
        if self._process.stdout:
            self._process.stdout.close()

    def read(self, *, first_s: float, next_s: float) -> Iterator[str]:
        """The answers, one for each line that was sent, until the program ends or keeps silent for too long."""
        stdout = self._process.stdout
        assert stdout is not None
        buffer, answered, limit = b"", 0, first_s
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            asked = time.monotonic()
            while answered < len(self._lines):
                if not selector.select(max(0.0, asked + limit - time.monotonic())):
                    return
                chunk = os.read(stdout.fileno(), _READ_BYTES)
                if not chunk:
                    return
                *whole, buffer = (buffer + chunk).split(b"\n")
                for line in whole:
                    answered += 1
                    yield line.decode(errors="replace")
                if whole:
                    asked, limit = time.monotonic(), next_s

    def code(self) -> int | None:
        """The exit code; None for a program that still runs."""
        stdout = self._process.stdout
        assert stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            closed = bool(selector.select(_CLOSE_S))
        try:
            return self._process.wait(_END_S if closed else 0)
        except subprocess.TimeoutExpired:
            return None

    def _write(self) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        # A program that has ended, or was ended, reads no more.
        with contextlib.suppress(OSError, ValueError), stdin:
            for line in self._lines:
                stdin.write(line.encode(errors="replace"))


def _dying_request():
    """What the new process does first: ask Linux to be killed with its parent. None elsewhere."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork, where nothing may be loaded
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
