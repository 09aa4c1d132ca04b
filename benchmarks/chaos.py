"""Random kills while `megpt generate` runs: is every study there once, and is the table the same?

    python benchmarks/chaos.py --kills 20 --studies 2000 --out benchmarks/results/chaos-DATE.json

Draws an archive of noise films, some of them damaged, runs the job once undisturbed, then again while SIGKILL hits, at
random times, the driver (and with it the whole run), an actor, any worker process, or the raylet with all its workers
(the node); a run that ends without _SUCCESS is started again with the same command. Both tables are compared. Only
processes this script started are killed.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from record import record, save
from untrained import write_checkpoint

from megpt.data.studies import write_studies
from megpt.generation.predictions import finished_shards
from megpt.study import APPROXIMATE, Study, View

BROKEN_EVERY = 97
# What marks a victim's command line; the driver is the process that was started.
KINDS = {"driver": "", "actor": "ShardWorker", "worker": "ray::", "node": "/raylet/raylet"}
# How many of twenty kills are of which kind, in random order: driver and node end a start, and a start takes long.
SHARES = {"driver": 4, "actor": 7, "worker": 7, "node": 2}
PATIENCE_S = 300


def studies(count: int) -> Iterator[Study]:
    rng = np.random.default_rng(0)
    for number in range(count):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (64, 64), dtype=np.uint8)).save(file, "PNG")
        data = b"broken" if number % BROKEN_EVERY == 0 else file.getvalue()
        yield Study(f"study{number:05d}", views=(View("film", data=data),))


def command(archive: Path, output: Path, options: argparse.Namespace) -> list[str]:
    settings = [f"source={archive}", f"checkpoint={options.checkpoint}", f"output={output}"]
    rules = {"shard_size": options.shard_size, "min_new_tokens": 4, "max_new_tokens": 24, "slots": 32}
    settings += [f"generate.{key}={value}" for key, value in rules.items()]
    return [sys.executable, "-m", "ray_jobs", "generate", *settings]


def below(root: int) -> dict[int, str]:
    """Processes below `root`: id → command line."""
    parents, names = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
    found: set[int] = {root}
    while True:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        if not more:
            return {pid: names[pid] for pid in found - {root}}
        found |= more


def strike(driver: int, kind: str, chance: random.Random) -> bool:
    """Kill one process of that kind, a raylet with all below it; False when there is none now."""
    targets = [driver] if kind == "driver" else [pid for pid, name in below(driver).items() if KINDS[kind] in name]
    if not targets:
        return False
    target = chance.choice(sorted(targets))
    for pid in [*(below(target) if kind == "node" else ()), target]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return True


def finished(archive: Path, output: Path, options: argparse.Namespace, kills: int) -> tuple[Counter[str], int]:
    """Run until _SUCCESS; returns which kills hit, and how many starts it took."""
    chance, hits, starts = random.Random(options.seed), Counter[str](), 0
    kinds = [kind for kind, share in SHARES.items() for _ in range(share)] * -(-kills // sum(SHARES.values()))
    chance.shuffle(kinds)
    with (output.parent / f"{output.name}.log").open("ab") as log:
        while not (output / "_SUCCESS").exists():
            starts += 1
            began = len(finished_shards(output))
            driver = subprocess.Popen(command(archive, output, options), stderr=log, stdout=log)
            strikes = time.monotonic() + chance.uniform(*options.pause)
            seen, moved = began, time.monotonic()
            while driver.poll() is None:
                time.sleep(0.2)
                if (now := len(finished_shards(output))) > seen:
                    seen, moved = now, time.monotonic()
                if time.monotonic() - moved > PATIENCE_S:
                    raise SystemExit(f"nothing written for {PATIENCE_S} s after {dict(hits)}; see {output}.log")
                # The first stroke waits for a shard of this start, so that every start gets somewhere.
                if sum(hits.values()) < kills and seen > began and time.monotonic() > strikes:
                    kind = kinds[sum(hits.values())]
                    hits[kind] += strike(driver.pid, kind, chance)
                    strikes = time.monotonic() + chance.uniform(*options.pause)
            if starts > kills + 5:
                raise SystemExit(f"no end after {starts} starts; see {output}.log")
    return +hits, starts


def rows(output: Path) -> list[dict[str, Any]]:
    """The table but for what depends on which studies were computed together."""
    paths = sorted((output / "reports").glob("part-*.parquet"))
    found = (row for path in paths for row in pq.read_table(path).drop_columns(list(APPROXIMATE)).to_pylist())
    return sorted(found, key=lambda row: row["study_id"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="by default a tiny one of random weights")
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--shard-size", type=int, default=20)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--pause", type=float, nargs=2, default=(0.5, 3.0), help="seconds between kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep archive, tables and logs here")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if options.checkpoint is None:
            options.checkpoint = folder / "checkpoint"
            write_checkpoint(options.checkpoint, "tiny", image_size=32)
        archive = folder / "archive"
        write_studies(archive, "test", studies(options.studies), 0)
        began = time.monotonic()
        finished(archive, folder / "calm", options, kills=0)
        calm_seconds = time.monotonic() - began
        hits, starts = finished(archive, folder / "storm", options, kills=options.kills)
        storm_seconds = time.monotonic() - began - calm_seconds
        calm, storm = rows(folder / "calm"), rows(folder / "storm")
    ids = Counter(row["study_id"] for row in storm)
    result = record("chaos.py", "ray", "torch", "pyarrow") | {
        "studies": options.studies,
        "kills": sum(hits.values()),
        "kills_by_kind": dict(sorted(hits.items())),
        "starts": starts,
        "seconds": {"undisturbed": round(calm_seconds), "with kills": round(storm_seconds)},
        "lost": options.studies - len(ids),
        "twice": sum(count > 1 for count in ids.values()),
        "same_table": calm == storm,
    }
    save(result, options.out)
    return 0 if result["same_table"] and not result["lost"] and not result["twice"] else 1


if __name__ == "__main__":
    sys.exit(main())
