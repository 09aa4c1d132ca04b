"""A hub on the loopback, as much of its API as pushing and downloading a model needs; keeps everything in memory."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" * 6 + "c0ff"


class Hub(BaseHTTPRequestHandler):
    files: dict[str, dict[str, bytes]]
    """Repository → path → content."""

    def log_message(self, *arguments: Any) -> None:
        pass

    def _say(self, tree: Any, status: int = 200) -> None:
        self._send(json.dumps(tree).encode(), status)

    def _send(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        address = f"http://127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]
        if path == "/api/repos/create":
            tree = json.loads(body)
            repo = "/".join(part for part in (tree.get("organization"), tree["name"]) if part)
            self.files.setdefault(repo, {})
            self._say({"url": f"{address}/{repo}"})
        elif path == "/api/validate-yaml":
            self._say({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            named = json.loads(body)["files"]
            self._say({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in named]})
        elif "/commit/" in path:
            repo = path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._say({"success": True, "commitUrl": f"{address}/{repo}/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self._say({"error": path}, 404)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/models/"):
            repo, _, rest = path.removeprefix("/api/models/").partition("/revision/")
            repo, _, tree = repo.partition("/tree/")
            if repo not in self.files:
                self._send(b"", 404, X_Error_Code="RepoNotFound")
            elif tree:
                self._say(
                    [{"type": "file", "path": p, "size": len(c), "oid": "0"} for p, c in self.files[repo].items()]
                )
            else:
                self._say({"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files[repo]]})
            return
        repo, _, rest = path.lstrip("/").partition("/resolve/")
        content = self.files.get(repo, {}).get(rest.partition("/")[2])
        if content is None:
            self._send(b"", 404, X_Error_Code="EntryNotFound")
        else:
            tag = hashlib.sha256(content).hexdigest()
            self._send(content, ETag=f'"{tag}"', X_Repo_Commit=COMMIT)

    do_HEAD = do_GET


@contextlib.contextmanager
def loopback_hub() -> Iterator[tuple[str, dict[str, dict[str, bytes]]]]:
    """The address of a hub, and what it holds."""
    files: dict[str, dict[str, bytes]] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Hub,), {"files": files}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", files
    finally:
        server.shutdown()
        server.server_close()
