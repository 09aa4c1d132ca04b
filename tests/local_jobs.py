"""Jobs in this process, for tests of what they write rather than of where they run."""

from __future__ import annotations

from pathlib import Path

from megpt.data.prepare import prepare_shard
from ray_jobs.prepare import Prepare


class LocalPrepare(Prepare):
    """The job without Ray."""

    def demand(self) -> None:
        return None

    def work(self, folder: Path) -> None:
        for shard in self.left:
            settings, archive = self.config.prepare, self.source.root
            prepare_shard(folder, self.shards, shard, settings, archive=archive, max_pixels=10**6)
