"""An S3 server on loopback (moto's, a real process), and a proxy before it that fails, delays and cuts on demand."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "secret-of-the-test", "AWS_REGION": "us-east-1"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def s3_server(log: Path) -> Iterator[str]:
    """The address of an empty S3 server."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        for _ in range(600):
            if server.poll() is not None:
                raise RuntimeError(log.read_text())
            with contextlib.suppress(OSError):
                if ask(port, "GET", "/moto-api/")[0] == 200:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, body=body)
    answer = connection.getresponse()
    return answer.status, answer.read()


@dataclass
class Fault:
    """What happens to requests that `when` accepts, `times` times."""

    when: Callable[[str, str], bool]
    status: int = 0
    delay_s: float = 0.0
    before: Callable[[], None] | None = None
    cut_at: int | None = None
    times: int = 1_000_000


@dataclass
class Proxy:
    """Passes requests to the server, and counts them."""

    server: str
    faults: list[Fault] = field(default_factory=list)
    seen: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        proxy, port = self, int(self.server.rpartition(":")[2])

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                with contextlib.suppress(ConnectionError):
                    super().handle_one_request()

            def serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fault = proxy.meet(self.command, self.path)
                if fault and fault.delay_s:
                    time.sleep(fault.delay_s)
                if fault and fault.status:
                    self.answer(fault.status, {}, b"<Error><Code>SlowDown</Code></Error>")
                    return
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                connection.request(self.command, self.path, body=body, headers=dict(self.headers))
                found = connection.getresponse()
                data = found.read()
                connection.close()
                if fault and fault.before:
                    fault.before()
                cut = fault.cut_at if fault else None
                self.answer(found.status, dict(found.getheaders()), data, cut=cut)

            def answer(self, status: int, headers: dict[str, str], data: bytes, *, cut: int | None = None) -> None:
                self.send_response(status)
                length = str(len(data))
                for name, value in headers.items():
                    if name.lower() == "content-length":
                        length = value
                    elif name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                        self.send_header(name, value)
                self.send_header("Content-Length", length if self.command == "HEAD" else str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data if cut is None else data[:cut])
                if cut is not None:
                    self.close_connection = True

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = serve

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            server.server_close()

    def meet(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.seen.append((method, path))
            for fault in self.faults:
                if fault.times > 0 and fault.when(method, path):
                    fault.times -= 1
                    return fault
        return None


def make_bucket(server: str, name: str) -> None:
    status, answer = ask(int(server.rpartition(":")[2]), "PUT", f"/{name}")
    assert status == 200, answer


def put_folder(folder: Path, address: str) -> None:
    """Copy a folder of this machine to an address."""
    from megpt.places import place
    from megpt.places.whole import put_tree

    put_tree(folder, place(address))


def environment(server: str, cache: Path) -> dict[str, str]:
    """What a process needs to reach the server, and nothing of the caller's own account."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return {**own, **KEYS, "AWS_ENDPOINT_URL": server, "MEGPT_CACHE": str(cache)}
