"""Joining the cluster that is there, or starting one on this machine; and refusing what it can never place.

    with cluster(config.cluster):
        require_resources(config.cluster)
        ...

A running cluster is joined when `RAY_ADDRESS` names it, which `ray job submit` sees to by itself.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import socket
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import ray
from ray.exceptions import AuthenticationError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from megpt.config import ClusterConfig
from megpt.errors import InputError
from megpt.progress import log

if TYPE_CHECKING:
    from ray.data import DataContext

# Ray Data's actors hold logical CPUs while its tasks need some too: with fewer than this a resumed job would wait
# for ever. Logical CPUs cost nothing, so a small machine simply says it has more.
MIN_LOGICAL_CPUS = 8
LOCAL_OBJECT_STORE = 1 * 2**30
# A laptop's memory is scarce: no process is kept idle for each of those logical CPUs.
FRUGAL = {"prestart_worker_first_driver": False, "num_workers_soft_limit": 2}
LOOK_EVERY_S = 1.0
KNOCK_S = 10.0


@contextlib.contextmanager
def cluster(config: ClusterConfig | None = None) -> Iterator[None]:
    """Ray for the time of one command: the running cluster where there is one, else a local one, stopped at the end.

    Args:
        config: what the job asks for; workers without a GPU are told so.

    Raises:
        InputError: `RAY_ADDRESS` names a cluster that does not answer, refuses the token, or runs other versions.
    """
    if ray.is_initialized():
        yield
        return
    if joined():
        _join(worker_environment(config))
    else:
        os.environ.update(worker_environment(config))
        _start_local()
    try:
        yield
    finally:
        ray.shutdown()


def _start_local(tries: int = 2) -> None:
    """A local cluster; tried again where a busy machine did not start it within the 30 s that Ray allows."""
    for left in reversed(range(tries)):
        try:
            ray.init(
                address="local",
                num_cpus=max(MIN_LOGICAL_CPUS, os.cpu_count() or 1),
                object_store_memory=LOCAL_OBJECT_STORE,
                include_dashboard=False,
                logging_level=logging.WARNING,
                log_to_driver=False,
                _system_config=FRUGAL,
            )
            return
        except Exception as error:  # Ray raises a plain one
            ray.shutdown()
            if not left or "timed out during startup" not in str(error):
                raise


def quiet(context: DataContext) -> None:
    """Leave the terminal to megpt: what Ray Data has to say goes to ray-data/ among the session's logs alone.

    It would print a traceback for each shard of a lost actor, which is done again by another.
    """
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)


def joined() -> bool:
    """Whether this command works on a cluster that was there before it."""
    return bool(os.environ.get("RAY_ADDRESS"))


def _join(environment: dict[str, str]) -> None:
    address = os.environ["RAY_ADDRESS"]
    answered = _knock(address)
    try:
        ray.init(address="auto", runtime_env={"env_vars": environment}, logging_level=logging.WARNING)
    except (AuthenticationError, ConnectionError, ValueError) as error:
        if not answered and not isinstance(error, AuthenticationError):
            raise _nobody_there(address, type(error).__name__) from None
        raise InputError(
            f"the cluster at {address} refuses this command's token",
            cause="Ray's token authentication is on, and the token here is missing or another one",
            next="set RAY_AUTH_MODE=token and put the head's ~/.ray/auth_token on this machine (docs/cluster.md)",
        ) from None
    except RuntimeError as error:
        if "ersion mismatch" not in str(error):
            raise
        raise InputError(
            f"the cluster at {address} runs other versions than this command",
            where=f"here: Ray {ray.__version__}, Python {sys.version.split()[0]}",
            cause="Ray and Python must be the same on every machine",
            next="install from constraints.txt on every node, with one Python",
        ) from None


def _nobody_there(address: str, reason: str) -> InputError:
    return InputError(
        f"no Ray cluster answers at RAY_ADDRESS={address}",
        cause=f"it is down, or not reachable from this machine ({reason})",
        next="start it (docs/cluster.md), or unset RAY_ADDRESS to work on this machine alone",
    )


def _knock(address: str) -> bool:
    """Whether something listens at HOST:PORT; False for an address of another form.

    Raises:
        InputError: nothing does. Asked first, because ray.init itself would try for many minutes.
    """
    host, sign, port = address.rpartition(":")
    if not sign or not port.isdigit() or "://" in address:
        return False
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()
    except OSError as error:
        raise _nobody_there(address, type(error).__name__) from None
    return True


def worker_environment(config: ClusterConfig | None = None) -> dict[str, str]:
    """What every worker needs in its environment, whatever machine it runs on."""
    environment = {"RAY_USAGE_STATS_ENABLED": "0", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    if joined():
        # Ray Train has an actor that asks whether its run still lives, and frees its place if not. Where two clusters
        # have a node on one machine it would ask the one that was started last, which does not know of the run.
        environment["RAY_ADDRESS"] = os.environ["RAY_ADDRESS"]
    if "DS_ACCELERATOR" in os.environ:
        environment["DS_ACCELERATOR"] = os.environ["DS_ACCELERATOR"]
    elif not (_gpu_here() or joined() if config is None else config.gpus_per_worker):
        environment["DS_ACCELERATOR"] = "cpu"
    return environment


def _gpu_here() -> bool:
    import torch

    return torch.cuda.is_available()


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """For the large imports of a process that starts: nobody looks for garbage meanwhile.

    Importing torch and transformers makes hundreds of thousands of objects that all stay; looking them through again
    and again is a sixth of the time it takes.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def worker_slots(config: ClusterConfig) -> int:
    """How many of the job's workers the living nodes could hold if nothing else ran on them.

    A worker cannot be split over nodes, so the sum of all GPUs is not what counts.
    """
    needs = {"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker}
    slots = 0
    for node in ray.nodes():
        if node["Alive"]:
            fits = [math.floor(node["Resources"].get(name, 0) / need + 1e-6) for name, need in needs.items() if need]
            slots += min(fits)
    return slots


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


def require_one_cpu(config: ClusterConfig) -> None:
    """`require_resources` for a job of plain tasks, which goes on as soon as one of them has a place."""
    require_resources(config.model_copy(update={"num_workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0}))


def _demand(config: ClusterConfig) -> PlacementGroup:
    bundle = {"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker}
    return placement_group([{k: v for k, v in bundle.items() if v}] * config.min_workers, strategy="PACK")


def asked(config: ClusterConfig) -> str:
    gpus = f" and {config.gpus_per_worker:g} GPU" if config.gpus_per_worker else ""
    return f"{config.min_workers} × {config.cpus_per_worker:g} CPU{gpus}"


def where(config: ClusterConfig) -> str:
    return f"the cluster at {os.environ['RAY_ADDRESS']}, after {config.wait_s:g} s" if joined() else "this machine"


def _cannot_hold(config: ClusterConfig) -> InputError:
    have = ray.cluster_resources()
    gpu_short = config.gpus_per_worker * config.min_workers > have.get("GPU", 0)
    name = "GPU" if gpu_short else "CPU"
    key, each = (
        ("gpus_per_worker", config.gpus_per_worker) if gpu_short else ("cpus_per_worker", config.cpus_per_worker)
    )
    enough = each * config.min_workers <= have.get(name, 0)
    return InputError(
        f"cluster.{key} = {each:g} × {config.min_workers} workers, but the cluster has {have.get(name, 0):g} {name}s"
        + (f", room for {worker_slots(config)} workers" if enough else ""),
        where=where(config),
        cause="no GPU is there" if gpu_short and not have.get("GPU") else "more is asked than the cluster can hold",
        next=_remedy(config, key, have.get(name, 0)),
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
