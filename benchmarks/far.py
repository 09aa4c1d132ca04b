"""An archive at an address: planning 400,000 keys, and preparing films 50 ms away, beside the same on local disk.

    OMP_NUM_THREADS=1 python benchmarks/far.py --out benchmarks/results/far-DATE.json

Both read from a small S3 server on loopback, in a process of its own: it answers listings of a drawn tree
(PATIENT/STUDY/two films) page by page, and films from memory, each answer `--latency` later. The films are those of
decode.py. A shard is prepared in this process, from local disk and from the server in turns.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlparse

KEYS, PAGE, TARGET = 400_000, 1000, {"seconds": 300, "share": 0.8}
ENTRY = (
    "<Contents><Key>{}</Key><LastModified>2026-11-01T00:00:00.000Z</LastModified><ETag>&quot;{:032x}&quot;</ETag>"
    "<Size>{}</Size><StorageClass>STANDARD</StorageClass></Contents>"
)


def key(number: int) -> str:
    return f"tree/p{number // 40:06d}/s{number // 2:07d}/film{number % 2}.jpg"


class Server(http.server.BaseHTTPRequestHandler):
    """Listings of `key(0 … keys)`, and `films/NAME` from a folder."""

    protocol_version = "HTTP/1.1"
    keys, latency, folder = KEYS, 0.0, Path()
    held: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        time.sleep(self.latency)
        url = urlparse(self.path)
        query = parse_qs(url.query)
        name = unquote(url.path).removeprefix("/bucket").strip("/")
        if "list-type" in query:
            self.list(query)
            return
        path = self.folder / name
        if name not in self.held and path.is_file():
            self.held[name] = path.read_bytes()
        self.answer(200 if name in self.held else 404, self.held.get(name, b""))

    do_HEAD = do_GET

    def list(self, query: dict[str, list[str]]) -> None:
        prefix = query.get("prefix", [""])[0]
        if prefix.startswith("films"):
            names = [f"films/{p.name}" for p in sorted((self.folder / "films").iterdir())]
            entries, more = [ENTRY.format(n, 1, (self.folder / n).stat().st_size) for n in names], ""
        else:
            first = int(query.get("continuation-token", ["0"])[0])
            last = min(first + PAGE, self.keys)
            entries = [ENTRY.format(key(n), n, 1_500_000) for n in range(first, last)]
            more = f"<NextContinuationToken>{last}</NextContinuationToken>" if last < self.keys else ""
        truncated = "true" if more else "false"
        text = f"<?xml version='1.0'?><ListBucketResult><Name>bucket</Name><IsTruncated>{truncated}</IsTruncated>"
        self.answer(200, f"{text}{''.join(entries)}{more}</ListBucketResult>".encode())

    def answer(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{len(data):032x}"')
        self.send_header("Last-Modified", "Sun, 01 Nov 2026 00:00:00 GMT")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def serve(folder: Path, keys: int, latency: float) -> None:
    Server.keys, Server.latency, Server.folder = keys, latency, folder
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    print(server.server_address[1], flush=True)
    server.serve_forever()


@contextlib.contextmanager
def serving(folder: Path, keys: int, latency: float) -> Iterator[dict[str, str]]:
    """The environment that leads to a server."""
    command = [sys.executable, __file__, "--serve", str(folder), "--keys", str(keys), "--latency", str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        try:
            yield {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                **dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "none"),
                "AWS_REGION": "us-east-1",
            }
        finally:
            server.kill()


def plan() -> dict[str, Any]:
    """The shard list of the whole tree."""
    from megpt.config import load_config
    from megpt.data.prepare import list_shards
    from megpt.data.sources import open_source

    config, began = load_config(None, []), time.monotonic()
    source = open_source("s3://bucket/tree", data=config.data)
    listed = time.monotonic() - began
    with tempfile.TemporaryDirectory() as output:
        shards = list_shards(Path(output), source.listed(), shard_size=500, seed=0, source=source)
    return {
        "studies": shards.studies,
        "films": shards.notes["found"]["films"],
        "listing_s": round(listed, 1),
        "seconds": round(time.monotonic() - began, 1),
        "cpu_s": round(time.process_time(), 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def films(folder: Path, count: int, repeats: int) -> dict[str, Any]:
    """Films a second of one process, local and far in turns."""
    from megpt.config import load_config
    from megpt.data.prepare import list_shards, prepare_shard
    from megpt.data.sources import open_source
    from megpt.places import place

    config = load_config(None, ["data.format=folder"])
    rates: dict[str, list[float]] = {"local": [], "far": []}
    busy: dict[str, list[float]] = {"local": [], "far": []}
    for _ in range(repeats):
        for name, root in (("local", str(folder / "films")), ("far", "s3://bucket/films")):
            source = open_source(root, data=config.data)
            with tempfile.TemporaryDirectory() as output:
                out = Path(output)
                shards = list_shards(out / "plan", source.listed(), shard_size=count, seed=0, source=source)
                began, before = time.monotonic(), time.process_time()
                for shard in shards:
                    prepare_shard(out, shards, shard, config.prepare, archive=place(root), max_pixels=10**8)
                wall, cpu = time.monotonic() - began, time.process_time() - before
                rates[name].append(count / wall)
                busy[name].append(cpu / count)
                print(f"{name}: {count / wall:.1f} films/s, {cpu / wall:.0%} of a core", file=sys.stderr, flush=True)
    result: dict[str, Any] = {name: [round(rate, 1) for rate in found] for name, found in rates.items()}
    share = statistics.median(rates["far"]) / statistics.median(rates["local"])
    per_film = {name: round(statistics.median(found), 4) for name, found in busy.items()}
    return result | {"share": round(share, 3), "cpu_s_per_film": per_film}


def draw_films(folder: Path, count: int) -> None:
    from decode import as_jpeg, draw

    (folder / "films").mkdir(parents=True, exist_ok=True)
    drawn = [as_jpeg(draw(seed)) for seed in range(4)]
    for number in range(count):
        (folder / "films" / f"{number:04d}.jpg").write_bytes(drawn[number % len(drawn)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=KEYS)
    parser.add_argument("--films", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--plan", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.keys, options.latency)
        return 0
    if options.plan:
        print(json.dumps(plan()))
        return 0
    from record import record, save

    result: dict[str, Any] = record("far.py", "obstore", "pyarrow", "pillow") | {
        "latency_s": options.latency,
        "plans": {},
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for keys in (options.keys // 4, options.keys):
            with serving(folder, keys, options.latency) as reached:
                command = [sys.executable, __file__, "--plan"]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | reached)
            result["plans"][keys] = json.loads(done.stdout)
            print(keys, result["plans"][keys], file=sys.stderr, flush=True)
        draw_films(folder, options.films)
        with serving(folder, 0, options.latency) as reached:
            os.environ.update(reached)
            result["films"] = films(folder, options.films, options.repeats)
    result["target"] = TARGET
    save(result, options.out)
    slow = max(found["seconds"] for found in result["plans"].values()) > TARGET["seconds"]
    return int(slow or result["films"]["share"] < TARGET["share"])


if __name__ == "__main__":
    sys.exit(main())
