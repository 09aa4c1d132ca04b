"""Does memory grow with the archive? Driver and actors of one `megpt generate` over 50,000 tiny films.

    python benchmarks/memory.py --out benchmarks/results/memory-DATE.json

Every second the proportional set size (PSS: shared pages shared out) of the driver, of each actor and of all decoding
workers is read from /proc, together with the studies done. Compared are the mean while the first 2,000 to 6,000
studies are done, and the mean over the last 4,000. A tiny model writes very short reports, so that there is much of
everything but arithmetic.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from chaos import below
from job import draw
from record import record, save
from untrained import write_checkpoint

from megpt.generation.predictions import finished_shards, read_run

EARLY, SPAN = 2_000, 4_000
MOST = 0.10


def pss(pid: int) -> float:
    """MiB."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("Pss:")), 0.0)


def look(driver: int) -> tuple[dict[str, float], str | None]:
    """PSS by role, and the folder of the Ray session."""
    found: dict[str, float] = defaultdict(float)
    session = None
    found["driver"] = pss(driver)
    for pid, name in below(driver).items():
        if "ShardWorker" in name:
            found[f"actor {pid}"] = pss(pid)
        elif "ray::" in name:
            found["decoding workers"] += pss(pid)
        elif "/raylet/raylet" in name:
            found["raylet"] = pss(pid)
            session = next((w.split("=", 1)[1] for w in name.split() if w.startswith("--session_dir=")), None)
    return found, session


def watch(command: list[str], output: Path, shard_size: int) -> tuple[list[tuple[float, int, dict[str, float]]], int]:
    """(seconds, studies done, PSS by role) once a second; and the number of spilled objects."""
    samples, spilled = [], 0
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    began = time.monotonic()
    while process.poll() is None:
        done = len(finished_shards(output)) * shard_size
        sizes, session = look(process.pid)
        samples.append((time.monotonic() - began, done, sizes))
        if session:
            spilled = max(spilled, sum(1 for p in Path(session).glob("ray_spilled_objects*/*")))
        time.sleep(1)
    if process.returncode:
        raise SystemExit(f"the job ended with {process.returncode}")
    return samples, spilled


def levels(samples: list[tuple[float, int, dict[str, float]]], studies: int) -> dict[str, dict[str, float]]:
    """Early and late means by role; actors by number, since their ids say nothing."""
    early = [sizes for _, done, sizes in samples if EARLY <= done < EARLY + SPAN]
    late = [sizes for _, done, sizes in samples if studies - SPAN <= done < studies]
    found = {}
    actors = 0
    for role in sorted(early[0]):
        actors += role.startswith("actor")
        before, after = (mean(sizes[role] for sizes in some if role in sizes) for some in (early, late))
        name = f"actor {actors}" if role.startswith("actor") else role
        found[name] = {"early_mib": round(before, 1), "late_mib": round(after, 1), "ratio": round(after / before, 3)}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=50_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shard-size", type=int, default=250)
    parser.add_argument("--slots", type=int, default=250)
    parser.add_argument("--tokens", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_checkpoint(folder / "checkpoint", "tiny", image_size=32)
        draw(folder / "studies", options.studies, side=32)
        rules = {"num_beams": 1, "min_new_tokens": 1, "max_new_tokens": options.tokens}
        rules |= {"shard_size": options.shard_size, "slots": options.slots}
        command = [sys.executable, "-m", "ray_jobs", "generate", f"source={folder / 'studies'}"]
        command += [f"checkpoint={folder / 'checkpoint'}", f"output={folder / 'out'}"]
        command += [f"cluster.num_workers={options.workers}", *(f"generate.{k}={v}" for k, v in rules.items())]
        samples, spilled = watch(command, folder / "out", options.shard_size)
        state = read_run(folder / "out")["counts"]
    found = levels(samples, options.studies)
    working = [seconds for seconds, done, _ in samples if done]
    result: dict[str, Any] = record("memory.py", "ray", "torch", "pyarrow") | {
        "counts": state,
        "studies_per_second": round(options.studies / (working[-1] - working[0]), 1),
        "seconds": round(samples[-1][0]),
        "pss": found,
        "spilled_objects": spilled,
        "curve": [
            {"done": done, **{role.split()[0]: round(size) for role, size in sizes.items()}}
            for _, done, sizes in samples[:: max(1, len(samples) // 20)]
        ],
        "target": f"driver and actors within {MOST:.0%}",
    }
    save(result, options.out)
    kept = [level["ratio"] for role, level in found.items() if role == "driver" or role.startswith("actor")]
    return int(any(abs(ratio - 1) > MOST for ratio in kept) or spilled > 0)


if __name__ == "__main__":
    sys.exit(main())
