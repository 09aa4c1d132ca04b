"""Work that does not come on: a line after a minute, and an end after `cluster.hang_s`.

    with watchdog(config.cluster, archive="/mnt/archive"):
        ...                                     # whatever counts each study, by a live megpt.progress.Progress

A mount that no longer answers, a film whose decoding never ends, or a worker that is gone without a word would be
waited for without limit. A thread looks at the studies that the job counts, whoever works on them, so there is one
watchdog for all jobs that count each study (a training group has `train.timeout_s`). It ends the process: the thread
that waits may be where no exception reaches it. Finished files stay, and the same command resumes.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from megpt import events
from megpt.config import ClusterConfig
from megpt.errors import MegptError
from megpt.progress import Progress, console, log
from ray_jobs.stopping import end_process

LOOK_EVERY_S, TELL_AFTER_S = 1.0, 60.0
_WAITS = {
    ("writer.py", "_waited"): "the model waits for films",
    ("writer.py", "_batch"): "films are waited for",
    ("lane.py", "result"): "a shard's reports are waited for",
    ("helpers.py", "ask"): "a process that reads films does not answer",
    ("helpers.py", "unordered"): "the processes that read films are waited for",
    ("watched.py", "watched"): "the cluster's workers are waited for",
    ("step.py", "compute"): "the language model computes",
    ("engine.py", "prefill"): "the language model computes",
    ("hf.py", "_generate"): "the language model computes",
    ("vision.py", "one_pass"): "the vision encoder computes",
}
"""What a function of this project means that is under way, by its file and name."""


@contextlib.contextmanager
def watchdog(config: ClusterConfig, *, archive: str | None) -> Iterator[None]:
    """Watch the studies that are counted inside the block.

    Args:
        archive: what the job reads, for the error.
    """
    ended = threading.Event()
    limit = config.hang_s + config.wait_s  # nodes that are waited for are told of by themselves
    thread = threading.Thread(target=_watch, args=(limit, archive, ended), name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()


def _watch(limit: float, archive: str | None, ended: threading.Event) -> None:
    first = told = min(TELL_AFTER_S, limit)
    before, still, looked = None, 0.0, time.monotonic()
    while not ended.wait(LOOK_EVERY_S):
        progress, now = Progress.current, time.monotonic()
        seen = (progress, progress.seen) if progress is not None and progress.live else None
        # A job that was stopped as a whole (Ctrl-Z) did not wait for anything meanwhile.
        still = still + min(now - looked, 5 * LOOK_EVERY_S) if seen == before else 0.0
        before, looked = seen, now
        if progress is None or seen is None or still < told:
            told = first if still < first else told
            continue
        if still >= limit:
            _end(progress, still, archive)
        log(f"{progress.job}: no study has been finished for {still:.0f} s; {waiting(progress)}")
        told = min(2 * still, limit)


def waiting(progress: Progress) -> str:
    """What is under way: the pieces that are not finished, and who waits for what in this process."""
    frames, found = sys._current_frames(), list[str]()
    for frame in frames.values():
        while frame is not None:
            here = Path(frame.f_code.co_filename).name, frame.f_code.co_name
            if (said := _WAITS.get(here)) and said not in found:
                found.append(said)
                break
            frame = frame.f_back  # type: ignore[assignment]
    pieces = sorted(progress.flying)
    named = ", ".join(pieces[:3]) + (f" and {len(pieces) - 3} more" if len(pieces) > 3 else "")
    return "; ".join([*sorted(found), f"under way: {named}" if named else "nothing has told of any study yet"])


def _end(progress: Progress, still: float, archive: str | None) -> None:
    error = MegptError(
        f"{progress.job}: no study has been finished for {still:.0f} s",
        where=waiting(progress),
        cause="a mount or store that no longer answers, a film whose reading never ends, or a node that hangs",
        next=f"see whether {archive or 'what it reads'} answers, then run the same command again: it resumes "
        "(a larger cluster.hang_s is for work that is this slow)",
    )
    seconds = round(time.monotonic() - progress.began, 3)
    events.emit("end", state="failed", seconds=seconds, error=events.as_values(error))
    if events.for_people():
        console.print(f"error: {error}", style="red", markup=False)
    else:
        events.emit("exit", code=error.exit_code, error=events.as_values(error))
    end_children()
    end_process(error.exit_code)


def end_children() -> None:
    """Kill what this process has started: what hangs there would outlive it."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()
