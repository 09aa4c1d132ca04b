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

from megpt.config import ClusterConfig, Config
from megpt.errors import MegptError
from megpt.places import place
from megpt.progress import log
from ray_jobs import ray_private
from ray_jobs.failures import cause_of, is_fault_of_code, raised_by_workers
from ray_jobs.placement import asked, elsewhere, where
from ray_jobs.train.worker import ERROR

# How long Ray Train waits for one placement before it looks at the cluster again. A lost node is counted as there until
# the cluster has noticed, so the first placement after a loss may never be filled.
LOOK_AGAIN_S = 20.0
MARK = Path("steps") / "preempted"
AGAIN = "the workers start again from the newest checkpoint"
# Looking for a place, and starting in it.
WAITING = (ray_private.InitializingState, ray_private.RestartingState, ray_private.ReschedulingState)
STARTING = (ray_private.SchedulingState, ray_private.ResizingState)


def scaling(config: ClusterConfig) -> Any:
    """Ray Train's ScalingConfig for the cluster section."""
    import ray.train

    v2: Any = ray.train  # Ray's types know both of its APIs
    elastic = config.min_workers != config.max_workers
    resources = {"CPU": config.cpus_per_worker} | ({"GPU": config.gpus_per_worker} if config.gpus_per_worker else {})
    return v2.ScalingConfig(
        num_workers=(config.min_workers, config.max_workers) if elastic else config.max_workers,
        use_gpu=bool(config.gpus_per_worker),
        resources_per_worker=resources,
        **elsewhere(),
    )


def set_time_limits(config: ClusterConfig, timeout_s: float) -> None:
    """Bound Ray Train's own waits, which it reads from this process's environment."""
    # By default its barriers (reports, preemption notices) wait without limit, so a worker that hangs before one would
    # hang the run. torch's collectives end after this time too.
    os.environ[ray_private.COLLECTIVE_LIMIT] = str(timeout_s)
    os.environ[ray_private.START_LIMIT] = str(min(LOOK_AGAIN_S, max(1.0, config.wait_s)))


class GroupWatch(ray_private.ControllerCallback):
    """Says why a group of workers ended, and ends a run that a new group cannot help.

    A new group does not help if a worker left an error that a restart would meet again, or if the cluster can no longer
    place the workers: Ray Train itself keeps trying without limit, so after the loss of a node that nothing replaces,
    the run would wait silently. Runs in Ray Train's controller, which reports what is raised as the run's error.
    """

    def __init__(self, config: Config):
        self.cluster, self.timeout_s, self.where = config.cluster, config.train.timeout_s, where(config.cluster)
        self.mark = place(str(config.output)) / MARK
        self.error = place(str(config.output)) / ERROR
        self._since: float | None = None
        self._raised: tuple[Any, ...] = ()
        """What the workers raised at the last restart, and the newest checkpoint at that time."""

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        self._say_why(previous_state, current_state)
        self._limit(previous_state, current_state)

    def _say_why(self, previous_state: Any, current_state: Any) -> None:
        again = isinstance(current_state, ray_private.RestartingState)
        if again and type(previous_state) is not type(current_state):
            if self.error.exists():
                raise MegptError("a worker reported why the run cannot continue", where=str(self.error))
            self._refuse_repetition(error := current_state.training_failed_error)
            log(f"{AGAIN}: {cause_of(error, self.timeout_s)}")
        going = isinstance(previous_state, ray_private.PreemptingState)
        if going and isinstance(current_state, ray_private.ShuttingDownState):
            # To Ray Train, a node that goes before its deadline looks like any lost node. If that uses up the
            # restarts, the command starts the group again.
            self.mark.parent.mkdir(exist_ok=True)
            self.mark.touch()

    def _refuse_repetition(self, error: BaseException) -> None:
        """Raise for an error that a restart would meet again: a fault in code, or one met twice at one checkpoint."""
        errors = raised_by_workers(error)
        raised = (errors, sorted(path.name for path in self.mark.parent.glob("step-*"))[-1:])
        if is_fault_of_code(error) or (errors and raised == self._raised):
            raise MegptError(
                "training stopped by an error that a restart does not fix",
                where=str(self.mark.parent.parent),
                cause=cause_of(error, self.timeout_s),
                next="fix the cause and run the same command again to resume; --debug shows tracebacks",
            ) from error
        self._raised = raised

    def _limit(self, previous_state: Any, current_state: Any) -> None:
        if not isinstance(current_state, (*WAITING, *STARTING)):
            self._since = None
            return
        now = time.monotonic()
        self._since = self._since or now
        if isinstance(current_state, WAITING) and now - self._since > self.cluster.wait_s:
            raise MegptError(
                f"no room for the training group any more: {asked(self.cluster)}",
                where=self.where,
                cause="a node was lost and not replaced within cluster.wait_s, or other jobs took its place",
                next="run the same command again to resume, with cluster.num_workers=[min, max] to use fewer workers",
            )
        if type(previous_state) is type(current_state):
            time.sleep(1)  # Ray Train would ask again at once and keep a core busy


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
