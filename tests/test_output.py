"""How a job owns the folder it writes.

- One config for ever: the same identity comes back, another is refused with what differs, another job as well.
- A folder with other files, a file in its place, a damaged record, a folder that cannot be written: refused, untouched.
- One writer at a time, over processes; a killed writer's claim is free again.
- `write_aside`: the new file whole, or the old one; nothing is left of a failed write; a process killed in the middle
  of a write leaves the old file and the next write succeeds.
- A full disk (a real one, a 1 MiB file system), a limit on file sizes and a full device: exit code 1, the text that
  says so, the old file kept, and the same command succeeds once there is room.
- The error of a library that hides the disk behind its own exception is told as the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megpt.config import Config
from megpt.errors import InputError, MegptError
from megpt.output import claim, is_full, storage_error, write_aside


def take(folder: Path, identity: dict[str, object] | None = None, job: str = "generate") -> bool:
    """Claim, and say whether the job is done."""
    config = Config(output=str(folder))
    with claim(config.output, job=job, identity=identity or {"seed": 1}, config=config) as output:
        return output.done


def refused(folder: Path, identity: dict[str, object] | None = None, job: str = "generate") -> str:
    with pytest.raises(InputError) as caught:
        take(folder, identity, job)
    return str(caught.value)


def test_claim_finish_and_come_back(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "out"
    config = Config(output=str(folder))
    with claim(config.output, job="generate", identity={"seed": 1, "path": tmp_path}, config=config) as output:
        assert not output.done and output.path == folder
    with claim(config.output, job="generate", identity={"seed": 1, "path": tmp_path}, config=config) as output:
        assert not output.done
        output.finish(done=3)
    assert json.loads((folder / "_SUCCESS").read_text()) == {"done": 3}
    assert take(folder, {"seed": 1, "path": str(tmp_path)})


def test_another_config_is_refused_with_the_difference(tmp_path: Path) -> None:
    take(tmp_path / "out", {"seed": 1, "generate": {"num_beams": 3}})
    assert refused(tmp_path / "out", {"seed": 2, "generate": {"num_beams": 1}}) == (
        f"output {tmp_path / 'out'} exists from another config\n"
        "  where: generate.num_beams: 3 → 1; seed: 1 → 2\n"
        "  cause: mixing two configs in one output would give numbers that belong to neither\n"
        "  next:  choose another output=PATH, or delete the folder"
    )
    assert "job: generate → train" in refused(tmp_path / "out", job="train")


def test_what_megpt_did_not_write_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    assert refused(tmp_path).startswith(f"output {tmp_path} exists and was not written by megpt")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    file = tmp_path / "thesis.txt"
    assert refused(file).startswith(f"output {file} exists and was not written by megpt")
    assert file.read_text() == "x"


@pytest.mark.parametrize("content", ["", "a: [", "job: generate", "[]", "\x00"])
def test_a_damaged_record_is_refused(tmp_path: Path, content: str) -> None:
    take(tmp_path / "out")
    (tmp_path / "out" / "megpt.yaml").write_text(content)
    assert refused(tmp_path / "out").startswith(f"{tmp_path / 'out' / 'megpt.yaml'} is damaged")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"out cannot be written\n  cause: Not a directory"):
        take(tmp_path / "file" / "out")
    assert storage_error(OSError(5, "Input/output error"), "/x").exit_code == 1
    assert isinstance(storage_error(PermissionError(13, "Permission denied"), "/x"), InputError)
    assert storage_error(OSError(30, "Read-only file system"), "/x").exit_code == 2


HOLD = """
import sys, time
from megpt.config import Config
from megpt.output import claim
config = Config(output=sys.argv[1])
with claim(config.output, job="generate", identity={"seed": 1}, config=config):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_look_by_status_does_not_turn_a_job_away(tmp_path: Path) -> None:
    config = Config(output=str(tmp_path / "out"))
    with claim(config.output, job="generate", identity={}, config=config):
        pass
    with (tmp_path / "out" / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        threading.Timer(0.05, lambda: fcntl.flock(lock, fcntl.LOCK_UN)).start()
        with claim(config.output, job="generate", identity={}, config=config) as output:
            assert not output.done


def test_one_writer_at_a_time_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout and holder.stdout.readline() == "held\n"
    assert refused(folder) == (
        f"another job is writing {folder} now\n"
        "  cause: two jobs on one output would write studies twice\n"
        f"  next:  wait for it (megpt status {folder}), or choose another output=PATH"
    )
    holder.kill()
    holder.wait()
    assert not take(folder)


def test_write_aside_is_whole_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    with write_aside(path) as temporary:
        temporary.write_text("old")
        assert not path.exists() and temporary.parent == path.parent
    with pytest.raises(ValueError, match="x"), write_aside(path) as temporary:
        temporary.write_text("half")
        raise ValueError("x")
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == ["a.json"]


KILLED = """
import sys, time
from megpt.output import write_aside
with write_aside(sys.argv[1]) as temporary:
    with temporary.open("w") as file:
        for _ in range(600):
            file.write("new" * 1000)
            file.flush()
            print("writing", flush=True)
            time.sleep(1)
"""


def test_killed_in_the_middle_of_a_write(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    writer = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout and writer.stdout.readline() == "writing\n"
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    assert path.read_text() == "old"
    with write_aside(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB with 64 KiB left."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        (folder / "filler").write_bytes(b"x" * (960 << 10))
        yield folder
    finally:
        for _ in range(20):
            if subprocess.run(["umount", str(folder)], capture_output=True).returncode == 0:
                break
            time.sleep(0.1)


def test_a_full_disk(full_disk: Path) -> None:
    path = full_disk / "out" / "a.bin"
    with write_aside(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(MegptError) as caught, write_aside(path) as temporary:
        temporary.write_bytes(b"new" * (1 << 20))
    assert caught.value.exit_code == 1
    first, where, cause, after = str(caught.value).splitlines()
    assert first == f"no space left to write {path}"
    assert where.startswith("  where: ") and where.endswith(" MiB free there")
    assert cause == "  cause: the disk or the quota is full; what was finished before is kept"
    assert after == "  next:  free space and run the same command again: it resumes"
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == ["a.bin"]
    (full_disk / "filler").unlink()
    with write_aside(path) as temporary:
        temporary.write_bytes(b"new" * 1000)
    assert path.stat().st_size == 3000


def test_claim_on_a_full_disk(full_disk: Path) -> None:
    left = full_disk / "left"
    with contextlib.suppress(OSError), left.open("wb") as file:
        while True:
            file.write(b"x" * 4096)
            file.flush()
    with pytest.raises(MegptError, match="no space left to write") as caught:
        take(full_disk / "out")
    assert caught.value.exit_code == 1
    left.unlink()
    assert not take(full_disk / "out")


def test_a_library_that_hides_the_full_disk(full_disk: Path) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from safetensors.numpy import save_file

    noise = np.random.default_rng(0).bytes(2 << 20)
    with pytest.raises(MegptError, match="no space left"), write_aside(full_disk / "a.parquet") as temporary:
        pq.write_table(pa.table({"x": [noise]}), temporary)
    with pytest.raises(MegptError, match="no space left"), write_aside(full_disk / "a.safetensors") as temporary:
        save_file({"x": np.zeros(1 << 20, np.float32)}, temporary)
    assert [p.name for p in full_disk.iterdir()] == ["filler"]


def test_a_limit_on_file_sizes(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; from megpt.output import write_aside\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, {resource.RLIM_INFINITY}))\n"
        "with write_aside(sys.argv[1]) as temporary: temporary.write_bytes(b'x' * (1 << 20))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True)
    assert f"no space left to write {tmp_path / 'a'}" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_is_and_is_not_a_full_disk() -> None:
    with pytest.raises(OSError) as caught:
        Path("/dev/full").write_text("x")
    assert is_full(caught.value)
    assert is_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not is_full(OSError(2, "No such file")) and not is_full(ValueError("x"))
