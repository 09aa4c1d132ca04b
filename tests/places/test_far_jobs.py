"""The jobs from address to address, on a real S3 server that answers 503 now and then.

(tests/places/test_far_kills.py kills them in the middle of an upload.)

- prepare, fit-prompts, train, generate, evaluate: each reads what the one before has put; then there is nothing to do
- no key is in anything that is said or written
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from far_store import KEYS, Fault, Proxy, environment, put_folder
from job_cases import add_study

from megpt.data.parquet import read_rows
from megpt.data.studies import read_studies
from megpt.places import place

pytestmark = pytest.mark.slow
ENCODER = ("model.vision=test_vit", "model.vision_weights=none", "model.image_size=32")
RUN = """
import json, sys
from ray_jobs.__main__ import main
from ray_jobs.runtime import cluster
with cluster():
    for arguments in json.loads(sys.argv[1]):
        code = main(arguments)
        print("exit code", code, "of", arguments[0], file=sys.stderr, flush=True)
        if code:
            sys.exit(code)
"""


class Jobs:
    """Commands, run one after the other in one process with a cluster of its own."""

    def __init__(self, server: str, here: Path, bucket: str, llm: Path):
        self.environment, self.here, self.bucket, self.llm = environment(server, here / "cache"), here, bucket, llm

    def start(self, *commands: Sequence[str]) -> subprocess.Popen:
        log = (self.here / "log").open("ab")
        program = [sys.executable, "-c", RUN, json.dumps(commands)]
        return subprocess.Popen(program, env=self.environment, stdout=log, stderr=log, cwd=Path.cwd())

    def run(self, *commands: Sequence[str]) -> str:
        before = len(self.said())
        assert self.start(*commands).wait(900) == 0, self.said()[before:]
        return self.said()[before:]

    def said(self) -> str:
        return (self.here / "log").read_text() if (self.here / "log").exists() else ""

    def prepare(self) -> list[str]:
        return [
            *("prepare", f"source={self.bucket}/archive", f"output={self.bucket}/studies"),
            *("prepare.image_size=32", "prepare.shard_size=2", "prepare.max_failed_fraction=0.5"),
        ]

    def prompts(self) -> list[str]:
        inputs = (f"studies={self.bucket}/studies", f"output={self.bucket}/prompts")
        return ["fit-prompts", *inputs, "fit_prompts.num_clusters=2", *ENCODER]

    def train(self) -> list[str]:
        return [
            *("train", f"studies={self.bucket}/studies", f"prompts={self.bucket}/prompts"),
            *(f"output={self.bucket}/checkpoint", f"model.llm={self.llm}", *ENCODER, "train.loggers=[]"),
            *("train.max_steps=6", "train.save_every=2", "train.log_every=1", "train.global_batch_size=4"),
        ]

    def generate(self) -> list[str]:
        return [
            *("generate", f"source={self.bucket}/studies", f"checkpoint={self.bucket}/checkpoint"),
            *(f"output={self.bucket}/reports", "generate.shard_size=4", "generate.slots=4"),
            *("generate.min_new_tokens=2", "generate.max_new_tokens=8"),
        ]

    def evaluate(self) -> list[str]:
        inputs = (f"predictions={self.bucket}/reports", f"studies={self.bucket}/studies")
        settings = ("evaluate.meteor=false", "evaluate.bootstrap=20", "evaluate.films=2")
        return ["evaluate", *inputs, f"output={self.bucket}/scores", *settings]


def reports(address: str) -> dict[str, str | None]:
    rows = [row for path in sorted(place(f"{address}/reports").iterdir()) for row in read_rows(path)]
    assert len({row["study_id"] for row in rows}) == len(rows)
    return {row["study_id"]: row["report"] for row in rows}


def test_from_address_to_address(bucket: str, proxy: Proxy, tmp_path: Path, tiny_llm: Path) -> None:
    add_study(tmp_path / "archive", 24)
    put_folder(tmp_path / "archive", f"{bucket}/archive")
    proxy.faults.append(Fault(lambda method, path: len(proxy.seen) % 15 == 0, status=503))
    jobs = Jobs(os.environ["AWS_ENDPOINT_URL"], tmp_path, bucket, tiny_llm)
    steps = [jobs.prepare(), jobs.prompts(), jobs.train(), jobs.generate(), jobs.evaluate()]
    said = jobs.run(*steps, jobs.prepare(), jobs.generate())

    assert len({study.study_id for study in read_studies(f"{bucket}/studies")}) == 23
    assert [row["error"] for row in read_rows(place(f"{bucket}/studies/failed.parquet"))] == ["missing file"]
    found = reports(f"{bucket}/reports")
    assert len(found) == 23 and None not in found.values()
    metrics = json.loads(place(f"{bucket}/scores/metrics.json").read_text())
    assert metrics["n"] == 23 and place(f"{bucket}/scores/index.html").stat().st_size > 1000
    for name in ("studies", "reports"):
        assert f"{bucket}/{name} is finished, nothing to do" in said
    steps_kept = sorted(path.name for path in place(f"{bucket}/checkpoint/steps").glob("step-*"))
    assert steps_kept[-1] == "step-00000006"
    assert len(place(f"{bucket}/checkpoint/log.jsonl").read_text().splitlines()) == 6

    everything = [path.read_bytes() for path in place(bucket).rglob("*")] + [jobs.said().encode()]
    assert not any(KEYS["AWS_SECRET_ACCESS_KEY"].encode() in content for content in everything)
