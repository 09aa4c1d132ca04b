"""SIGKILL in the middle of an upload, in processes without Ray.

- shards of reports: the object that was being put is not there, the others are; a resume writes each study once
- training: a checkpoint that was being put is passed over; the resumed run ends with the uninterrupted run's weights
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from far_store import Fault, Proxy
from small_runs import make_studies, small_config

from megpt.data.parquet import read_rows
from megpt.data.studies import write_studies
from megpt.generation.predictions import Predictions
from megpt.places import place

GENERATE = """
import sys
from megpt.data.sources import open_source
from megpt.config import DataConfig
from megpt.generation.predictions import Predictions
from megpt.places import place
source, out = sys.argv[1:]
opened = open_source(source, data=DataConfig())
found = Predictions.open(place(out)) or Predictions.create(place(out), opened, split="all", shard_size=4)
for shard in found.left():
    found.write_shard(shard, ({
        "study_id": listed.study.study_id, "subject_id": "", "image_ids": [], "report": "Clear.", "reference": None,
        "prompt_id": 0, "num_tokens": 1, "finish_reason": "stop", "error": None, "model": "m",
    } for listed in found.studies(shard)))
"""
TRAIN = """
import json, sys
from megpt.config import Config
from megpt.places import place
from megpt.training.loop import make_parts, train_loop
config = Config.model_validate(json.loads(sys.argv[1]))
train_loop(config, lambda: make_parts(config), output=place(config.output))
"""


def killed_while(proxy: Proxy, start: Callable[[], subprocess.Popen], what: str) -> None:
    """Kill a process while it puts an object whose name matches."""

    def is_meant(method: str, path: str) -> bool:
        return method in ("PUT", "POST") and re.search(what, path) is not None

    held = Fault(is_meant, delay_s=600)
    proxy.faults.insert(0, held)
    process, end = start(), time.monotonic() + 300
    while not any(is_meant(*request) for request in proxy.seen):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    proxy.faults.remove(held)


@pytest.mark.slow
def test_shards(bucket: str, proxy: Proxy) -> None:
    write_studies(f"{bucket}/studies", "test", make_studies(22, "test"), 0)
    out = place(f"{bucket}/out")

    def start() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", GENERATE, f"{bucket}/studies", str(out)])

    killed_while(proxy, start, r"/out/plan/plan\.json")
    assert Predictions.open(out) is None  # a list that was cut off is begun again
    proxy.seen.clear()
    killed_while(proxy, start, r"/out/reports/part-000002")
    found = Predictions.open(out)
    assert found is not None and found.finished() == [0, 1] and found.left() == [2, 3, 4, 5]
    proxy.seen.clear()
    assert start().wait(200) == 0
    assert not any(method == "PUT" and "part-00000" in path and path[-9] in "01" for method, path in proxy.seen)
    rows = [row["study_id"] for shard in found.finished() for row in read_rows(found.path(shard))]
    assert sorted(rows) == [study.study_id for study in make_studies(22, "test")]
    with pytest.MonkeyPatch.context() as patch:  # a worker that was believed lost comes second
        patch.setattr("megpt.data.studies.RowWriter.write", lambda self, row: None)
        found.write_shard(0, [{}])
    assert len(list(read_rows(found.path(0)))) == 4


@pytest.mark.slow
def test_training(bucket: str, proxy: Proxy, tmp_path: Path, tiny_llm: Path) -> None:
    write_studies(f"{bucket}/studies", "train", make_studies(12), 0)

    def started(name: str) -> Callable[[], subprocess.Popen]:
        config = small_config(
            Path("out"), studies=f"{bucket}/studies", llm=tiny_llm, train__save_every=2, train__loggers=["tensorboard"]
        ).overridden({"output": f"{bucket}/{name}"})
        tree = json.dumps(config.model_dump(mode="json"))
        log = (tmp_path / "log").open("ab")
        return lambda: subprocess.Popen(
            [sys.executable, "-c", TRAIN, tree], stderr=log, env=os.environ | {"TMPDIR": str(tmp_path)}
        )

    assert started("whole")().wait(400) == 0, (tmp_path / "log").read_text()
    killed_while(proxy, started("cut"), r"/cut/steps/step-00000004/state")
    cut = place(f"{bucket}/cut")
    assert not (cut / "steps/step-00000004/manifest.json").exists()
    assert started("cut")().wait(400) == 0
    assert "resuming from step 2 of 6" in (tmp_path / "log").read_text()
    whole = place(f"{bucket}/whole")
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    steps = [
        [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] for run in (cut, whole)
    ]
    assert steps[0] == steps[1] == [1, 2, 3, 4, 5, 6]
    assert [path.name for path in sorted((cut / "steps").glob("step-*"))][-1] == "step-00000006"
    assert any((cut / "tensorboard").iterdir())
    assert json.loads((cut / "config.json").read_text())["llm"] == str(tiny_llm)
    failed = list(read_rows(cut / "failed.parquet"))
    assert failed == []
