"""Joining or starting Ray, and refusing what it can never place.

- A local cluster says at once that it has no GPU, or too few CPUs for the workers, and names the setting.
- A worker is not split over nodes: two nodes of 2 CPUs hold no worker of 3, and the error says how many fit.
- On a joined cluster the job waits, saying so, until a node comes; then it goes on.
- After `cluster.wait_s` it ends, and tells a cluster that is too small from one that is busy; `prepare`, which asks for
  no workers, does the same.
- A node killed from one moment to the next is noticed, and its task runs again on another.
- A local cluster that did not start in Ray's time is started a second time; any other error stays what it is.
- An address where nothing answers, and a wrong token, are one screen, exit code 2.
- Workers without a GPU are told so; with one they are not.
- A megpt error raised inside a Ray task reaches the user as itself, without the remote traceback; so does a full disk.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from ray_nodes import RayNodes

from megpt.config import ClusterConfig
from megpt.errors import InputError, MegptError
from ray_jobs.failures import known_failure
from ray_jobs.placement import _remedy, require_resources, worker_slots
from ray_jobs.runtime import _start_local, worker_environment

WAIT = """
import sys
from megpt.config import ClusterConfig
from megpt.errors import InputError
from ray_jobs.placement import require_resources
from ray_jobs.runtime import cluster
import ray

@ray.remote(num_cpus=2)
class Holder:
    def ready(self):
        return True

with cluster(ClusterConfig()):
    config = ClusterConfig.model_validate_json(sys.argv[1])
    if "hold" in sys.argv:
        holders = [Holder.remote() for _ in range(2)]
        ray.get([h.ready.remote() for h in holders])
    try:
        require_resources(config)
    except InputError as error:
        print(error)
    else:
        print("placed")
    if "prepare" in sys.argv:
        from ray_jobs.__main__ import main
        print(main(["prepare", *sys.argv[sys.argv.index("prepare") + 1 :]]))
"""

SURVIVE = """
import time
from megpt.config import ClusterConfig
from ray_jobs.runtime import cluster
import ray

@ray.remote(num_cpus=2, max_retries=3)
def work(seconds):
    print("begun", flush=True)
    time.sleep(seconds)
    return ray.get_runtime_context().get_node_id()

with cluster(ClusterConfig()):
    print("started", flush=True)
    print(sorted(ray.get([work.remote(12), work.remote(12)])), flush=True)
"""


def run(code: str, nodes: RayNodes, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=nodes.environment, capture_output=True, text=True, timeout=180
    )


def wait_for(config: ClusterConfig, nodes: RayNodes, *arguments: str) -> tuple[str, str]:
    done = run(WAIT, nodes, config.model_dump_json(), *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


@pytest.mark.usefixtures("ray_cluster")
class TestLocal:
    def test_one_gpu_where_none_is(self) -> None:
        began = time.monotonic()
        with pytest.raises(InputError) as caught:
            require_resources(ClusterConfig(gpus_per_worker=1))
        assert time.monotonic() - began < 5
        assert str(caught.value) == (
            "cluster.gpus_per_worker = 1 × 1 workers, but the cluster has 0 GPUs\n"
            "  where: this machine\n"
            "  cause: no GPU is there\n"
            "  next:  set cluster.gpus_per_worker=0"
        )

    def test_more_workers_than_there_are_cpus(self) -> None:
        with pytest.raises(InputError) as caught:
            require_resources(ClusterConfig(num_workers=1000))
        assert "cluster.cpus_per_worker = 1 × 1000 workers, but the cluster has" in str(caught.value)
        assert "next:  set a smaller cluster.num_workers, or add a node" in str(caught.value)

    def test_what_fits_passes_and_the_minimum_is_enough(self) -> None:
        require_resources(ClusterConfig(num_workers=2, cpus_per_worker=2))
        require_resources(ClusterConfig(num_workers=(1, 1000)))

    def test_an_error_inside_a_task_is_shown_as_itself(self) -> None:
        import ray

        @ray.remote(max_retries=0)
        def fail() -> None:
            raise MegptError("what", where="where", cause="cause", next="next")

        with pytest.raises(MegptError) as caught:
            ray.get(fail.remote())
        assert "test_runtime.py" in str(caught.value)  # the remote traceback is what would be shown
        known = known_failure(caught.value)
        assert str(known) == "what\n  where: where\n  cause: cause\n  next:  next"

    def test_an_error_inside_a_data_pipeline_is_shown_as_itself(self) -> None:
        import ray

        def fail(row: dict[str, int]) -> dict[str, int]:
            raise InputError("what", where="where", next="next")

        with pytest.raises(Exception) as caught:
            ray.data.range(1).map(fail).materialize()
        known = known_failure(caught.value)
        assert isinstance(known, InputError) and str(known) == "what\n  where: where\n  next:  next"

    def test_a_full_disk_inside_a_task_is_shown_as_one(self, tmp_path: Path) -> None:
        import ray

        @ray.remote(max_retries=0)
        def fail() -> None:
            Path("/dev/full").write_text("x")

        with pytest.raises(Exception) as caught:
            ray.get(fail.remote())
        known = known_failure(caught.value, str(tmp_path))
        assert known is not None and known.exit_code == 1
        assert str(known).startswith("no space left to write ")


@pytest.mark.parametrize(
    ("config", "key", "have", "told"),
    [
        ({"num_workers": 8, "gpus_per_worker": 1}, "gpus_per_worker", 0, "set cluster.gpus_per_worker=0"),
        (
            {"num_workers": 8, "gpus_per_worker": 1},
            "gpus_per_worker",
            4,
            "set a smaller cluster.num_workers, or add a node",
        ),
        ({"gpus_per_worker": 8}, "gpus_per_worker", 4, "set a smaller cluster.gpus_per_worker, or add a node"),
    ],
)
def test_what_to_change(config: dict[str, int], key: str, have: float, told: str) -> None:
    assert _remedy(ClusterConfig.model_validate(config), key, have) == told


def test_an_unforeseen_error_stays_unknown() -> None:
    assert known_failure(ValueError("x")) is None
    assert known_failure(OSError(errno.ENOENT, "x")) is None


def test_a_circle_of_causes_ends() -> None:
    one, two = ValueError("1"), ValueError("2")
    one.__cause__, two.__cause__ = two, one
    assert known_failure(one) is None


def test_workers_without_a_gpu_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    assert worker_environment(ClusterConfig(gpus_per_worker=0))["DS_ACCELERATOR"] == "cpu"
    assert "DS_ACCELERATOR" not in worker_environment(ClusterConfig(gpus_per_worker=1))
    monkeypatch.setenv("DS_ACCELERATOR", "xpu")
    assert worker_environment(ClusterConfig(gpus_per_worker=1))["DS_ACCELERATOR"] == "xpu"
    assert worker_environment()["RAY_USAGE_STATS_ENABLED"] == "0"


def test_workers_are_told_their_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert "RAY_ADDRESS" not in worker_environment()
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    assert worker_environment()["RAY_ADDRESS"] == "192.0.2.1:6379"


@pytest.mark.parametrize(
    ("errors", "started"),
    [
        (["The current node timed out during startup."], True),
        (["The current node timed out during startup."] * 2, False),
        (["no such thing"], False),
    ],
)
def test_a_local_cluster_that_starts_late(monkeypatch: pytest.MonkeyPatch, errors: list[str], started: bool) -> None:
    waiting, tried = list(errors), []

    def init(**settings: object) -> None:
        tried.append(settings)
        if waiting:
            raise Exception(waiting.pop(0))

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    if started:
        _start_local()
    else:
        with pytest.raises(Exception, match=re.escape(errors[-1])):
            _start_local()
    assert len(tried) == len(errors) + started and all(settings["address"] == "local" for settings in tried)


def test_no_cluster_at_the_address() -> None:
    code = "from ray_jobs.runtime import cluster\nwith cluster(): pass"
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert "megpt.errors.InputError: no Ray cluster answers at RAY_ADDRESS=127.0.0.1:1" in done.stderr
    assert "unset RAY_ADDRESS to work on this machine alone" in done.stderr


@pytest.mark.slow
class TestNodes:
    """One cluster of three nodes for all of these; the order of the tests is the order of its life."""

    @pytest.fixture(scope="class")
    def nodes(self) -> object:
        with RayNodes(cpus=2) as nodes:
            nodes.add(cpus=2)
            yield nodes

    def test_a_worker_is_not_split_over_nodes(self, nodes: RayNodes) -> None:
        answer, _ = wait_for(ClusterConfig(cpus_per_worker=3, wait_s=1), nodes)
        assert answer == (
            "cluster.cpus_per_worker = 3 × 1 workers, but the cluster has 4 CPUs, room for 0 workers\n"
            f"  where: the cluster at {nodes.address}, after 1 s\n"
            "  cause: more is asked than the cluster can hold\n"
            "  next:  set a smaller cluster.cpus_per_worker, or add a node"
        )

    def test_a_busy_cluster_is_told_from_a_small_one(self, nodes: RayNodes, tmp_path: Path) -> None:
        (tmp_path / "archive").mkdir()
        (tmp_path / "archive/film.png").write_bytes(b"")
        prepare = ["prepare", f"source={tmp_path}/archive", f"output={tmp_path}/out", "cluster.wait_s=3"]
        answer, log = wait_for(ClusterConfig(num_workers=2, cpus_per_worker=1, wait_s=3), nodes, "hold", *prepare)
        assert "waiting up to 3 s (cluster.wait_s) for 2 × 1 CPU: the cluster can hold 4 of 2 now" in log
        assert answer == (
            "no room for 2 × 1 CPU: other jobs hold what the cluster has\n"
            f"  where: the cluster at {nodes.address}, after 3 s\n"
            "  cause: the cluster is large enough, but busy\n"
            "  next:  run the same command later, or wait longer with cluster.wait_s=3600\n"
            "2"
        )
        assert "waiting up to 3 s (cluster.wait_s) for 1 × 1 CPU: the cluster can hold 4 of 1 now" in log
        assert "error: no room for 1 × 1 CPU: other jobs hold what the cluster has\n" in log

    def test_a_wrong_token_is_refused(self, nodes: RayNodes) -> None:
        code = "from ray_jobs.runtime import cluster\nwith cluster(): pass"
        environment = {**nodes.environment, "RAY_AUTH_TOKEN": "0" * 64}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
        )
        assert f"InputError: the cluster at {nodes.address} refuses this command's token" in done.stderr

    def test_a_node_that_comes_late_is_waited_for(self, nodes: RayNodes) -> None:
        threading.Timer(8, nodes.add, kwargs={"cpus": 2}).start()
        answer, log = wait_for(ClusterConfig(num_workers=3, cpus_per_worker=2, wait_s=90), nodes)
        assert "waiting up to 90 s (cluster.wait_s) for 3 × 2 CPU: the cluster can hold 2 of 3 now" in log
        assert answer == "placed"

    def test_a_killed_node_is_survived(self, nodes: RayNodes) -> None:
        lost = nodes.add(cpus=2)
        job = subprocess.Popen(
            [sys.executable, "-c", SURVIVE], env=nodes.environment, stdout=subprocess.PIPE, stderr=2, text=True
        )
        assert job.stdout and job.stdout.readline() == "started\n"
        time.sleep(4)
        nodes.kill(lost)
        said = job.communicate(timeout=120)[0]
        assert job.returncode == 0, said
        (where,) = [line for line in said.splitlines() if line.startswith("[") and line.endswith("']")]
        assert lost not in where


def test_slots_need_a_running_cluster(ray_cluster: None) -> None:
    assert worker_slots(ClusterConfig(cpus_per_worker=2)) >= 4
    assert worker_slots(ClusterConfig(cpus_per_worker=0.5)) >= 16
    assert worker_slots(ClusterConfig(gpus_per_worker=1)) == 0
