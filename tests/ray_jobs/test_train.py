"""`megpt train` under Ray Train, on several raylets of which any may die.

- a training process killed, a node killed and replaced, the command killed and run again, a worker that hangs: the
  final weights and moments, the curve and the validation scores are those of an uninterrupted run without Ray, bit for
  bit; each restart is told with its cause, a hang with `train.timeout_s`; the worker that hung is not left behind
- a film that cannot be read is named in failed.parquet through all of it
- validation by two workers on an odd number of studies scores each once: the pinned score is what one process finds
- notice of preemption: a checkpoint at once, whatever `train.save_every` says; it costs no restart of
  `train.max_failures`, though the node goes before its deadline; with `cluster.num_workers: [1, 2]` the run goes on
  without the node, to the same weights within 1e-4
- more workers than the cluster can ever hold end after `cluster.wait_s` with nothing left behind
- a loss that is not a number, and a damaged table, end with one screen
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from ray_nodes import RayNodes
from safetensors.torch import load_file, save_file
from small_runs import make_studies, small_config
from training_groups import losses, run_group, train

from megpt.config import Config
from megpt.data.studies import part_path, write_studies
from megpt.errors import InputError, MegptError
from megpt.study import Study, View
from megpt.training.checkpoints import CheckpointStore
from megpt.training.loop import make_parts
from megpt.training.state import MASTER
from ray_jobs.train.group import AGAIN
from ray_jobs.train.job import Train
from ray_jobs.train.validate import score, validation_studies, write_reports

pytestmark = pytest.mark.slow

# Two workers, each on a node of its own.
TWO = {"cluster__num_workers": 2, "cluster__cpus_per_worker": 2}
BROKEN = "train9999"


class Command:
    """`megpt train` in a process of its own, against some nodes."""

    def __init__(self, config: Config, nodes: RayNodes):
        self.output = Path(str(config.output))
        path = self.output.with_suffix(".yaml")
        path.write_text(config.to_yaml(), encoding="utf-8")
        self._said = self.output.with_suffix(f".{time.monotonic_ns()}.said")
        with self._said.open("w") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ray_jobs", "train", "--config", str(path)],
                env=nodes.environment,
                stdout=said,
                stderr=said,
            )

    def said(self) -> str:
        return self._said.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, condition: Callable[[], Any], seconds: float = 400) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline and self.process.poll() is None, self.said()
            time.sleep(0.02)
        return found

    def wait_for_step(self, step: int) -> None:
        """Until the log has this step of a run that goes on."""
        path = self.output / "log.jsonl"
        self.wait_for(lambda: path.exists() and f'{{"step": {step},' in path.read_text())

    def end(self, seconds: float = 400) -> tuple[int, str]:
        """Exit code, and the screen of the error at its end."""
        code = self.process.wait(seconds)
        said = self.said()
        return code, said[said.rfind("error: ") :].strip() if "error: " in said else said


def workers(nodes: RayNodes, *ids: str) -> list[int]:
    """The living training processes of these nodes."""
    return [pid for node in ids for pid in nodes.processes(node, "RayTrainWorker")]


def state(output: Path) -> dict[str, torch.Tensor]:
    """Weights and moments at the last step."""
    newest = CheckpointStore(output / "steps", keep=2).newest()
    assert newest is not None and newest.step == 20
    return newest.tensors()


def scores(output: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if "val_best_metric" in row]


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 training studies, the last without a readable film, and 5 for validation."""
    folder = tmp_path_factory.mktemp("studies")
    broken = Study(BROKEN, views=(View("x", data=b"no film"),), report="The lungs are clear.", split="train")
    write_studies(folder, "train", [*make_studies(24), broken], 0)
    write_studies(folder, "val", make_studies(5, "val"), 0)
    return folder


@pytest.fixture(scope="module")
def settings(studies: Path, tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Config]:
    """Configs of a language model that says words, where the untrained one says bytes: else all scores would be 0."""
    llm = tmp_path_factory.mktemp("llm")
    shutil.copytree(tiny_llm, llm, dirs_exist_ok=True)
    tensors = load_file(llm / "model.safetensors")
    tensors["lm_head.weight"][3 + 256 :] *= 5  # behind the special tokens and the bytes
    save_file(tensors, llm / "model.safetensors", metadata={"format": "pt"})
    return partial(small_config, studies=studies, llm=llm)


@pytest.mark.timeout(1200)  # a busy machine is no wrong result
class TestNodes:
    """One cluster for all of these; the order of the tests is the order of its life.

    The driver is killed in the last one: Ray would hold its claim on the nodes against another run's for 3 minutes.
    """

    second: str
    """The node that is lost, again and again; the driver lives on the first."""

    @pytest.fixture(scope="class")
    def nodes(self) -> Iterator[RayNodes]:
        # Notice of preemption is looked for at once and not after five seconds, and a group that hangs is waited for
        # three seconds more instead of thirty.
        short = {"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.2", "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "3"}
        with RayNodes(cpus=2, **short) as nodes:
            TestNodes.second = nodes.add(cpus=2)
            yield nodes

    @pytest.fixture(scope="class")
    def whole(self, settings: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Config:
        """A run that nothing happens to, of two processes without Ray."""
        config = settings(tmp_path_factory.mktemp("whole") / "run", **self.run())
        run_group(2, train, config)
        return config

    def run(self) -> dict[str, Any]:
        # Pieces of one study make a step long enough to be killed in.
        steps = {"train__max_steps": 20, "train__global_batch_size": 16, "train__micro_batch_size": 1}
        saved = {"train__save_every": 3, "train__val_every": 10, "train__best_metric": "ROUGE_L"}
        short = {"generate__min_new_tokens": 4, "generate__max_new_tokens": 16, "generate__num_beams": 1}
        return steps | saved | short

    def test_notice_of_preemption(
        self, nodes: RayNodes, settings: Callable[..., Config], whole: Config, tmp_path: Path
    ) -> None:
        seldom = {"train__save_every": 200, "train__val_every": None, "train__max_failures": 0}
        elastic = {"cluster__num_workers": [1, 2], "cluster__cpus_per_worker": 2}
        config = settings(tmp_path / "run", **{**self.run(), **seldom, **elastic})
        command = Command(config, nodes)
        command.wait_for_step(1)
        nodes.drain(self.second, seconds=10)
        saved = command.wait_for(CheckpointStore(tmp_path / "run" / "steps", keep=2).newest).step
        command.wait_for(lambda: f"a node is about to go: step {saved} is saved" in command.said())
        assert len(workers(nodes, nodes.head)) == len(workers(nodes, self.second)) == 1
        nodes.kill(self.second)
        command.wait_for(lambda: f"resuming from step {saved} of 20" in command.said())
        assert len(workers(nodes, nodes.head)) == 1
        code, said = command.end()
        assert code == 0, said
        assert f"{AGAIN}: a node was taken away after notice (preemption)" in command.said()
        np.testing.assert_allclose(losses(tmp_path / "run"), losses(Path(str(whole.output))), rtol=1e-4)
        one, other = state(tmp_path / "run"), state(Path(str(whole.output)))
        for name in (name for name in other if name.startswith(MASTER)):
            np.testing.assert_allclose(one[name], other[name], atol=2e-4, err_msg=name)

    def test_more_than_the_cluster_can_hold(
        self, nodes: RayNodes, settings: Callable[..., Config], tmp_path: Path
    ) -> None:
        code, said = Command(settings(tmp_path / "run", **TWO | {"cluster__wait_s": 1}), nodes).end()
        assert (code, said) == (
            2,
            "error: cluster.cpus_per_worker = 2 × 2 workers, but the cluster has 2 CPUs\n"
            f"  where: the cluster at {nodes.address}, after 1 s\n"
            "  cause: more is asked than the cluster can hold\n"
            "  next:  set a smaller cluster.num_workers, or add a node",
        )
        assert not (tmp_path / "run").exists()

    def test_killed_and_killed_again(
        self, nodes: RayNodes, settings: Callable[..., Config], whole: Config, tmp_path: Path
    ) -> None:
        TestNodes.second = nodes.add(cpus=2)
        config = settings(tmp_path / "run", **self.run(), **TWO, train__max_failures=2)
        command = Command(config, nodes)
        command.wait_for_step(4)
        os.kill(workers(nodes, self.second)[0], signal.SIGKILL)
        command.wait_for_step(8)
        nodes.kill(self.second)
        TestNodes.second = nodes.add(cpus=2)
        command.wait_for_step(12)
        command.process.kill()
        command.process.wait()
        told = f"{AGAIN}: the process of worker "
        assert command.said().count(told) == 2 and "Traceback" not in command.said()

        command = Command(config.overridden({"train.timeout_s": 30}), nodes)
        command.wait_for(lambda: "\nstep 15/20 " in command.said())
        os.kill(hung := workers(nodes, self.second)[0], signal.SIGSTOP)
        code, said = command.end()
        assert code == 0, said
        assert f"{AGAIN}: a collective operation hung longer than train.timeout_s = 30 s" in command.said()
        assert hung not in workers(nodes, self.second)

        one, other = state(tmp_path / "run"), state(Path(str(whole.output)))
        assert one.keys() == other.keys()
        assert [name for name in one if not torch.equal(one[name], other[name])] == []
        assert losses(tmp_path / "run") == losses(Path(str(whole.output)))
        assert scores(tmp_path / "run") == scores(Path(str(whole.output))) and len(scores(tmp_path / "run")) == 2
        failed = pq.read_table(tmp_path / "run" / "failed.parquet").to_pylist()
        assert [(row["study_id"], row["error"]) for row in failed] == [
            (BROKEN, "not a JPEG, PNG, DICOM, TIFF, BMP, WebP or JPEG 2000 file")
        ]
        self.check_validation(config)

    def check_validation(self, config: Config) -> None:
        """The pinned checkpoint is what was exported, and its score is what one process finds on all five studies."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        output = Path(str(config.output))
        best, rows = CheckpointStore(output / "steps", keep=2).best(), scores(output)
        assert best is not None
        assert (best[0].step, best[1]) == max(((r["step"], r["val_ROUGE_L"]) for r in rows), key=lambda row: row[1])
        model, processor = (kind.from_pretrained(output) for kind in (AutoModelForImageTextToText, AutoProcessor))
        alone = score(config, [write_reports(config, model, processor, validation_studies(config))])
        assert alone["ROUGE_L"] == pytest.approx(best[1], abs=1e-9) and best[1] > 0


@pytest.mark.usefixtures("ray_cluster")
class TestLocal:
    """What needs no second node."""

    def test_a_loss_that_is_not_a_number(self, settings: Callable[..., Config], tmp_path: Path) -> None:
        config = settings(tmp_path / "run", train__lr=1e30, train__grad_clip=0, train__max_failures=1)
        with pytest.raises(MegptError, match=r"^the loss is nan at step [1-5]\n  where: cross-entropy ") as raised:
            Train.run(config)
        assert "\n  next:  lower train.lr or train.grad_clip" in str(raised.value)
        assert CheckpointStore(tmp_path / "run" / "steps", keep=2).newest() is None


def test_a_damaged_table(settings: Callable[..., Config], tmp_path: Path) -> None:
    write_studies(tmp_path / "studies", "train", make_studies(24), 0)
    path = part_path(tmp_path / "studies", "train", 0)
    data = bytearray(path.read_bytes())
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)  # the footer, which the command reads, is whole
    path.write_bytes(data)
    with pytest.raises(InputError) as raised:
        make_parts(settings(tmp_path / "run", studies=tmp_path / "studies"))
    assert str(raised.value).startswith(f"{path} cannot be read as Parquet\n  cause: ")
    assert "\n  next:  delete the folder it is in and run the job that wrote it again" in str(raised.value)
