"""Parts of the work in processes of this machine.

- results and errors come back as they are; what a part prints, or a program that it starts, disturbs nothing
- a part that ends its process is tried again in another, and given up after `RETRIES`; the others are not touched
- helpers end with the block, also in the middle of a part; with a command that is killed; and not by its Ctrl-C
- a helper that cannot start says why, and no part is blamed for it
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from megpt.errors import InputError, MegptError
from ray_jobs import helpers as module
from ray_jobs.helpers import RETRIES, HelperDied, Helpers


def power(base: int, exponent: int, *, plus: int = 0) -> int:
    return base**exponent + plus


def loud(word: str) -> str:
    print("to standard output")
    return word + subprocess.run(["cat"], capture_output=True, text=True, check=True).stdout


class Odd(Exception):
    """Cannot be made from its text alone."""

    def __init__(self, one: str, other: str):
        super().__init__(one + other)


def failing(kind: str) -> None:
    if kind == "odd":
        raise Odd("the patient", "'s report")
    raise {"input": InputError("no such film", next="look again"), "key": KeyError("x")}[kind]


def deadly(folder: Path, times: int, word: str) -> str:
    """Ends its process the first times that it sees a word."""
    seen = folder / word
    seen.write_text(seen.read_text() + "x" if seen.exists() else "x")
    if len(seen.read_text()) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return word


def sleeping(folder: Path, seconds: float) -> None:
    (folder / f"{os.getpid()}").write_text("")
    time.sleep(seconds)


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def pids(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir()]


def test_results_and_errors_come_back() -> None:
    with Helpers(functools.partial(power, 2), 2) as helpers:
        assert helpers.start(10, plus=1).result() == 1025
        assert sorted(helpers.unordered((n,) for n in range(9))) == [2**n for n in range(9)]
    with Helpers(failing, 1) as helpers:
        with pytest.raises(InputError) as raised:
            helpers.start("input").result()
        assert raised.value.next == "look again"
        with pytest.raises(KeyError):
            helpers.start("key").result()
        with pytest.raises(RuntimeError, match=r"^Odd$"):  # its text, which may quote a report, is left behind
            helpers.start("odd").result()
    with Helpers(loud, 1) as helpers:
        assert helpers.start("quiet").result() == "quiet"


def test_a_part_that_ends_its_process(tmp_path: Path) -> None:
    with Helpers(functools.partial(deadly, tmp_path, RETRIES), 2) as helpers:
        assert helpers.start("again").result() == "again"
    assert (tmp_path / "again").read_text() == "x" * (RETRIES + 1)
    with Helpers(functools.partial(deadly, tmp_path, RETRIES + 1), 1) as helpers:
        bad = helpers.start("bad")
        with pytest.raises(HelperDied, match="a part of the work ended 4 processes that tried it"):
            bad.result()
        (tmp_path / "good").write_text("x" * 10)
        assert helpers.start("good").result() == "good"


def test_helpers_end_with_the_block(tmp_path: Path) -> None:
    began = time.monotonic()
    with Helpers(functools.partial(sleeping, tmp_path), 2) as helpers:
        for _ in range(5):
            helpers.start(60)
        wait_for(lambda: len(pids(tmp_path)) == 2)
    assert time.monotonic() - began < 30
    assert not any(psutil.pid_exists(pid) for pid in pids(tmp_path))


COMMAND = """
import functools, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_helpers import sleeping
from ray_jobs.helpers import Helpers
try:
    with Helpers(functools.partial(sleeping, Path(sys.argv[1])), 1) as helpers:
        helpers.start(120)
        helpers.start(120)
        time.sleep(120)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_helpers_end_with_the_command(stop: signal.Signals, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", COMMAND, str(tmp_path), str(Path(__file__).parent)]
    command = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: pids(tmp_path))
    (helper,) = pids(tmp_path)
    os.killpg(command.pid, stop)  # as a terminal does it
    said = command.communicate(timeout=60)[0]
    assert said == ("interrupted\n" if stop == signal.SIGINT else "")
    wait_for(lambda: not psutil.pid_exists(helper))


def test_a_helper_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMMAND", (sys.executable, "-c", "import no_such_module"))
    with Helpers(power, 1) as helpers, pytest.raises(MegptError, match="a helper process could not start") as raised:
        helpers.start(2, 3).result()
    assert not isinstance(raised.value, HelperDied)
    assert raised.value.cause == "ModuleNotFoundError: No module named 'no_such_module'"
