"""Seconds and memory of `megpt evaluate` over 40,000 pairs, without METEOR.

    python benchmarks/evaluation.py --reports annotation.json --out benchmarks/results/evaluation-DATE.json

`--reports` is R2Gen's annotation.json of IU X-Ray. Generated and reference reports are drawn from its sentences, so
that few texts come twice; `--whole` draws whole reports instead, as a model does that has a few favourite ones. The
peak is that of the command and everything it starts (PSS: shared pages shared out), looked at every half second.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from record import record, save

from megpt.config import EvaluateConfig
from megpt.data.studies import write_studies
from megpt.evaluation import evaluate
from megpt.evaluation.pairs import read_pairs, training_reports
from megpt.study import PREDICTIONS_SCHEMA, Study

SECONDS, GIB = 40, 2.0
SENTENCES = (2, 8)
"""Fewest and most sentences of a drawn report."""


def texts(path: Path, count: int, *, whole: bool, seed: int) -> list[str]:
    """Reports made of real sentences, or whole real ones."""
    draw = random.Random(seed)
    reports = [study["report"] for split in json.loads(path.read_text()).values() for study in split]
    if whole:
        return draw.choices(reports, k=count)
    sentences = sorted({s.strip() + "." for report in reports for s in report.split(". ") if s.strip()})
    return [" ".join(draw.choices(sentences, k=draw.randint(*SENTENCES))) for _ in range(count)]


def write_inputs(folder: Path, options: argparse.Namespace) -> None:
    """A finished predictions/ folder, and a studies/ table with a training split."""
    made, wanted, training = (texts(options.reports, options.pairs, whole=options.whole, seed=s) for s in range(3))
    if options.loop:
        made[options.pairs // 2] = "the " * 12_000
    rows = [
        {
            "study_id": f"s{i}",
            "subject_id": f"p{i // 4}",
            "image_ids": [],
            "report": report,
            "reference": reference,
            "prompt_id": 0,
            "num_tokens": 1,
            "finish_reason": "stop",
            "error": None,
            "model": "0",
        }
        for i, (report, reference) in enumerate(zip(made, wanted, strict=True))
    ]
    (folder / "predictions/reports").mkdir(parents=True)
    pq.write_table(
        pa.Table.from_pylist(rows, schema=PREDICTIONS_SCHEMA), folder / "predictions/reports/part-00000.parquet"
    )
    (folder / "predictions/_SUCCESS").write_text("{}\n")
    write_studies(folder / "studies", "train", (Study(f"t{i}", report=text) for i, text in enumerate(training)), 0)


def measured(command: list[str]) -> dict[str, Any]:
    """Seconds, CPU seconds and peak GiB of a command and what it starts."""
    began, peak = time.monotonic(), 0.0
    worked: dict[int, float] = {}
    process = subprocess.Popen(command)
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            own = psutil.Process(process.pid)
            family = [own, *own.children(recursive=True)]
            peak = max(peak, sum(member.memory_full_info().pss for member in family) / 2**30)
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    worked[member.pid] = sum(member.cpu_times()[:2])
        time.sleep(0.5)
    if process.wait():
        raise SystemExit(f"the job ended with {process.returncode}")
    seconds = time.monotonic() - began
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(sum(worked.values()), 1),
        "peak_gib": round(peak, 2),
    }


def score(folder: Path) -> None:
    """The library alone, in one process: no Ray, no page."""
    pairs = read_pairs(folder / "predictions")
    training = list(training_reports(folder / "studies", "report"))
    settings = EvaluateConfig(meteor=False)
    found = evaluate(pairs, training_reports=training, cleaner="r2gen-iu", settings=settings, seed=42)
    (folder / "out").mkdir()
    (folder / "out/metrics.json").write_text(json.dumps(found.metrics))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=40_000)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--loop", action="store_true", help="one generated report is a word 12,000 times")
    parser.add_argument("--library", action="store_true", help="one process, without Ray and the page")
    parser.add_argument("--score", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.score:
        score(options.score)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_inputs(folder, options)
        command = [sys.executable, "-m", "ray_jobs", "evaluate", f"predictions={folder / 'predictions'}"]
        command += [f"studies={folder / 'studies'}", f"output={folder / 'out'}", "evaluate.meteor=false"]
        command += ["evaluate.films=0", "data.cleaner=r2gen-iu"]
        if options.library:
            command = [sys.executable, __file__, "--reports", str(options.reports), "--score", str(folder)]
        figures = measured(command)
        metrics = json.loads((folder / "out/metrics.json").read_text())
    result = record("evaluation.py", "numpy", "scipy", "rapidfuzz", "ray") | {
        "pairs": options.pairs,
        **figures,
        "scores": {name: value and round(value, 4) for name, value in metrics["scores"].items()},
        "permutations": (metrics.get("permuted") or {}).get("permutations"),
        "target": f"at most {SECONDS} s and {GIB} GiB for 40,000 pairs",
    }
    save(result, options.out)
    return int(figures["seconds"] > SECONDS or figures["peak_gib"] > GIB)


if __name__ == "__main__":
    sys.exit(main())
