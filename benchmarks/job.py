"""The job beside the bare engine: what Ray, shards and decoding cost, and what a second worker brings.

    OMP_NUM_THREADS=1 python benchmarks/job.py --out benchmarks/results/job-DATE.json

The same checkpoint (random weights, a few million parameters), the same films already resized, the same rules and one
torch thread a worker on all sides, in turns:

- bare: ReportWriter in one process over films that lie decoded in its memory, once warmed up; loading is not counted
- one worker, two workers: `megpt generate` on Ray. Its steady rate is that of the shards behind each worker's first,
  by the times of their files; start-up is what is left of the command's seconds. Where there are no more shards than
  workers, the rate is that of the whole command, and there is no start-up

Reports are drawn (do_sample), so that their lengths vary as real ones do; texts of all sides are compared.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from record import record, save
from untrained import write_checkpoint

from megpt.config import Config, load_config
from megpt.data.sources import open_source
from megpt.data.studies import write_studies
from megpt.generation.writer import ReportWriter
from megpt.study import Study, View

SIDE, PART = 64, 500
RULES = ("do_sample=true", "num_beams=1", "min_new_tokens=8", "max_new_tokens=100")
BARE = "bare"
TARGET = {"one worker / bare": 0.85, "two workers / one": 1.8}


def draw(folder: Path, count: int, *, side: int = SIDE) -> None:
    """A studies/ table of noise films, already as small as the model takes them."""
    rng = np.random.default_rng(0)

    def study(number: int) -> Study:
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (side, side), dtype=np.uint8)).save(file, "PNG")
        return Study(f"study{number:06d}", views=(View("film", data=file.getvalue()),))

    for part, start in enumerate(range(0, count, PART)):
        write_studies(folder, "test", map(study, range(start, min(start + PART, count))), part)


def settings(folder: Path, options: argparse.Namespace, *more: str) -> list[str]:
    rules = [f"generate.{rule}" for rule in (*RULES, f"shard_size={options.shard_size}", f"slots={options.slots}")]
    return [f"source={folder / 'studies'}", f"checkpoint={folder / 'checkpoint'}", *rules, *more]


def bare(config: Config) -> dict[str, Any]:
    """Reports a second of the engine alone, in this process."""
    studies = list(open_source(str(config.source), data=config.data).studies())
    films = [[Image.open(io.BytesIO(view.data or b"")).convert("L") for view in study.views] for study in studies]
    writer = ReportWriter(str(config.checkpoint), config.generate, config.seed)
    pairs: list[Any] = list(zip(studies, films, strict=True))
    list(writer.write(pairs[: config.generate.slots]))
    began = time.perf_counter()
    predictions = list(writer.write(pairs))
    seconds = time.perf_counter() - began
    return {
        "rate": len(pairs) / seconds,
        "tokens": sum(p.num_tokens for p in predictions) / len(predictions),
        "texts": {p.study.study_id: p.report for p in predictions},
    }


def job(folder: Path, workers: int, options: argparse.Namespace) -> dict[str, Any]:
    """Steady rate and start-up of the command."""
    output = folder / f"out{workers}-{time.monotonic_ns()}"
    command = [sys.executable, "-m", "ray_jobs", "generate", f"output={output}", f"cluster.num_workers={workers}"]
    command += ["cluster.ray=always"]
    began = time.time()
    subprocess.run([*command, *settings(folder, options)], check=True, stderr=subprocess.DEVNULL)
    seconds = time.time() - began
    paths = sorted((output / "reports").glob("part-*.parquet"), key=lambda path: path.stat().st_mtime)
    times = [path.stat().st_mtime for path in paths]
    texts = {row["study_id"]: row["report"] for path in paths for row in rows(path)}
    if len(paths) <= workers:
        return {"rate": len(texts) / seconds, "start_up_s": 0.0, "seconds": seconds, "texts": texts}
    studies = sum(pq.read_metadata(path).num_rows for path in paths[workers:])
    rate = studies / (times[-1] - times[workers - 1])
    return {"rate": rate, "start_up_s": seconds - len(texts) / rate, "seconds": seconds, "texts": texts}


def rows(path: Path) -> Iterator[dict[str, Any]]:
    yield from pq.read_table(path, columns=["study_id", "report"]).to_pylist()


def sides(folder: Path, options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """All of them, the bare engine at the beginning and at the end of each round."""

    def alone(name: str) -> dict[str, Any]:
        command = [sys.executable, __file__, "--side", name, "--settings", json.dumps(settings(folder, options))]
        return dict(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))

    for _ in range(options.rounds):
        yield BARE, alone(BARE)
        yield "one worker", job(folder, 1, options)
        yield "two workers", job(folder, 2, options)
    yield BARE, alone(BARE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="4m")
    parser.add_argument("--studies", type=int, default=4000)
    parser.add_argument("--shard-size", type=int, default=500)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(bare(load_config(None, json.loads(options.settings)))))
        return 0
    if os.environ.get("OMP_NUM_THREADS") != "1":
        parser.error(
            "set OMP_NUM_THREADS=1: Ray gives a worker one torch thread, and the bare engine must have as many"
        )
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        parameters = write_checkpoint(folder / "checkpoint", options.model, image_size=SIDE)
        draw(folder / "studies", options.studies)
        for name, side in sides(folder, options):
            found.setdefault(name, []).append(side)
            print(name, {k: round(v, 2) for k, v in side.items() if k != "texts"}, file=sys.stderr, flush=True)
    texts = found[BARE][0]["texts"]  # what is computed together decides the last bit, and that now and then a draw
    rate = {name: sum(side["rate"] for side in turns) / len(turns) for name, turns in found.items()}
    result = record("job.py", "ray", "torch", "transformers") | {
        "parameters": parameters,
        "studies": options.studies,
        "tokens_per_report": round(found[BARE][0]["tokens"], 1),
        "shard_size": options.shard_size,
        "slots": options.slots,
        "reports_per_second": {name: round(value, 2) for name, value in rate.items()},
        "turns": {name: [round(side["rate"], 2) for side in turns] for name, turns in found.items()},
        "start_up_seconds": {
            name: [round(side["start_up_s"], 1) for side in turns] for name, turns in found.items() if "worker" in name
        },
        "ratios": {
            "one worker / bare": round(rate["one worker"] / rate[BARE], 3),
            "two workers / one": round(rate["two workers"] / rate["one worker"], 3),
        },
        "target": TARGET,
        "equal_texts": {
            name: sum(texts[k] == v for k, v in turns[-1]["texts"].items()) for name, turns in found.items()
        },
    }
    save(result, options.out)
    return int(any(result["ratios"][name] < least for name, least in TARGET.items()))


if __name__ == "__main__":
    sys.exit(main())
