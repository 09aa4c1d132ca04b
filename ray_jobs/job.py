"""The frame of every job, once. A job says what it does; the frame decides when:

    require → open → dry run → claim → nothing to do → plan → cluster → work → finish → tell → verdict

    class Prepare(Job):
        name, reads, needs = "prepare", ("source", "prepare", "data.max_pixels", …), ("source",)
        def open(self): ...                     # the inputs, and whether they can be used
        def inputs(self): ...                   # their fingerprints
        def work(self, folder): ...             # on the cluster; it resumes where it was stopped
        def finish(self, folder): ...           # from the files to the counts in _SUCCESS

    Prepare.run(config)                         # returns 0, or raises a MegptError that has the exit code

What every job promises follows from this order. Nothing is written before `claim`, and the dry run ends there, after it
has met every error that the run would meet before its work. `_SUCCESS` is written last: a folder that has it is whole,
and a folder without it is resumed. A job that `grows` also plans on a finished output; new studies in its source, or
more steps to train, make it unfinished again, so that `_SUCCESS` means all that was asked for at the last start. An
InputError inside the claim deletes a folder without finished work (`kept`), so exit code 2 leaves nothing behind and
the next try may use another config.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from megpt import __version__, events
from megpt.config import ClusterConfig, Config
from megpt.config.model import divided
from megpt.errors import InputError, MegptError
from megpt.output import RECORD, Output, claim, inspect
from megpt.places import is_address
from megpt.places.whole import staged
from megpt.progress import log
from megpt.settings import Section, identity_of, read_section
from ray_jobs.failures import known_failure
from ray_jobs.nodes import needs_of, vet
from ray_jobs.placement import check_resources, require_resources
from ray_jobs.runtime import alone, cluster
from ray_jobs.watchdog import watchdog


class Job:
    """One arrow from inputs to an output folder. Subclasses override what differs."""

    name: ClassVar[str]
    """As on the command line, in messages and in the output's record."""
    reads: ClassVar[tuple[str, ...]]
    """Keys and sections of the config that the job reads; `output` and `cluster` go without saying."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Paths that must be set, beside `output`."""
    grows: ClassVar[bool] = False
    """Whether a finished output takes up what is new: studies in the source, more steps. `plan` then says so and
    removes `_SUCCESS`."""
    staged: ClassVar[bool] = True
    """Whether an output at an address is made in a folder of this machine and put there at the end. A job that does
    without (False) opens nothing there but by `megpt.places`, writes by `write_aside`, and resumes."""

    eventful: ClassVar[bool] = True
    """Whether the output holds the events of its making: not a folder to be loaded or shared."""

    in_process = False
    """Whether the work of this start runs in the command's own process, without Ray."""

    settings: ClassVar[type[Section]] = Section
    """The settings of a job from another package: a config has them under `options.NAME`, a command as `NAME.key`."""

    def __init__(self, config: Config):
        self.config = config
        self.options = read_section(self.settings, config.options.get(self.name, {}), prefix=f"{self.name}.")
        self.began = time.monotonic()

    @classmethod
    def run(cls, config: Config, *arguments: str, dry_run: bool = False) -> int:
        """Do the job, or resume it; returns exit code 0.

        Args:
            arguments: the job's own, such as the file of `import-checkpoint`.
            dry_run: check everything, say what would be done, write nothing.

        Raises:
            InputError: a bad config or input, or an output that is not this job's; nothing is left behind.
            TooManyFailed: done, but more studies failed than allowed.
            MegptError: any other known failure; the same command resumes from there.
        """
        job = cls(config, *arguments)
        if dry_run and config.output is None and job.estimate():
            return 0
        config.require("output", *cls.needs)
        job.open()
        if dry_run:
            job._rehearse()
        else:
            job._perform()
        return 0

    def _rehearse(self) -> None:
        output = inspect(str(self.config.output), job=self.name, identity=self.identity())
        if output.done and not self.has_grown(output.path):
            self.nothing_to_do(output)
            return
        if (demand := self.demand()) is not None:
            check_resources(demand)
        self.preview(output.path)

    def _perform(self) -> None:
        identity = self.identity()
        with claim(self.config.output, job=self.name, identity=identity, config=self.config) as output:
            # nothing can be appended to an object
            file = None if is_address(output.path) or not self.eventful else output.path / events.FILE
            with events.recorded(file, self.name, held=output.done):
                host, process = os.uname().nodename, os.getpid()
                events.emit("start", output=str(output.path), version=__version__, host=host, process=process)
                summary = self._attempt(output)
                if summary is None:
                    self.nothing_to_do(output)
                    return
        self.tell(output.path, summary)
        self.verdict(output.path, summary)

    def _attempt(self, output: Output) -> dict[str, Any] | None:
        """The summary of what was done; None if there was nothing to do."""
        try:
            left = self.plan(output.path) if self.grows or not output.done else False
            if output.done and not left:
                self._ended("finished", summary=output.summary())
                return None
            events.release()
            summary = self._produce(output, left)
        except Exception as error:
            known = known_failure(error, str(output.path)) or error
            said = events.as_values(known) if isinstance(known, MegptError) else {"kind": type(known).__name__}
            self._ended("failed", error=said)
            if isinstance(known, InputError) and not self.kept(output.path):
                output.discard()
            if known is error:
                raise
            raise known from error
        except BaseException as stop:  # Ctrl-C and SIGTERM
            self._ended("stopped", error={"kind": type(stop).__name__})
            raise
        self._ended("finished", summary=summary)
        return summary

    def _ended(self, state: str, **values: Any) -> None:
        events.emit("end", state=state, seconds=round(time.monotonic() - self.began, 3), **values)

    def _produce(self, output: Output, left: bool) -> dict[str, Any]:
        with staged(output.path) if self.staged else contextlib.nullcontext(output.path) as folder:
            if left:
                with self._workplace(output.path / RECORD), watchdog(self.config.cluster, archive=self._archive()):
                    self.work(folder)
            summary = self.finish(folder)
        output.finish(**summary)
        self.tidy(output.path)
        return summary

    def _archive(self) -> str | None:
        """The place that the job reads, for the error of work that does not come on."""
        named = self.config.source or self.config.studies
        return None if named is None else str(named)

    @contextlib.contextmanager
    def _workplace(self, probe: Path) -> Iterator[None]:
        """Where the work is done: a cluster with room for it, or this process."""
        demand = self.demand()
        self.in_process = demand is not None and not self.needs_ray() and alone(demand)
        with cluster(self.config.cluster) if demand and not self.in_process else contextlib.nullcontext():
            if demand:
                if demand.gpus_per_worker or not self.in_process:
                    vet(needs_of(self.config, self.reads, probe=probe), self.config.cluster)
                require_resources(demand)
            yield

    def identity(self) -> dict[str, Any]:
        """What the result depends on: the settings that change it, and the content of the inputs."""
        own = identity_of(self.options)
        return self.config.identity(*self.reads) | ({"options": own} if own else {}) | self.inputs()

    # What a job is.

    def open(self) -> None:
        """Open the inputs.

        Raises:
            InputError: one of them, or a setting, cannot be used.
        """

    def inputs(self) -> dict[str, Any]:
        """A fingerprint of each input."""
        return {}

    def estimate(self) -> bool:
        """Print what is known without inputs, such as a cost estimate; returns whether the job has any such thing."""
        return False

    def preview(self, folder: Path) -> None:
        """Say what a run would do.

        Raises:
            InputError: the inputs, read to their end, cannot be used.
        """

    def demand(self) -> ClusterConfig | None:
        """The resources that must be free before the work begins; None for a job that needs no cluster."""
        return self.config.cluster

    def needs_ray(self) -> bool:
        """Whether the work needs Ray even where one worker of this machine is all that is asked for.

        The `work` of a job that does not looks at `in_process`.
        """
        return True

    def plan(self, folder: Path) -> bool:
        """Decide what to do; returns whether any of it is left."""
        return True

    def has_grown(self, folder: Path) -> bool:
        """Whether a finished output would take up anything; writes nothing."""
        return False

    def work(self, folder: Path) -> None:
        """Do what is left."""
        raise NotImplementedError

    def finish(self, folder: Path) -> dict[str, Any]:
        """Check and complete the output; returns the summary that `_SUCCESS` keeps."""
        raise NotImplementedError

    def tidy(self, folder: Path) -> None:
        """Remove what only an unfinished output needs."""

    def kept(self, folder: Path) -> bool:
        """Whether an output that met a bad input holds work worth keeping."""
        return False

    def tell(self, folder: Path, summary: dict[str, Any]) -> None:
        """Say what has been done, on the screen."""

    def verdict(self, folder: Path, summary: dict[str, Any]) -> None:
        """Raise TooManyFailed if the output is complete but too many studies failed."""

    def nothing_to_do(self, output: Output) -> None:
        """Say that the output is finished, with the verdict that it had then."""
        log(f"{self.name}: {output.path} is finished, nothing to do")
        self.verdict(output.path, output.summary())


def absolute(config: Config) -> Config:
    """The config with its local paths made absolute, for workers: they start in folders of their own."""
    keys = ("output", "source", "studies", "prompts", "data.reports", "data.annotations")
    changes: dict[str, Any] = {}
    for key in (*keys, "checkpoint", "train.deepspeed", "model.llm", "model.vision_weights"):
        value: Any = config
        for name in key.split("."):
            value = getattr(value, name)
        # The last four may be a hub id, a word or the name of a shipped file instead of a path.
        if value is not None and not is_address(value) and (key in keys or Path(value).exists()):
            changes[key] = str(Path(value).absolute())
    kind, place = divided(config.model.vision)
    if Path(place).is_dir():
        changes["model.vision"] = kind + str(Path(place).absolute())
    return config.overridden(changes)
