"""The group of training workers as Ray Train is asked to hold it: its size, its time limits, its end by Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray.train.v2._internal.execution.callback import ControllerCallback

from megpt.config import ClusterConfig, Config
from megpt.errors import MegptError
from megpt.progress import log
from ray_jobs.failures import cause_of
from ray_jobs.runtime import asked, where
from ray_jobs.train.worker import ERROR

# How long Ray Train waits for one placement before it looks at the cluster again. A lost node is counted as there until
# the cluster has noticed, so the first placement after a loss may never be filled.
LOOK_AGAIN_S = 20.0
MARK = Path("steps") / "preempted"
AGAIN = "the workers start again from the newest checkpoint"
WAITING = ("InitializingState", "RestartingState", "ReschedulingState")
STARTING = ("SchedulingState", "ResizingState")


def scaling(config: ClusterConfig) -> Any:
    """Ray Train's ScalingConfig for the cluster section."""
    from ray.train.v2.api.config import ScalingConfig

    elastic = config.min_workers != config.max_workers
    resources = {"CPU": config.cpus_per_worker} | ({"GPU": config.gpus_per_worker} if config.gpus_per_worker else {})
    return ScalingConfig(
        num_workers=(config.min_workers, config.max_workers) if elastic else config.max_workers,
        use_gpu=bool(config.gpus_per_worker),
        resources_per_worker=resources,
    )


def set_time_limits(config: ClusterConfig, timeout_s: float) -> None:
    """Bound Ray Train's own waits, which it reads from this process's environment."""
    # Its barriers (reports, notices of preemption) wait for ever by default: a worker that hangs ahead of one would
    # hang the run, where torch's collectives end after the same time.
    os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] = str(timeout_s)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(min(LOOK_AGAIN_S, max(1.0, config.wait_s)))


class GroupWatch(ControllerCallback):
    """Says why a group of workers has ended, and ends a run that more workers cannot help.

    That is one whose worker has left an error that no restart can mend, or whose workers the cluster cannot place any
    more: Ray Train itself looks for a place for ever, and after a lost node that nothing replaces the run would stand
    still without a word. Runs in Ray Train's controller, which turns what it raises into the run's error.
    """

    def __init__(self, config: Config):
        self.cluster, self.timeout_s, self.where = config.cluster, config.train.timeout_s, where(config.cluster)
        self.mark = Path(str(config.output)) / MARK
        self.error = Path(str(config.output)) / ERROR
        self._since: float | None = None

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        self._tell(previous_state, current_state)
        self._limit(previous_state, current_state)

    def _tell(self, previous_state: Any, current_state: Any) -> None:
        if type(current_state).__name__ == "RestartingState" and type(previous_state) is not type(current_state):
            if self.error.exists():
                raise MegptError("a worker has said why the run cannot go on", where=str(self.error))
            log(f"{AGAIN}: {cause_of(current_state.training_failed_error, self.timeout_s)}")
        if type(previous_state).__name__ == "PreemptingState" and type(current_state).__name__ == "ShuttingDownState":
            # A node that goes before its deadline looks to Ray Train like any other that is lost. When that has used
            # up the restarts, the command starts the group again.
            self.mark.parent.mkdir(exist_ok=True)
            self.mark.touch()

    def _limit(self, previous_state: Any, current_state: Any) -> None:
        name = type(current_state).__name__
        if name not in (*WAITING, *STARTING):
            self._since = None
            return
        now = time.monotonic()
        self._since = self._since or now
        if name in WAITING and now - self._since > self.cluster.wait_s:
            raise MegptError(
                f"no room for the training group any more: {asked(self.cluster)}",
                where=self.where,
                cause="a node was lost and no other came (cluster.wait_s), or other jobs took its place",
                next="run the same command again, with cluster.num_workers=[min, max] to go on smaller: it resumes",
            )
        if type(previous_state) is type(current_state):
            time.sleep(1)  # Ray Train asks again at once, and would keep a core busy with it


def take_mark(output: Path) -> bool:
    """Whether the group has ended by a preemption since the last call."""
    marked = (output / MARK).exists()
    (output / MARK).unlink(missing_ok=True)
    return marked


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C inside the block raises KeyboardInterrupt, as it does everywhere else.

    Ray Train puts a handler of its own in place, which ends the run in good order but then the process with exit
    code 0, and leaves the handler there.
    """
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if main else None
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)
