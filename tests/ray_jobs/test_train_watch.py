"""What the training command does around the workers, without starting any.

- bad commands end before anything is read: batch sizes, an unknown score, a missing logger, missing folders
- settings that only change speed are not part of a run's identity; those that change the weights are, and so are the
  studies and the weights that it starts from: a changed table or model on a running output is refused, and named
- an error that a worker leaves reaches the command as itself, once, and no workers are started again for it
- rows of the log are shown once, also when a restarted group writes them again, and a half-written row waits
- a hung collective and a dead worker are named as the cause
- workers that cannot be placed any more end the run after cluster.wait_s, and not while they start or run
- a group that ends while a node is going has ended by the preemption, whatever Ray Train calls it
- Ctrl-C while Ray Train runs is the KeyboardInterrupt that it is everywhere else
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.train import ControllerError, PreemptionError, WorkerGroupError
from ray.train.v2._internal.exceptions import BroadcastCollectiveTimeoutError, WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.controller.state import (
    ErroredState,
    PreemptingState,
    ReschedulingState,
    RestartingState,
    RunningState,
    SchedulingState,
    ShuttingDownState,
)
from ray.train.v2.api.preemption import PreemptionInfo
from small_runs import make_studies, small_config

from megpt.config import Config
from megpt.data.studies import write_studies
from megpt.errors import InputError, MegptError
from megpt.output import claim
from megpt.training.log import line
from ray_jobs.train import job
from ray_jobs.train.group import AGAIN, GroupWatch, interruptible, take_mark
from ray_jobs.train.validate import PAPER_MEAN, best_score, check_validation, score
from ray_jobs.train.watch import Tail
from ray_jobs.train.worker import take_error, tell_error


def config(**changes):
    return Config().overridden({key.replace("__", "."): value for key, value in changes.items()})


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"cluster__num_workers": 3}, "train.global_batch_size = 16 cannot be divided among 3 workers"),
        ({"cluster__num_workers": [1, 32]}, "train.global_batch_size = 16 is less than 32 workers"),
        ({"train__loggers": ["wandb"]}, "train.loggers names wandb, which is not installed"),
        ({"train__deepspeed": "none.json"}, "no DeepSpeed config at none.json"),
    ],
)
def test_bad_settings(changes, text):
    with pytest.raises(InputError) as raised:
        job.check(config(**changes))
    assert str(raised.value).startswith(text)


def test_missing_inputs(tmp_path):
    with pytest.raises(InputError, match="no folder at studies="):
        job.check_inputs(config(output=str(tmp_path / "o"), studies=str(tmp_path / "no"), model__dynamic_prompt=False))


def test_an_unknown_score():
    with pytest.raises(InputError, match=r"train\.best_metric = 'BLEU4' is no score") as raised:
        check_validation(config(train__best_metric="BLEU4"))
    assert "BLEU_4" in str(raised.value)


def test_best_score():
    scores = {"BLEU_4": 0.2, "CIDEr": 0.6, "ROUGE_L": 0.3}
    assert best_score(scores, PAPER_MEAN) == pytest.approx(0.4) and best_score(scores, "ROUGE_L") == 0.3


def test_each_study_is_scored_once():
    row = ("a", "the heart is large .", "the heart is large .")
    twice = score(config(), [[row, ("b", "", "clear lungs .")], [row]])
    assert twice == score(config(), [[row], [("b", "", "clear lungs .")]])


def test_identity(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    base = {"source": str(tmp_path), "model__dynamic_prompt": False}

    def identity(**changes):
        return job.Train(config(**base, **changes)).identity()

    same = {"train__zero_stage": 3, "train__save_every": 7, "cluster__num_workers": 4, "train__micro_batch_size": 2}
    assert identity(**same) == identity()
    for change in ({"train__lr": 1e-3}, {"seed": 1}, {"model__fem": False}, {"train__global_batch_size": 8}):
        assert identity(**change) != identity()


def test_changed_data_and_weights_are_refused(tmp_path):
    write_studies(tmp_path / "studies", "train", make_studies(3), 0)
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "model.safetensors").write_bytes(b"one")
    settings = small_config(tmp_path / "out", studies=tmp_path / "studies", llm=tmp_path / "llm")

    def start():
        with claim(settings.output, job="train", identity=job.Train(settings).identity(), config=settings):
            pass

    start()
    start()
    (tmp_path / "llm" / "model.safetensors").write_bytes(b"two")
    with pytest.raises(InputError, match=r"exists from another config\n  where: weights\.llm: '\w+' → '\w+'\n"):
        start()
    (tmp_path / "llm" / "model.safetensors").write_bytes(b"one")
    write_studies(tmp_path / "studies", "train", make_studies(4), 0)
    with pytest.raises(InputError, match=r"exists from another config\n  where: studies: '\w+' → '\w+'\n"):
        start()


@pytest.mark.parametrize("kind", [InputError, MegptError])
def test_an_error_of_a_worker_arrives_once(tmp_path, kind):
    (tmp_path / "steps").mkdir()
    tell_error(tmp_path, kind("what", where="where", next="next"))
    told = take_error(tmp_path)
    assert type(told) is kind and str(told) == str(kind("what", where="where", next="next"))
    assert take_error(tmp_path) is None


def test_rows_are_shown_once(tmp_path):
    path = tmp_path / "log.jsonl"

    def rows(*steps):
        return "".join(json.dumps({"step": step}) + "\n" for step in steps)

    path.write_text(rows(1))
    tail = Tail(path)
    path.write_text(rows(1, 2, 3) + '{"step": 4')
    assert [row["step"] for row in tail.rows()] == [2, 3]
    path.write_text(rows(1, 2))  # the group starts again behind step 2
    assert list(tail.rows()) == []
    path.write_text(rows(1, 2, 3, 4, 5))
    assert [row["step"] for row in tail.rows()] == [4, 5]
    with path.open("a") as file:
        file.write(json.dumps({"step": 5, "val_best_metric": 0.5}) + "\n")
    assert [row["val_best_metric"] for row in tail.rows()] == [0.5]


def test_a_line_for_a_person():
    row = {"step": 5, "total_steps": 10, "loss": 1.5, "lr": 1e-4, "data_wait": 0.0123, "failed": 2, "val_CIDEr": 0.25}
    assert line(row) == "step 5/10  loss 1.5000  lr 1.00e-04  data wait 1.2%  val_CIDEr 0.2500  2 unreadable"


class GroupError(Exception):
    """As Ray Train's: the errors of the workers by rank."""

    def __init__(self, failures):
        self.worker_failures = failures


@pytest.mark.parametrize(
    "error, cause",
    [
        (RuntimeError("Timed out waiting 1000ms for recv operation"), "hung longer than train.timeout_s = 1800 s"),
        (BroadcastCollectiveTimeoutError(9.0, [0], 9.0), "hung longer than train.timeout_s = 1800 s"),
        (RayTaskError("f", "timeout=1", KeyError("x")), "worker 1: KeyError"),
        (WorkerHealthCheckFailedError("x", ActorDiedError()), "the process of worker 1 died, or its node"),
    ],
)
def test_causes(error, cause):
    told = job.as_megpt_error(GroupError({1: error}), config())
    assert cause in str(told) and "run the same command again" in str(told)


def test_an_error_of_ours_stays_itself():
    ours = MegptError("the loss is nan at step 3")
    assert job.as_megpt_error(GroupError({0: ours}), config()) is ours


def test_a_group_that_finds_no_room():
    limit = GroupWatch(config(cluster__num_workers=2, cluster__wait_s=0.2))
    lost = PreemptionError(PreemptionInfo(None, {}))
    running, restarting, scheduling = RunningState(), RestartingState(lost), SchedulingState(None)
    limit.after_controller_state_update(running, restarting)
    time.sleep(0.3)
    limit.after_controller_state_update(restarting, scheduling)  # there is room, and workers take their time to start
    limit.after_controller_state_update(scheduling, running)
    limit.after_controller_state_update(running, restarting)
    limit.after_controller_state_update(restarting, scheduling)
    time.sleep(0.3)
    with pytest.raises(MegptError) as raised:
        limit.after_controller_state_update(scheduling, ReschedulingState(lost))
    assert str(raised.value) == (
        "no room for the training group any more: 2 × 1 CPU\n"
        "  where: this machine\n"
        "  cause: a node was lost and not replaced within cluster.wait_s, or other jobs took its place\n"
        "  next:  run the same command again to resume, with cluster.num_workers=[min, max] to use fewer workers"
    )
    assert job.as_megpt_error(ControllerError(raised.value), config()) is raised.value


def test_a_group_that_ends_by_a_preemption(tmp_path, capsys):
    watch = GroupWatch(config(output=str(tmp_path)))
    lost = WorkerGroupError("x", {1: WorkerHealthCheckFailedError("x", ActorUnavailableError("x", None))})
    ending = ShuttingDownState(ErroredState(lost))
    watch.after_controller_state_update(RunningState(), ending)
    assert not take_mark(tmp_path)
    watch.after_controller_state_update(PreemptingState(PreemptionInfo(None, {}), 0.0), ending)
    assert take_mark(tmp_path) and not take_mark(tmp_path)
    watch.after_controller_state_update(RunningState(), RestartingState(lost))
    told = " ".join(capsys.readouterr().err.split())
    assert told == f"{AGAIN}: the process of worker 1 died, or its node"


def test_an_error_that_no_restart_mends_ends_the_run(tmp_path, capsys):
    watch = GroupWatch(config(output=str(tmp_path)))
    failed = RestartingState(WorkerGroupError("x", {0: RayTaskError("f", "traceback", MegptError("the loss is nan"))}))
    watch.after_controller_state_update(RunningState(), failed)
    assert AGAIN in capsys.readouterr().err
    (tmp_path / "steps").mkdir()
    tell_error(tmp_path, MegptError("the loss is nan"))
    with pytest.raises(MegptError, match=r"^a worker reported why the run cannot continue"):
        watch.after_controller_state_update(RunningState(), failed)
    assert AGAIN not in capsys.readouterr().err
    assert str(take_error(tmp_path)) == "the loss is nan"


def restarting(*errors):
    """The state of a controller whose workers have raised these."""
    group = {rank: RayTaskError("f", "traceback", error) for rank, error in enumerate(errors)}
    return RestartingState(WorkerGroupError("x", group))


def test_a_fault_of_code_is_not_tried_again(tmp_path):
    watch = GroupWatch(config(output=str(tmp_path)))
    failed = restarting(RuntimeError("Connection closed by peer"), NotImplementedError("unsupported mix of dtypes\nx"))
    with pytest.raises(MegptError) as raised:
        watch.after_controller_state_update(RunningState(), failed)
    assert str(raised.value) == (
        "training stopped by an error that a restart does not fix\n"
        f"  where: {tmp_path}\n"
        "  cause: worker 0: RuntimeError: Connection closed by peer; "
        "worker 1: NotImplementedError: unsupported mix of dtypes\n"
        "  next:  fix the cause and run the same command again to resume; --debug shows tracebacks"
    )


def test_the_same_error_twice_is_not_tried_again(tmp_path, capsys):
    def update(watch, *errors):
        watch.after_controller_state_update(RunningState(), restarting(*errors))

    watch = GroupWatch(config(output=str(tmp_path)))
    (tmp_path / "steps" / "step-00000002").mkdir(parents=True)
    update(watch, OSError("a name that must not be shown"))
    update(watch, OSError("another"))
    (tmp_path / "steps" / "step-00000004").mkdir()
    update(watch, OSError("another"))  # there was progress
    assert "name" not in capsys.readouterr().err
    with pytest.raises(MegptError, match="cause: worker 0: OSError\n"):
        update(watch, OSError("another"))
    # A worker that dies again and again is retried as often as train.max_failures says, whatever the others raise.
    for _ in range(3):
        update(watch, OSError("another"), ActorDiedError())


def test_ctrl_c():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.signal(signal.SIGINT, lambda *_: sys.exit(0))  # what Ray Train does
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert signal.getsignal(signal.SIGINT) is before
