"""Who writes where nothing can be locked: a store, or a file system without locks.

- of many that claim at once one has it; it is free when the owner ends, and at once when the owner was killed here
- a dead owner of another machine is outlived, without comparing clocks; a living one is not
- an owner that lost its lease is told
- a file system without locks: a lease, said aloud; a job and `megpt status` both see it
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from megpt.config import Config
from megpt.errors import InputError
from megpt.output import claim, inspect, is_locked
from megpt.places import lease, place
from megpt.places.lease import Taken, is_leased, leased, newest


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"RENEW_S": 0.2, "WATCH_S": 1.5, "LOOK_S": 0.1}.items():
        monkeypatch.setattr(lease, name, seconds)


@pytest.fixture(params=["near", "far"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / "out" if request.param == "near" else place(request.getfixturevalue("bucket") + "/out")


def never() -> None:
    raise AssertionError("the lease was lost")


def test_one_of_many(folder: Path) -> None:
    won: list[int] = []
    start = threading.Barrier(6)

    def run(number: int) -> None:
        start.wait()
        with contextlib.suppress(Taken), leased(folder, lost=never):
            won.append(number)
            time.sleep(3)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(2)
    assert len(won) == 1 and is_leased(folder)
    for thread in threads:
        thread.join()
    assert len(won) == 1 and not is_leased(folder)
    with leased(folder, lost=never):
        assert newest(folder).number == 2  # type: ignore[union-attr]
        assert [p.name for p in (folder / ".lease").iterdir()] == ["000002"]


def write(folder: Path, number: int, **content: object) -> None:
    owner = {"token": "x", "host": "elsewhere", "machine": "another", "pid": 1, "started": 0, "renewed": time.time()}
    path = folder / ".lease" / f"{number:06d}"
    path.parent.mkdir(parents=True, exist_ok=True)
    lease._replace(path, json.dumps({**owner, **content}).encode())


def test_a_dead_owner_elsewhere_is_outlived(folder: Path, capfd: pytest.CaptureFixture) -> None:
    write(folder, 7)
    assert is_leased(folder)
    began = time.monotonic()
    with leased(folder, lost=never):
        assert newest(folder).number == 8  # type: ignore[union-attr]
    assert 1.4 < time.monotonic() - began < 30
    assert "is leased by elsewhere; watching whether it is renewed" in capfd.readouterr().err


def test_a_living_owner_elsewhere_is_not(folder: Path) -> None:
    write(folder, 7)
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(0.3):
            write(folder, 7, renewed=0)  # its clock may say anything

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(Taken), leased(folder, lost=never):
            pass
    finally:
        stop.set()
        thread.join()


def test_an_owner_that_was_killed_here_is_seen_at_once(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from megpt.places import lease\nlease.RENEW_S = 0.2\n"
        "with lease.leased(Path(sys.argv[1]), lost=print):\n    print('held', flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None and owner.stdout.readline() == "held\n"
    with pytest.raises(Taken), leased(tmp_path, lost=never):
        pass
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    began = time.monotonic()
    with leased(tmp_path, lost=never):
        assert time.monotonic() - began < 1


def test_an_owner_that_lost_its_lease_is_told(folder: Path) -> None:
    lost = threading.Event()
    with leased(folder, lost=lost.set):
        write(folder, 2)
        assert lost.wait(10)
    assert newest(folder).number == 2 and not newest(folder).free  # type: ignore[union-attr]  # it frees only its own


def test_a_lease_that_was_cut_off_while_it_was_written(tmp_path: Path) -> None:
    (tmp_path / ".lease").mkdir()
    (tmp_path / ".lease" / "000001").write_bytes(b"")
    with leased(tmp_path, lost=never):
        assert newest(tmp_path).number == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    out, config = tmp_path / "out", Config()
    with claim(out, job="prepare", identity={}, config=config):
        assert f"{out}: its file system has no locks; a lease in {out / '.lease'} is kept" in capfd.readouterr().err
        assert is_locked(out)
        with (
            pytest.raises(InputError, match="another job is writing"),
            claim(out, job="prepare", identity={}, config=config),
        ):
            pass
        with pytest.raises(InputError, match="another job is writing"):
            inspect(out, job="prepare", identity={})
    assert not is_locked(out)
    with claim(out, job="prepare", identity={}, config=config) as again:
        assert not again.done


def test_the_claim_of_an_address(bucket: str) -> None:
    out, config = place(f"{bucket}/out"), Config()
    with claim(str(out), job="prepare", identity={"seed": 1}, config=config) as output:
        assert is_locked(out)
        with (
            pytest.raises(InputError, match="another job is writing"),
            claim(str(out), job="prepare", identity={"seed": 1}, config=config),
        ):
            pass
        output.finish(studies=3)
    assert not is_locked(out)
    with claim(str(out), job="prepare", identity={"seed": 1}, config=config) as output:
        assert output.done and output.summary() == {"studies": 3}
    with pytest.raises(InputError, match="exists from another config"):
        inspect(str(out), job="prepare", identity={"seed": 2})
    with claim(str(out), job="prepare", identity={"seed": 1}, config=config) as output:
        output.discard()
    assert not out.exists() or [p.name for p in out.iterdir()] == [".lease"]
    (place(f"{bucket}/other") / "film.png").touch()
    with (
        pytest.raises(InputError, match="was not written by megpt"),
        claim(f"{bucket}/other", job="prepare", identity={}, config=config),
    ):
        pass
