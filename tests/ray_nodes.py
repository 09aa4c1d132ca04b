"""Several raylets on one machine, any of which can be killed: what `ray_nodes` in conftest.py hands to tests.

The nodes live in a process of their own (this file, run as a program), so that a test session that is connected to
another Ray cluster is not disturbed. Commands run against them as a person would: a subprocess with
`env=nodes.environment`, which names the cluster and carries its token.

    with RayNodes(cpus=2) as nodes:
        worker = nodes.add(cpus=2)
        job = subprocess.Popen([...], env=nodes.environment)
        nodes.kill(worker)      # SIGKILL to the raylet and all its workers, as when a machine is lost
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

# A dead node is noticed after about 5 s instead of 30.
HEALTH = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 5}
# Ray would start a process for each CPU before any is asked for; jobs, which bring an environment, cannot use them.
FRUGAL = {"prestart_worker_first_driver": False}
OBJECT_STORE = 120 * 2**20
TRIES = 4


class RayNodes:
    """A Ray cluster with token authentication on.

    Args:
        cpus: the head node's logical CPUs.
        environment: further variables, of the nodes and of the commands that run against them.
    """

    def __init__(self, cpus: int = 2, **environment: str):
        self.home = tempfile.TemporaryDirectory(prefix="megpt-nodes-", ignore_cleanup_errors=True)
        self.environment = {
            **{k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
            "HOME": self.home.name,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            **environment,
        }
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self.environment,
            text=True,
            start_new_session=True,
        )
        self.head, self.address = self._ask("add", [cpus, 0])
        self.environment["RAY_ADDRESS"] = self.address

    def add(self, cpus: int = 2, gpus: int = 0) -> str:
        """One more node; returns its id. `gpus` are declared only: Ray shares them out, and nobody looks for them."""
        return str(self._ask("add", [cpus, gpus])[0])

    def processes(self, node: str, name: str) -> list[int]:
        """Ids of the workers on a node whose name holds `name`, such as an actor's class."""
        return [int(pid) for pid in self._ask("processes", [node, name])]

    def kill(self, node: str) -> None:
        """The node is gone from one moment to the next, with every process on it."""
        self._ask("kill", node)

    def drain(self, node: str, seconds: int) -> None:
        """Notice that the node will be taken away in so many seconds, as a cloud gives it for a spot machine.

        It is only the notice: the node lives until it is killed.
        """
        self._ask("drain", [node, seconds])

    def _ask(self, command: str, argument: Any) -> Any:
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(json.dumps([command, argument]) + "\n")
        self._server.stdin.flush()
        line = self._server.stdout.readline()
        if not line:
            raise RuntimeError("the process that holds the Ray nodes has ended")
        return json.loads(line)

    def __enter__(self) -> RayNodes:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin
        self._server.stdin.close()  # the server stops its nodes when its input ends
        try:
            self._server.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()
        self.home.cleanup()


def _kill(node: Any) -> None:
    """SIGKILL the raylet's whole process tree first: on a lost machine no worker outlives its raylet."""
    import psutil

    for process in _tree(node):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _tree(node: Any) -> list[Any]:
    """A raylet, after all processes below it."""
    import psutil

    raylets = [psutil.Process(info.process.pid) for info in node.all_processes["raylet"]]
    return [process for raylet in raylets for process in [*raylet.children(recursive=True), raylet]]


def _named(node: Any, name: str) -> list[int]:
    import psutil

    found = []
    for process in _tree(node):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            if name in " ".join(process.cmdline()):
                found.append(process.pid)
    return found


def _drain(address: str, node: str, seconds: int) -> None:
    """What `ray drain-node` does."""
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    until_ms = int((time.time() + seconds) * 1000)
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, message = GcsClient(address=address).drain_node(node, reason, "spot", until_ms)
    assert accepted, message


def _add(cluster: Any, cpus: int, gpus: int) -> Any:
    """A node; tried again where a busy machine did not start it within the 30 s that Ray allows."""
    head = {} if cluster.head_node else {"include_dashboard": False, "_system_config": HEALTH | FRUGAL}
    for attempt in range(TRIES):
        try:
            return cluster.add_node(num_cpus=cpus, num_gpus=gpus, object_store_memory=OBJECT_STORE, **head)
        except Exception as error:
            if attempt == TRIES - 1 or "timed out during startup" not in str(error):
                raise


def _serve() -> None:
    # Ray prints to standard output as well; answers keep a copy of it to themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    nodes: dict[str, Any] = {}
    for line in sys.stdin:
        command, argument = json.loads(line)
        answer: Any = True
        if command == "add":
            node = _add(cluster, *argument)
            nodes[node.node_id] = node
            answer = [node.node_id, cluster.address]
        elif command == "drain":
            _drain(cluster.address, *argument)
        elif command == "processes":
            answer = _named(nodes[argument[0]], argument[1])
        else:
            node = nodes[argument]
            _kill(node)
            cluster.remove_node(node, allow_graceful=False)
        print(json.dumps(answer), file=answers, flush=True)
    for node in [n for n in cluster.list_all_nodes() if n is not cluster.head_node]:
        cluster.remove_node(node, allow_graceful=False)
    cluster.remove_node(cluster.head_node, allow_graceful=False)


if __name__ == "__main__":
    _serve()
