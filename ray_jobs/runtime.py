"""Joining the cluster that is there, or starting one on this machine; and refusing what it can never place."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator

import ray

from megpt.config import ClusterConfig
from megpt.errors import InputError

# Ray Data's actors hold logical CPUs while its tasks need some too: with fewer than this a resumed job would wait
# for ever. Logical CPUs cost nothing, so a small machine simply says it has more.
MIN_LOGICAL_CPUS = 8
LOCAL_OBJECT_STORE = 1 * 2**30


@contextlib.contextmanager
def cluster() -> Iterator[None]:
    """Ray for the time of one command: the running cluster where there is one, else a local one, stopped at the end."""
    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(address="auto", runtime_env={"env_vars": worker_environment()}, logging_level=logging.WARNING)
    else:
        os.environ.update(worker_environment())
        ray.init(
            address="local",
            num_cpus=max(MIN_LOGICAL_CPUS, os.cpu_count() or 1),
            object_store_memory=LOCAL_OBJECT_STORE,
            include_dashboard=False,
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
    try:
        yield
    finally:
        ray.shutdown()


def worker_environment() -> dict[str, str]:
    """What every worker needs in its environment, whatever machine it runs on."""
    import torch

    environment = {"RAY_USAGE_STATS_ENABLED": "0", "TOKENIZERS_PARALLELISM": "false"}
    if "DS_ACCELERATOR" in os.environ:
        environment["DS_ACCELERATOR"] = os.environ["DS_ACCELERATOR"]
    elif not torch.cuda.is_available() and not os.environ.get("RAY_ADDRESS"):
        environment["DS_ACCELERATOR"] = "cpu"
    return environment


def require_resources(config: ClusterConfig) -> None:
    """Wait until the cluster can hold the job's smallest group of workers.

    Raises:
        InputError: it cannot after `cluster.wait_s` (at once on a local cluster, which never grows).
    """
    wanted = {"CPU": config.cpus_per_worker * config.min_workers, "GPU": config.gpus_per_worker * config.min_workers}
    grows = bool(os.environ.get("RAY_ADDRESS"))
    deadline = time.monotonic() + (config.wait_s if grows else 0)
    while True:
        have = ray.cluster_resources()
        missing = [name for name, amount in wanted.items() if amount > have.get(name, 0)]
        if not missing:
            return
        if time.monotonic() >= deadline:
            break
        time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))
    name = missing[0]
    key = "gpus_per_worker" if name == "GPU" else "cpus_per_worker"
    each = config.gpus_per_worker if name == "GPU" else config.cpus_per_worker
    raise InputError(
        f"cluster.{key} = {each:g} × {config.min_workers} workers, but the cluster has {have.get(name, 0):g} {name}s",
        where="this machine" if not grows else f"the cluster at {os.environ['RAY_ADDRESS']}, after {config.wait_s:g} s",
        cause="no GPU is there" if name == "GPU" and not have.get("GPU") else "more is asked than the cluster can hold",
        next=f"set cluster.{key}=0" if name == "GPU" else "set a smaller cluster.num_workers",
    )
