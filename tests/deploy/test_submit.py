"""A job submitted to a running cluster, with the commands that README.md and docs/cluster.md print, token on.

- `ray start --head` refuses to start without a token; with one it starts.
- `ray job submit --working-dir . -- python -m ray_jobs prepare …` runs in the environment that the head was started in:
  a small archive becomes a studies/ table under an absolute output; the exit code is 0.
- So do `generate`, exactly as README.md prints it but for the paths, and two steps of `train`.
- The upload holds the code and neither data, nor results, nor environments (`.rayignore`).
- The same command again finds nothing to do.
- A bad input (a relative output) ends the submit with a non-zero code; the job's own code is in its last line.
- The logs of head and jobs hold no report text.
- Without the token nothing is accepted.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image

from megpt.data.studies import read_studies

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
REPORT = "The heart is xylophonically enlarged with a quizzical left effusion."


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Head:
    """A head node of its own: own port, temporary folder, home and token, so that no other Ray is touched."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="megpt-head-", dir="/tmp"))  # short: Ray's sockets lie below it
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
            "HOME": str(self.folder),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "NO_COLOR": "1",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, *command: str, cwd: Path = ROOT, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=cwd, env=self.environment | changes, capture_output=True, text=True, timeout=240
        )

    def command(self) -> list[str]:
        port, dashboard, agent, client = free_ports(4)
        self.environment["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
        return [
            *["ray", "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}"],
            *[f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"],
            # The GPUs are declared only: what asks for one is placed, and works on the CPU.
            *[f"--temp-dir={self.folder / 't'}", "--num-cpus=8", "--num-gpus=8", "--node-ip-address=127.0.0.1"],
            f"--object-store-memory={200 * 2**20}",
        ]

    def start(self) -> None:
        """Until a job can be submitted; tried again where a busy machine did not start Ray within Ray's own limits."""
        log = self.folder / "head.log"
        for _ in range(3):
            self.process = subprocess.Popen(
                self.command(),
                cwd=ROOT,
                env=self.environment,
                stdout=log.open("wb"),
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            deadline = time.monotonic() + 120
            while self.process.poll() is None and time.monotonic() < deadline:
                if self.run("ray", "job", "submit", "--", "true").returncode == 0:
                    return
                time.sleep(1)
            self.halt()
        raise AssertionError(log.read_text())

    def submit(self, *command: str) -> subprocess.CompletedProcess[str]:
        return self.run("ray", "job", "submit", "--working-dir", ".", "--", *command)

    def halt(self) -> None:
        """The head and every process below it, and no other; asked nicely Ray would drain for half a minute."""
        if self.process and self.process.poll() is None:
            head = psutil.Process(self.process.pid)
            for process in [*head.children(recursive=True), head]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.wait()

    def stop(self) -> None:
        self.halt()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    head = Head()
    try:
        refused = head.run(*head.command())
        assert refused.returncode and "ray get-auth-token --generate" in refused.stderr
        made = head.run("ray", "get-auth-token", "--generate")
        assert made.returncode == 0 and (head.folder / ".ray" / "auth_token").read_text() == made.stdout
        head.start()
        yield head
    finally:
        head.stop()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six training studies in R2Gen's layout, one of them without its film, and three for the test."""
    folder = tmp_path_factory.mktemp("archive")
    studies = []
    for number in range(9):
        film = folder / "images" / f"S{number}" / "0.png"
        film.parent.mkdir(parents=True)
        if number != 5:
            Image.effect_noise((64, 64), 60).save(film)
        entry = {
            "id": f"S{number}",
            "report": REPORT,
            "image_path": [f"S{number}/0.png"],
            "split": "train" if number < 6 else "test",
        }
        studies.append(entry)
    (folder / "annotation.json").write_text(json.dumps({"train": studies[:6], "val": [], "test": studies[6:]}))
    return folder


def test_a_submitted_job(head: Head, archive: Path, tmp_path: Path) -> None:
    output = tmp_path / "studies"
    prepare = [*["python", "-m", "ray_jobs", "prepare", f"source={archive}", f"output={output}"]]
    prepare += ["prepare.max_failed_fraction=0.5", "prepare.image_size=32"]
    done = head.submit(*prepare)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {s.study_id for s in read_studies(output, "train")} == {f"S{n}" for n in range(5)}
    assert (output / "_SUCCESS").exists() and (output / "failed.parquet").exists()

    again = head.submit(*prepare)
    assert again.returncode == 0 and "is finished, nothing to do" in again.stdout
    logs = [p for p in (head.folder / "t").rglob("*") if p.is_file() and p.suffix in (".log", ".out", ".err", ".txt")]
    assert len(logs) > 10
    for text in [
        done.stdout + done.stderr,
        again.stdout + again.stderr,
        *(p.read_text(errors="replace") for p in logs),
    ]:
        assert "xylophonically" not in text


def test_generate_as_the_readme_prints_it(head: Head, archive: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    printed = re.search(r"^(ray job submit .*\\\n.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert printed
    command = printed[1].replace("\\\n", " ").split()
    places = {"source": archive, "checkpoint": tiny_checkpoint, "output": tmp_path / "reports"}
    for name, place in places.items():
        at = next(n for n, word in enumerate(command) if word.startswith(f"{name}=/shared/"))
        command[at] = f"{name}={place}"
    done = head.run(*command, "generate.split=test")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "generate: 3 studies, 0 of them without a report" in done.stdout
    rows = pq.read_table(tmp_path / "reports" / "reports").to_pylist()
    assert {row["study_id"] for row in rows} == {"S6", "S7", "S8"} and all(row["report"] for row in rows)
    assert "xylophonically" not in done.stdout + done.stderr


def test_two_steps_of_training(head: Head, archive: Path, tiny_llm: Path, tmp_path: Path) -> None:
    train = [*["python", "-m", "ray_jobs", "train", f"source={archive}", f"output={tmp_path / 'checkpoint'}"]]
    train += [f"model.llm={tiny_llm}", "model.vision=test_vit", "model.vision_weights=none", "model.image_size=32"]
    train += ["model.dynamic_prompt=false", "train.max_steps=2", "train.global_batch_size=2", "train.loggers=[]"]
    train += ["train.max_failed_fraction=0.5"]
    done = head.submit(*train)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "checkpoint" / "_SUCCESS").exists() and (tmp_path / "checkpoint" / "config.json").exists()
    assert "xylophonically" not in done.stdout + done.stderr


def test_the_upload_holds_code_and_no_data(head: Head, tmp_path: Path) -> None:
    work = tmp_path / "work"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    for name in [".rayignore", ".gitignore", *(n for n in listed if n.startswith(("ray_jobs/", "megpt/")))]:
        if (ROOT / name).exists():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, work / name)
    unwanted = ["runs/demo/archive/S0/0.png", ".venv/lib/x.py", ".git/x", "a.dcm", "x/model.safetensors", "b/c.parquet"]
    unwanted += ["llama.pth", "megpt/__pycache__/x.pyc", "benchmarks/results/x.json"]
    for name in unwanted:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(b"x" * 1000)
    listing = head.run("ray", "job", "submit", "--working-dir", ".", "--", "find", ".", "-type", "f", cwd=work)
    assert listing.returncode == 0, listing.stderr
    names = {line.removeprefix("./") for line in listing.stdout.splitlines()}
    assert not names & set(unwanted)
    assert "ray_jobs/__main__.py" in names and "megpt/output.py" in names


def test_a_failure_reaches_who_submitted(head: Head) -> None:
    done = head.submit("python", "-m", "ray_jobs", "prepare", "source=/nowhere", "output=runs/x")
    assert done.returncode == 1 and "Traceback" not in done.stdout
    assert "output = 'runs/x' is relative inside a submitted job" in done.stdout
    assert "Job entrypoint command failed with exit code 2" in done.stdout + done.stderr


def test_nothing_without_the_token(head: Head) -> None:
    wrong = head.run("ray", "job", "list", RAY_AUTH_TOKEN=secrets.token_hex(32))
    assert wrong.returncode and "AuthenticationError" in wrong.stderr
