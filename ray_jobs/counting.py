"""The studies of one execution, counted while they are worked on: for people, and for `fail_fast`. Needs no Ray.

count = Count(progress, config.generate)
count.look()                                                                # each second or so
count.finished("train-00003", studies=500, reasons={"missing file": 2})
"""

from __future__ import annotations

import contextlib
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping

from megpt.config import GenerateConfig, PrepareConfig
from megpt.errors import MegptError
from megpt.progress import Progress
from ray_jobs.telling import forget, plain_reason, told


class Count:
    """The studies of one execution, counted while they are worked on.

    Args:
        settings: of the job; `fail_fast` and `max_failed_fraction` are read.
    """

    def __init__(self, progress: Progress, settings: PrepareConfig | GenerateConfig):
        self.progress, self.settings = progress, settings
        self.run = uuid.uuid4().hex

    @contextlib.contextmanager
    def in_a_folder(self) -> Iterator[None]:
        """Have the workers, processes of this machine, tell in a folder of their own; there is no cluster to ask."""
        with tempfile.TemporaryDirectory(prefix="megpt-") as folder:
            self.run = folder
            try:
                yield
            finally:
                self.progress.in_flight({})

    def look(self) -> None:
        """Ask how far the pieces have come that are not finished.

        Raises:
            MegptError: too many studies have failed.
        """
        if (counts := told(self.run)) is not None:
            self.progress.in_flight(counts)
        self.check()

    def finished(self, piece: str, studies: int, reasons: Mapping[str, int]) -> None:
        """A piece is finished, with the numbers of its file.

        Raises:
            MegptError: too many studies have failed.
        """
        failed = Counter[str]()
        for reason, times in reasons.items():
            failed[plain_reason(reason)] += times
        self.progress.advance(studies, failed, piece=piece)
        self.check()

    def check(self) -> None:
        """End the job where its failures exceed what is allowed already (`fail_fast`).

        Raises:
            MegptError: they do.
        """
        job, failed, total = self.progress.job, self.progress.failed, self.progress.total or 0
        most = self.settings.max_failed_fraction
        if self.settings.fail_fast and failed > most * total:
            reasons = self.progress.reasons.most_common(3)
            raise MegptError(
                f"{failed} of {total} studies have failed after {self.progress.seen}, "
                f"so {job}.max_failed_fraction={most:g} cannot be met any more",
                where=", ".join(f"{times} × {reason}" for reason, times in reasons),
                cause=f"{job}.fail_fast ends the job here; finished files stay",
                next=f"mend these films and run the same command again with retry=failed, "
                f"or with a larger {job}.max_failed_fraction",
            )

    def forget(self) -> None:
        """Remove what was told: workers that are lost would tell no more."""
        self.progress.in_flight({})
        forget(self.run)
