"""A real PACS on loopback for tests: Debian's orthanc with its DICOMweb plugin, and a proxy that spoils its answers.

with Orthanc(tmp_path) as pacs:
    pacs.store(film(...))                       # pydicom data sets, by Orthanc's own REST API
    source = pacs.address                       # dicomweb://127.0.0.1:PORT/dicom-web
    with Proxy(pacs.port) as proxy:
        proxy.spoil = lambda method, path: 503 if "/metadata" in path else None
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pydicom
import pytest
import requests

PROGRAM = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
PLUGIN = next(
    (
        path
        for folder in ("/usr/share/orthanc/plugins", "/usr/lib/orthanc", "/usr/local/share/orthanc/plugins")
        if (path := Path(folder) / "libOrthancDicomWeb.so").exists()
    ),
    None,
)
needs_orthanc = pytest.mark.skipif(
    PROGRAM is None or PLUGIN is None, reason="needs Debian's packages orthanc and orthanc-dicomweb"
)


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


class Orthanc:
    """A server of its own in a folder, for as long as the `with` block.

    Args:
        users: name → password; with any, requests need them.
    """

    def __init__(self, folder: Path, *, users: dict[str, str] | None = None):
        self.folder, self.users = folder, users or {}
        self.port = free_port()
        self.address = f"dicomweb://localhost:{self.port}/dicom-web"

    def __enter__(self) -> Orthanc:
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "Name": "test",
            "StorageDirectory": str(self.folder / "storage"),
            "IndexDirectory": str(self.folder / "storage"),
            "Plugins": [str(PLUGIN)],
            "HttpPort": self.port,
            "DicomServerEnabled": False,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": bool(self.users),
            "RegisteredUsers": self.users,
            "OverwriteInstances": False,
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": False},
        }
        place = self.folder / "orthanc.json"
        place.write_text(json.dumps(settings))
        log = (self.folder / "log.txt").open("w")
        self._process = subprocess.Popen([str(PROGRAM), str(place)], stdout=log, stderr=subprocess.STDOUT)
        log.close()
        until = time.monotonic() + 30
        while time.monotonic() < until:
            with contextlib.suppress(requests.ConnectionError):
                self.request("GET", "/system")
                return self
            time.sleep(0.05)
        self.__exit__()
        raise RuntimeError((self.folder / "log.txt").read_text()[-2000:])

    def __exit__(self, *error: object) -> None:
        self._process.kill()  # it would take two seconds to end by itself
        self._process.wait()

    def request(self, method: str, path: str, **values: Any) -> requests.Response:
        auth = next(iter(self.users.items()), None)
        return requests.request(method, f"http://localhost:{self.port}{path}", auth=auth, timeout=30, **values)

    def store(self, *datasets: pydicom.Dataset) -> None:
        for dataset in datasets:
            file = io.BytesIO()
            dataset.save_as(file, enforce_file_format=True)
            self.request("POST", "/instances", data=file.getvalue()).raise_for_status()

    def found(self, level: str, **query: str) -> list[dict[str, Any]]:
        """What QIDO-RS finds, as {tag: first value}."""
        answer = self.request("GET", f"/dicom-web/{level}", params=query, headers={"Accept": "application/dicom+json"})
        answer.raise_for_status()
        rows = answer.json() if answer.content else []
        return [{tag: (entry.get("Value") or [None])[0] for tag, entry in row.items()} for row in rows]

    def delete_study(self, uid: str) -> None:
        (study,) = self.request("POST", "/tools/lookup", data=uid).json()
        self.request("DELETE", study["Path"]).raise_for_status()


Spoil = Callable[[str, str], int | float | str | bytes | None]


class Proxy:
    """Passes requests on to a server; `spoil` may answer in its place.

    Args:
        certificate: a PEM file with certificate and key, for TLS (Debian's Orthanc 1.10 has a TLS that crashes).

    For a method and a path `spoil` returns a status; `half` for half of the body under the whole length, `short` for
    half of it and no word of more; `reset` for a connection that breaks; a URL to redirect to; bytes that are the whole
    answer; a number of seconds to wait first; None for the true answer. `requests` has all of them.
    """

    def __init__(self, port: int, certificate: Path | None = None):
        self.target, self.spoil, self.requests = port, (lambda method, path: None), list[tuple[str, str, str]]()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                proxy._handle(self)

            do_GET = do_POST = handle_any

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        scheme = "dicomwebs" if certificate else "dicomweb"
        self.address = f"{scheme}://localhost:{self._server.server_address[1]}/dicom-web"
        self.spoil: Spoil

    def __enter__(self) -> Proxy:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        self.requests.append((handler.command, handler.path, handler.headers.get("Authorization") or ""))
        fault = self.spoil(handler.command, handler.path)
        if isinstance(fault, int):
            self._answer(handler, fault, b"SMITH^JOHN refused", {"Retry-After": "0"} if fault in (429, 503) else {})
            return
        if isinstance(fault, str) and fault.startswith("http"):
            self._answer(handler, 302, b"", {"Location": fault})
            return
        if isinstance(fault, bytes):
            self._answer(handler, 200, fault, {"Content-Type": "application/dicom+json"})
            return
        if isinstance(fault, float):
            time.sleep(fault)
        if fault == "reset":
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
            return
        passed = {
            k: v for k, v in handler.headers.items() if k.lower() not in ("host", "connection", "accept-encoding")
        }
        server = http.client.HTTPConnection("127.0.0.1", self.target, timeout=30)
        server.request(handler.command, handler.path, body or None, passed)
        answer = server.getresponse()
        data = answer.read()
        headers = {k: v for k, v in answer.getheaders() if k.lower() in ("content-type", "warning")}
        server.close()
        if fault in ("half", "short"):
            handler.close_connection = True
            handler.send_response(answer.status)
            for name, value in headers.items():
                handler.send_header(name, value)
            if fault == "half":
                handler.send_header("Content-Length", str(len(data)))
            handler.send_header("Connection", "close")
            handler.end_headers()
            handler.wfile.write(data[: len(data) // 2])
            return
        self._answer(handler, answer.status, data, headers)

    def _answer(self, handler: BaseHTTPRequestHandler, status: int, data: bytes, headers: dict[str, str]) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)
