"""The committed result of a run on IU X-Ray: its metrics.json with date, commit, command, hardware and hours.

    python benchmarks/iu_xray.py runs/iu_xray_smollm2 --out benchmarks/results/iu_xray-DATE.json

Reads a finished output of `megpt run`; no report text is in it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import yaml
from record import record, save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    jobs = json.loads((arguments.run / "_SUCCESS").read_text())["jobs"]
    metrics = json.loads((arguments.run / "evaluation" / "metrics.json").read_text())
    # A training report is somebody's text, and where the inputs were is of no interest elsewhere.
    metrics = {name: value for name, value in metrics.items() if name not in ("constant_report", "inputs")}
    config = yaml.safe_load((arguments.run / "megpt.yaml").read_text())["config"]
    head = record("iu_xray.py", "torch", "transformers", "timm", "deepspeed")
    head |= {
        "hours": round(sum(job["seconds"] for job in jobs.values()) / 3600, 2),
        "peak_gib": max(job["gib"] for job in jobs.values()),
        "jobs": jobs,
        "config": {name: config[name] for name in ("seed", "data", "model", "fit_prompts", "train", "generate")},
    }
    save(head | metrics | {"versions": head["versions"] | metrics["versions"]}, arguments.out)


if __name__ == "__main__":
    main()
