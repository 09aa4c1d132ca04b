"""Parts of a job's work in processes of this machine, for a command that does without Ray.

    with Helpers(function, count=2) as helpers:
        part = helpers.start(*arguments)        # a Future of function(*arguments)

Why not `concurrent.futures.ProcessPoolExecutor`: its processes run the caller's main script again, and outlive a
command that is killed, since each of them holds both ends of their queue. A helper's input ends with the command,
whatever ends it, and the helper with its input (ray_jobs/helper_process.py). The function is sent once, by its name, so
it and all that it is given must be known to pickle.

A helper that dies, as a broken film can make it, costs its own part only: another one takes its place and tries the
part again, `RETRIES` times.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import IO, Any

from megpt.errors import MegptError

RETRIES = 3
COMMAND = (sys.executable, "-m", "ray_jobs.helper_process")


class HelperDied(MegptError):
    """A part of the work ended every process that tried it."""


class Helpers:
    """Processes that compute one function; they start when they are needed, and end with the block.

    Args:
        function: known by its name, or a `functools.partial` of such a one.
        count: how many parts are computed at once.
    """

    def __init__(self, function: Callable[..., Any], count: int):
        self.count = count
        self._function = pickle.dumps(function)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="helper")
        self._own = threading.local()
        self._lock, self._running, self._closed = threading.Lock(), set[_Helper](), False

    def __enter__(self) -> Helpers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._closed, running = True, list(self._running)
        for helper in running:
            helper.end()
        self._threads.shutdown(cancel_futures=True)

    def warm(self) -> None:
        """Have the processes start, and import what the function needs, while the caller does something else."""
        for _ in range(self.count):
            self._threads.submit(self._helper)

    def start(self, *arguments: Any, **keywords: Any) -> Future[Any]:
        """Have a part computed; its result, or the error that the function raised, is the future's.

        The future raises HelperDied if the part ended each of the processes that tried it.
        """
        return self._threads.submit(self._ask, pickle.dumps((arguments, keywords)))

    def unordered(
        self, parts: Iterable[tuple[Any, ...]], meanwhile: Callable[[], object] = lambda: None
    ) -> Iterator[Any]:
        """The results of many parts, as they come; `meanwhile` is called each second or so."""
        waiting = {self.start(*part) for part in parts}
        while waiting:
            done, waiting = wait(waiting, timeout=1.0, return_when=FIRST_COMPLETED)
            meanwhile()
            for part in done:
                yield part.result()

    def _ask(self, request: bytes) -> Any:
        for _ in range(1 + RETRIES):
            if self._closed:
                break
            helper = self._helper()
            try:
                done, answer = helper.ask(request)
            except (EOFError, OSError, pickle.UnpicklingError):
                self._end(helper)
                continue
            if not done:
                raise answer
            return answer
        raise HelperDied(
            f"a part of the work ended {1 + RETRIES} processes that tried it",
            cause="too little memory, or a file that ends the process that reads it",
            next="see how much memory is free, and run the same command again: it resumes",
        )

    def _helper(self) -> _Helper:
        """The process of this thread."""
        helper: _Helper | None = getattr(self._own, "helper", None)
        if helper is None:
            helper = self._own.helper = _Helper()
            with self._lock:
                self._running.add(helper)
                closed = self._closed
            if closed:
                helper.end()
            helper.greet(self._function)
        return helper

    def _end(self, helper: _Helper) -> None:
        self._own.helper = None
        with self._lock:
            self._running.discard(helper)
        helper.end()


class _Helper:
    """One process."""

    def __init__(self) -> None:
        paths = os.pathsep.join(path for path in sys.path if path)
        environment = {**os.environ, "PYTHONPATH": paths}
        # As many helpers as there are cores: each has one.
        environment.setdefault("OMP_NUM_THREADS", "1")
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `end`)
        # In a group of its own a Ctrl-C on the terminal does not reach it: the command alone decides.
        self._process = subprocess.Popen(
            COMMAND,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            process_group=0,
        )

    def greet(self, function: bytes) -> None:
        """Tell it the function.

        Raises:
            MegptError: it ended before it could answer, which no part of the work is to blame for.
        """
        try:
            self.ask(function)
        except (EOFError, OSError):
            self._process.wait()
            self._said.seek(0)
            lines = self._said.read().decode(errors="replace").split("\n")
            said = next((line for line in reversed(lines) if line.strip()), f"exit {self._process.returncode}")
            raise MegptError(
                "a helper process could not start",
                where=" ".join(COMMAND),
                cause=said[:200],
                next="see how much memory is free; cluster.ray=always does the work on Ray in its place",
            ) from None

    def ask(self, request: bytes) -> tuple[bool, Any]:
        """Whether the function returned, and what it returned or raised.

        Raises:
            EOFError, OSError, pickle.UnpicklingError: the process has died.
        """
        stdin, stdout = self._pipes()
        stdin.write(request)
        stdin.flush()
        return pickle.load(stdout)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (*self._pipes(), self._said):
            try:
                pipe.close()
            except OSError:  # what was not written is lost, as it should be
                continue

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self._process.stdin and self._process.stdout
        return self._process.stdin, self._process.stdout
