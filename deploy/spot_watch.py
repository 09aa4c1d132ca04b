"""Passes a cloud's notice on to Ray: this node will be taken away.

    python spot_watch.py aws            # beside a raylet on a spot node; cluster.yaml starts it
    python spot_watch.py gcp            # the same, deploy/cluster-gcp.yaml
    python spot_watch.py kubernetes     # a container's preStop hook, deploy/raycluster.yaml and rayjob.yaml

Ray acts on a notice only if something on the node passes it on: then training writes a checkpoint at once and starts
again without counting a failure, and no new work comes here. AWS gives two minutes, Google Cloud 30 seconds, Kubernetes
the pod's terminationGracePeriodSeconds (set `GRACE_S` to it). One file, Ray and the standard library: it is copied to
nodes where megpt is not installed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

AWS, GCP = "http://169.254.169.254", "http://metadata.google.internal"
POLL_S, GCP_NOTICE_S, GRACE_S = 5.0, 30.0, 120.0
IDLE = ("ray::IDLE", "ray::IDLE_SpillWorker", "ray::IDLE_RestoreWorker", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
SPARE_S = 10.0
"""Left of the notice for the processes to end by themselves."""


def ask(url: str, method: str = "GET", **headers: str) -> str | None:
    """A page of the metadata server; None where there is none (404)."""
    request = urllib.request.Request(url, method=method, headers={k.replace("_", "-"): v for k, v in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=POLL_S) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


def aws_notice(server: str) -> float | None:
    """Seconds until the machine is stopped, by IMDSv2 (Spot instance interruption notices)."""
    token = ask(f"{server}/latest/api/token", "PUT", X_aws_ec2_metadata_token_ttl_seconds="300")
    action = ask(f"{server}/latest/meta-data/spot/instance-action", X_aws_ec2_metadata_token=token or "")
    if action is None:
        return None
    at = datetime.datetime.fromisoformat(json.loads(action)["time"].replace("Z", "+00:00"))
    return (at - datetime.datetime.now(datetime.UTC)).total_seconds()


def gcp_notice(server: str) -> float | None:
    """Seconds until the machine is stopped: Google tells that it was preempted, and gives 30."""
    preempted = ask(f"{server}/computeMetadata/v1/instance/preempted", Metadata_Flavor="Google")
    return GCP_NOTICE_S if preempted == "TRUE" else None


def wait_for_notice(cloud: str, server: str) -> float:
    """Seconds that are left, once there is a notice; a server that does not answer is asked again."""
    silent = False
    while True:
        try:
            left = aws_notice(server) if cloud == "aws" else gcp_notice(server)
            silent = False
        except (OSError, ValueError, KeyError) as error:
            left = None
            if not silent:
                print(f"spot_watch: {server} does not answer ({type(error).__name__}); asking again", flush=True)
            silent = True
        if left is not None:
            return left
        time.sleep(POLL_S)


def drain(seconds: float) -> tuple[int, str]:
    """Tell Ray that the node this runs on has so many seconds; the exit code of `ray drain-node`, and the node's id."""
    import ray

    ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    context = ray.get_runtime_context()
    node, address = context.get_node_id(), context.gcs_address
    ray.shutdown()
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address, "--node-id", node]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    command += ["--deadline-remaining-seconds", str(max(1, int(seconds)))]
    code = subprocess.run(command, check=False).returncode
    print(f"spot_watch: node {node}, {seconds:.0f} s left, ray drain-node ended with {code}", flush=True)
    return code, node


def busy(node: str) -> bool:
    """Whether an actor or a task runs on this node: a process below its raylet that Ray has named after one."""
    raylets, workers = set[str](), list[str]()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            parent = (process / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
        except OSError:  # it has ended
            continue
        if f"--node_id={node}" in words:
            raylets.add(process.name)
        elif words[0].startswith("ray::") and words[0] not in IDLE:
            workers.append(parent)
    return not raylets.isdisjoint(workers)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cloud", choices=["aws", "gcp", "kubernetes"])
    parser.add_argument("--server", help="address of the metadata server")
    options = parser.parse_args()
    if options.cloud == "kubernetes":
        left = float(os.environ.get("GRACE_S", GRACE_S)) - SPARE_S
        until = time.monotonic() + left
        code, node = drain(left)
        # The hook holds SIGTERM back while workers need the time for their checkpoint.
        while code == 0 and time.monotonic() < until and busy(node):
            time.sleep(1)
        return code
    left = wait_for_notice(options.cloud, options.server or {"aws": AWS, "gcp": GCP}[options.cloud])
    return drain(left - SPARE_S)[0]


if __name__ == "__main__":
    sys.exit(main())
