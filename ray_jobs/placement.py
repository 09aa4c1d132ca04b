"""What the cluster can hold: refusing workers that it can never place, waiting for those that it cannot place yet.

with cluster(config.cluster):
    require_resources(config.cluster)
    ...
"""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING, Any

from megpt.config import ClusterConfig
from megpt.errors import InputError
from megpt.progress import log
from ray_jobs.runtime import cluster, cores, gpus_here, joined, local_cpus, started

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

LOOK_EVERY_S = 1.0
# The share of a worker's CPUs that is left to the tasks that decode for it.
DECODE_SHARE = 0.1
_left_out: set[str] = set()
"""Ids of nodes that this command does not use."""


def leave_out(nodes: set[str]) -> None:
    """Have no worker or task of this command's cluster placed on these nodes (ids)."""
    _left_out.clear()
    _left_out.update(nodes)


def elsewhere() -> dict[str, Any]:
    """Options of a task or an actor that keep it off the nodes that are left out."""
    return {"label_selector": {"ray.io/node-id": f"!in({','.join(sorted(_left_out))})"}} if _left_out else {}


def worker_slots(config: ClusterConfig) -> int:
    """How many of the job's workers the living nodes could hold if nothing else ran on them.

    A worker cannot be split over nodes, so the sum of all GPUs is not what counts.
    """
    needs = {"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker}
    slots = 0
    for node in _nodes(config):
        fits = [math.floor(node.get(name, 0) / need + 1e-6) for name, need in needs.items() if need]
        slots += min(fits)
    return slots


def _nodes(config: ClusterConfig) -> list[dict[str, float]]:
    """CPUs and GPUs of each living node; of this machine, where no Ray has been started."""
    if started():
        import ray

        return [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in _left_out]
    return [{"CPU": local_cpus(), "GPU": gpus_here() if config.gpus_per_worker else 0}]


def cpu_shares(config: ClusterConfig) -> tuple[float, float]:
    """Logical CPUs of an actor that generates, and of a task that decodes for one.

    A worker's `cluster.cpus_per_worker` hold the actor and one of its tasks at least: were these to ask for CPUs of
    their own, then actors that fill a cluster would wait for ever for films.
    """
    import ray

    cpus = config.cpus_per_worker
    task = cpus * DECODE_SHARE
    if not joined():
        # A local cluster counts more CPUs than there are cores: not more tasks at once than cores.
        actors = min(config.max_workers, worker_slots(config))
        left = ray.cluster_resources().get("CPU", 0.0) - actors * (cpus - task)
        task = max(task, left / cores())
    # Ray counts in ten-thousandths.
    return math.floor(cpus * (1 - DECODE_SHARE) * 1e4) / 1e4, max(math.floor(task * 1e4), 1) / 1e4


def require_resources(config: ClusterConfig) -> None:
    """Return once the cluster has placed the job's smallest group of workers (`cluster.num_workers`, or its minimum).

    A local cluster never grows, so there the answer is immediate. A joined one may: an autoscaler adds nodes when it
    sees an unmet demand, a person starts one more machine, another job ends. There a placement group is the demand,
    and it is given back at once when it is ready: the job then takes its own.

    Raises:
        InputError: not within `cluster.wait_s`.
    """
    if not joined():
        if worker_slots(config) < config.min_workers:
            raise _cannot_hold(config)
        return
    from ray.util.placement_group import remove_placement_group

    group = _demand(config)
    try:
        if group.wait(min(2 * LOOK_EVERY_S, config.wait_s)):
            return
        log(
            f"waiting up to {config.wait_s:g} s (cluster.wait_s) for {asked(config)}: "
            f"the cluster can hold {worker_slots(config)} of {config.min_workers} now"
        )
        deadline = time.monotonic() + config.wait_s
        while (left := deadline - time.monotonic()) > 0:
            if group.wait(min(LOOK_EVERY_S, left)):
                return
    finally:
        remove_placement_group(group)
    raise _cannot_hold(config) if worker_slots(config) < config.min_workers else _busy(config)


def check_resources(config: ClusterConfig) -> None:
    """What a dry run can say of `require_resources`: nothing is started, demanded or waited for.

    Raises:
        InputError: this machine cannot hold the workers, or the cluster that is named cannot be joined.
    """
    if not joined():
        if worker_slots(config) < config.min_workers:
            raise _cannot_hold(config)
        return
    with cluster(config):
        if (slots := worker_slots(config)) < config.min_workers:
            log(f"the cluster can hold {slots} of {asked(config)} now: a run would wait {config.wait_s:g} s for more")


def one_cpu(config: ClusterConfig) -> ClusterConfig:
    """The demand of a job that consists of plain tasks: it starts as soon as one of them can be placed."""
    return config.model_copy(update={"num_workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0})


def _demand(config: ClusterConfig) -> PlacementGroup:
    from ray.util.placement_group import placement_group

    bundle = {"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker}
    selector = elsewhere().get("label_selector")
    return placement_group(
        [{k: v for k, v in bundle.items() if v}] * config.min_workers,
        strategy="PACK",
        bundle_label_selector=[selector] * config.min_workers if selector else None,
    )


def asked(config: ClusterConfig) -> str:
    gpus = f" and {config.gpus_per_worker:g} GPU" if config.gpus_per_worker else ""
    return f"{config.min_workers} × {config.cpus_per_worker:g} CPU{gpus}"


def where(config: ClusterConfig) -> str:
    return f"the cluster at {os.environ['RAY_ADDRESS']}, after {config.wait_s:g} s" if joined() else "this machine"


def _cannot_hold(config: ClusterConfig) -> InputError:
    nodes = _nodes(config)
    have, key, each = sum(node.get("GPU", 0) for node in nodes), "gpus_per_worker", config.gpus_per_worker
    if gpu_short := each * config.min_workers > have:
        name = "GPU"
    else:
        have, key, each = sum(node.get("CPU", 0) for node in nodes), "cpus_per_worker", config.cpus_per_worker
        name = "CPU"
    enough = each * config.min_workers <= have
    return InputError(
        f"cluster.{key} = {each:g} × {config.min_workers} workers, but the cluster has {have:g} {name}s"
        + (f", room for {worker_slots(config)} workers" if enough else ""),
        where=where(config),
        cause="no GPU is there" if gpu_short and not have else "more is asked than the cluster can hold",
        next=_remedy(config, key, have),
    )


def _remedy(config: ClusterConfig, key: str, have: float) -> str:
    """What to change about a demand for more of `key` than the cluster has."""
    if key == "gpus_per_worker" and not have:
        return "set cluster.gpus_per_worker=0"
    return f"set a smaller cluster.{'num_workers' if config.min_workers > 1 else key}, or add a node"


def _busy(config: ClusterConfig) -> InputError:
    return InputError(
        f"no room for {asked(config)}: other jobs hold what the cluster has",
        where=where(config),
        cause="the cluster is large enough, but busy",
        next="run the same command later, or wait longer with cluster.wait_s=3600",
    )
