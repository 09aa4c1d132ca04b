"""Joining the cluster that is there, or starting one on this machine; Ray itself is imported when one is needed.

    with cluster(config.cluster):
        ...

A running cluster is joined when `RAY_ADDRESS` names it, which `ray job submit` sees to by itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from megpt.config import ClusterConfig
from megpt.errors import InputError, MegptError

if TYPE_CHECKING:
    from ray.data import DataContext

# Ray Data's actors hold logical CPUs while its tasks need some too: with fewer than this a resumed job would wait
# indefinitely. Logical CPUs cost nothing, so a small machine simply claims to have more.
MIN_LOGICAL_CPUS = 8
LOCAL_OBJECT_STORE = 1 * 2**30
# A laptop's memory is scarce: no process is kept idle for each of those logical CPUs.
FRUGAL = {"prestart_worker_first_driver": False, "num_workers_soft_limit": 2}
KNOCK_S = 10.0


@contextlib.contextmanager
def cluster(config: ClusterConfig | None = None) -> Iterator[None]:
    """Ray for the time of one command: the running cluster where there is one, else a local one, stopped at the end.

    Args:
        config: what the job asks for; workers without a GPU do not look for one.

    Raises:
        InputError: `RAY_ADDRESS` names a cluster that does not answer, refuses the token, or runs other versions.
    """
    if started():
        yield
        return
    import ray

    from ray_jobs import ray_private

    with ray_private.without_sigterm_handler():
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
    import ray

    # That Ray uses the token which is there is as it should be; that there is none remains a warning.
    logging.getLogger("ray._private.authentication.authentication_token_setup").addFilter(_is_no_praise)
    for left in reversed(range(tries)):
        try:
            ray.init(
                address="local",
                num_cpus=local_cpus(),
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


def _is_no_praise(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Token authentication is enabled")


def started() -> bool:
    """Whether this process is connected to a cluster already."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def alone(config: ClusterConfig) -> bool:
    """Whether a job may do without Ray: it asks for one worker, and no cluster is around."""
    return config.ray == "auto" and config.max_workers == 1 and not joined() and not started()


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def local_cpus() -> int:
    return max(MIN_LOGICAL_CPUS, cores())


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
    import ray
    from ray.exceptions import AuthenticationError

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
    elif not (joined() or gpus_here() if config is None else config.gpus_per_worker):
        environment["DS_ACCELERATOR"] = "cpu"
    return environment


def gpus_here() -> int:
    import torch

    return torch.cuda.device_count()


def wants_gpus(config: ClusterConfig) -> bool:
    """Whether workers are to compute on GPUs. `DS_ACCELERATOR=cpu` says that those of the cluster are names only."""
    return bool(config.gpus_per_worker) and os.environ.get("DS_ACCELERATOR") != "cpu"


def require_gpu(config: ClusterConfig) -> None:
    """Check that a worker which was promised a GPU has one: torch would take the CPU without a word.

    Raises:
        MegptError: torch cannot use it.
    """
    if not wants_gpus(config):
        return
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return
    raise MegptError(
        f"node {socket.gethostname()} promised a GPU, and torch cannot use one there",
        cause=str(said[0].message).splitlines()[0]
        if said
        else f"no driver for CUDA {torch.version.cuda}, or no device",
        next="mend or remove the node (`megpt doctor` looks at all of them), then run the same command again",
    )
