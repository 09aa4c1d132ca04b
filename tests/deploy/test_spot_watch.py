"""A cloud's notice reaches Ray.

- AWS is asked by IMDSv2 alone (a request without a session's token is refused); Google's answer must say TRUE
- no notice, a server that fails for a while: asked again
- the node on which the watch runs is drained, with the seconds that are left; in a pod, SIGTERM waits while workers run
"""

from __future__ import annotations

import datetime
import http.server
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from ray_nodes import RayNodes

WATCH = Path(__file__).resolve().parents[2] / "deploy" / "spot_watch.py"


class Metadata(http.server.BaseHTTPRequestHandler):
    """As the metadata servers of AWS and Google answer."""

    answers: ClassVar[list[Any]] = []

    def do_PUT(self) -> None:
        assert self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self.answer(200, "session")

    def do_GET(self) -> None:
        if self.path.startswith("/latest/"):
            known = self.headers.get("X-aws-ec2-metadata-token") == "session"
            assert self.path == "/latest/meta-data/spot/instance-action"
        else:
            known = self.headers.get("Metadata-Flavor") == "Google"
        if not known:
            return self.answer(401, "")
        return self.answer(*(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]))

    def answer(self, code: int, text: str) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def metadata() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def load() -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "spot_watch"}
    exec(compile(WATCH.read_text(), str(WATCH), "exec"), names)
    names["POLL_S"] = 0.01
    return names


def in_seconds(seconds: float) -> str:
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    return json.dumps({"action": "terminate", "time": at.strftime("%Y-%m-%dT%H:%M:%SZ")})


def test_aws(metadata: str) -> None:
    Metadata.answers = [(404, ""), (503, ""), (404, ""), (200, in_seconds(120))]
    watch = load()
    watch["ask"].__globals__["POLL_S"] = 0.5
    assert 110 < watch["wait_for_notice"]("aws", metadata) <= 121
    assert len(Metadata.answers) == 1


def test_google(metadata: str, capsys: pytest.CaptureFixture[str]) -> None:
    Metadata.answers = [(200, "FALSE"), (503, ""), (503, ""), (200, "TRUE")]
    watch = load()
    watch["ask"].__globals__["POLL_S"] = 0.5
    assert watch["wait_for_notice"]("gcp", metadata) == 30
    assert capsys.readouterr().out.count("does not answer (HTTPError)") == 1


@pytest.mark.slow
def test_ray_is_told(metadata: str, ray_nodes: RayNodes) -> None:
    Metadata.answers = [(200, in_seconds(100))]
    command = [sys.executable, str(WATCH), "aws", "--server", metadata]
    told = subprocess.run(command, env=ray_nodes.environment, capture_output=True, text=True, timeout=120)
    assert told.returncode == 0, told.stdout + told.stderr
    found = re.search(r"node (\w+), (\d+) s left, ray drain-node ended with 0", told.stdout)
    assert found and found[1] == ray_nodes.head and 80 <= int(found[2]) <= 90


@pytest.mark.slow
def test_a_pod_waits_for_its_workers(ray_nodes: RayNodes) -> None:
    """It holds SIGTERM back while they run, and ends at once where none does."""
    hold = "import ray, time; ray.init(); print('on', flush=True); "
    hold += "ray.get(ray.remote(lambda: time.sleep(60)).remote())"
    work = [sys.executable, "-c", hold]
    with subprocess.Popen(work, env=ray_nodes.environment, stdout=subprocess.PIPE, text=True) as working:
        assert working.stdout and working.stdout.readline() == "on\n"
        deadline = time.monotonic() + 60
        busy = load()["busy"]
        try:
            while not busy(ray_nodes.head):
                assert time.monotonic() < deadline
                time.sleep(0.2)
            assert not busy("another node")
        finally:
            working.kill()
    hook = [sys.executable, str(WATCH), "kubernetes"]
    ended = subprocess.run(hook, env=ray_nodes.environment, capture_output=True, text=True, timeout=90)
    assert ended.returncode == 0, ended.stdout + ended.stderr
