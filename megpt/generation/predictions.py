"""predictions/: the output folder of a generation run.

    OUT/plan/                           the shard list (megpt/data/shards.py); each start adds what is new
    OUT/reports/part-000000.parquet …   one row per study, `megpt.study.PREDICTIONS_SCHEMA`; one file per shard
    OUT/README.md                       the dataset card
    OUT/failed.parquet                  the studies without a report: a list that can be used as `source`
    OUT/run.json                        config, decoding, versions, counts, seconds
    OUT/launches.jsonl                  a line per start of the job

Order of writes: the shard list; each shard's file, whole, by a rename after its rows are on disk; failed.parquet and
run.json when all files are there; `_SUCCESS` last, by the job. So a shard is done if its file exists, and nothing else
has to be true: after a kill, the shards without a file are still to do. A study that is listed again, in a new shard,
is first taken out of its earlier shard's file (megpt/data/growth.py).
"""

from __future__ import annotations

import importlib.metadata
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megpt import __version__
from megpt.data import listing
from megpt.data.card import write_card
from megpt.data.growth import Intake
from megpt.data.parquet import open_parquet, read_rows
from megpt.data.shards import ShardList, ShardListWriter
from megpt.data.sources import Source
from megpt.data.studies import Listed, write_rows
from megpt.errors import InputError, MegptError
from megpt.generation.run_status import RunStatus, launches
from megpt.output import SUCCESS, is_locked, write_aside
from megpt.places import entries
from megpt.study import FAILED_SCHEMA, PREDICTIONS_SCHEMA

LIST, REPORTS, FAILED, RUN_JSON = "plan", "reports", "failed.parquet", "run.json"
# The packages that the reports may depend on.
PACKAGES = ("torch", "transformers", "timm", "ray", "pyarrow", "pillow")


def studies_of_split(source: Source, split: str) -> Iterator[Listed]:
    """The studies of one split; those without a split in the archive belong to every one."""
    return _of_split(source.listed(), split)


def _of_split(studies: Iterable[Listed], split: str) -> Iterator[Listed]:
    return (listed for listed in studies if split == "all" or listed.study.split in ("", split))


@dataclass(frozen=True)
class Predictions:
    """An output folder with a complete shard list. It holds no open files, so it may be sent to other processes."""

    folder: Path
    shards: ShardList

    @classmethod
    def open(cls, folder: Path) -> Predictions | None:
        """The folder of an earlier start; None before its shard list was complete."""
        shards = ShardList.load(folder / LIST)
        return None if shards is None else cls(folder, shards)

    @classmethod
    def create(
        cls, folder: Path, source: Source, *, split: str, shard_size: int, intake: Intake | None = None
    ) -> Predictions:
        """Write the shard list of a first start, or add to an earlier one what `intake` chooses.

        Raises:
            InputError: no study of that split, two studies with one id, or a study without an id.
        """
        intake, found = intake or Intake(), listing.Tally(source)
        splits = Counter(intake.base.notes["splits"] if intake.base else {})
        limit, new = intake.choice.limit, 0
        studies = _of_split(found.counted(source.listed()), split)
        with ShardListWriter(folder / LIST, shard_size, intake.base) as writer:
            for listed in intake.studies(studies, where=source.place):
                splits[listed.study.split] += intake.new - new
                new = intake.new
                writer.add(listed)
            held = writer.studies - intake.again + (intake.base.studies if intake.base else 0)
            # a limit ends the listing early, so that nothing is known of the rest
            whole = limit is None or held < limit
            if whole:
                found.check()
            if not writer.studies and intake.base is None:
                raise _nothing_listed(source, split)
            path, name = source.origin
            notes = {**found.notes(), "whole": whole, "split": split, "splits": dict(splits)}
            return cls(folder, intake.commit(writer, **notes | {"source": path, "format": name}))

    def said(self) -> list[str]:
        """What the archive holds, and how much of it is written: `597 of 4,991 studies, split=test`."""
        notes = self.shards.notes
        taken, held = self.shards.studies, int(notes["found"]["studies"])
        amount = f"{taken:,} of {held:,} studies" if notes["whole"] else f"the first {taken:,} studies"
        return [listing.line(notes, notes["splits"].items()), f"{amount}, split={notes['split']}"]

    # ---- shards

    def path(self, shard: int) -> Path:
        return self.folder / REPORTS / f"part-{shard:06d}.parquet"

    def finished(self) -> list[int]:
        """The shards that have a file, in order."""
        return sorted(n for n in finished_shards(self.folder) if n < len(self.shards))

    def left(self) -> list[int]:
        """The shards without a file that have studies, in order."""
        return sorted(set(self._used()) - finished_shards(self.folder))

    def _used(self) -> list[int]:
        """The shards of which not every study is superseded."""
        return [number for number, shard in enumerate(self.shards) if shard.studies]

    def count(self, shards: Iterable[int]) -> int:
        """The number of studies in these shards."""
        return sum(self.shards[shard].studies for shard in shards)

    def studies(self, shard: int) -> list[Listed]:
        """The studies of one shard, in order; `megpt.data.studies.with_films` fetches their films."""
        return self.shards.read(self.shards[shard])

    def write_shard(self, shard: int, rows: Iterable[dict[str, Any]], *, new: bool = True) -> Path:
        """Write the file of one shard, whole or not at all; the rows are in the order of its studies.

        Args:
            new: at an address, leave the file of another worker, which has the same rows.
        """
        write_rows(self.path(shard), rows, PREDICTIONS_SCHEMA, aside=self.folder, new=new)
        return self.path(shard)

    def drop_superseded(self) -> None:
        """Take the studies that are listed again out of the files of their earlier shards."""
        for number, shard in enumerate(self.shards):
            path = self.path(number)
            if shard.studies == shard.rows or not path.exists():
                continue
            if not shard.studies:
                path.unlink()
                continue
            with open_parquet(path) as file:
                rows = file.metadata.num_rows
            if rows != shard.studies:
                wanted = {listed.study.study_id for listed in self.studies(number)}
                self.write_shard(number, (row for row in read_rows(path) if row["study_id"] in wanted), new=False)

    def failed_ids(self) -> frozenset[str]:
        """The studies that have an error in place of a report, of the shards that are finished."""
        numbers = [shard for shard in self.finished() if self.count_failed(shard)]
        rows = (row for shard in numbers for row in read_rows(self.path(shard), ["study_id", "error"]))
        return frozenset(row["study_id"] for row in rows if row["error"] is not None)

    def count_failed(self, shard: int) -> int:
        """Rows of one shard that have an error, from the file's footer if its statistics are there."""
        column = PREDICTIONS_SCHEMA.get_field_index("error")
        with open_parquet(self.path(shard)) as file:
            groups = (file.metadata.row_group(number) for number in range(file.num_row_groups))
            counted = [(group.num_rows, group.column(column).statistics) for group in groups]
            if all(statistics is not None and statistics.has_null_count for _, statistics in counted):
                return sum(rows - statistics.null_count for rows, statistics in counted)
            errors = file.read(columns=["error"]).column("error")
            return len(errors) - errors.null_count

    def reasons(self, shards: Iterable[int] | None = None) -> Counter[str]:
        """How often each reason occurs among the rows with an error, of these shards or of all that are finished."""
        found = Counter[str]()
        for shard in self.finished() if shards is None else shards:
            if self.count_failed(shard):
                found.update(row["error"] for row in read_rows(self.path(shard), ["error"]) if row["error"] is not None)
        return found

    # ---- the end of a run

    def finish(self, *, seconds: float, config: dict[str, Any], **values: Any) -> dict[str, int]:
        """Check the table, then write failed.parquet and run.json; returns the counts. `_SUCCESS` comes after this."""
        reasons = self.check()
        counts = {"studies": self.shards.studies, **{name: reasons[name] for name in ("stop", "length", "error")}}
        self.write_failed()
        about = "Machine-written reports of chest X-ray studies, one row per study."
        write_card(self.folder, {REPORTS: f"{REPORTS}/*.parquet"}, title="Reports", about=about)
        tree = {
            "megpt": __version__,
            "job": "generate",
            **values,
            "counts": counts,
            "shards": len(self.shards),
            "seconds": round(seconds, 3),
            "launches": launches(self.folder),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "config": config,
        }
        with write_aside(self.folder / RUN_JSON) as temporary:
            temporary.write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n")
        return counts

    def check(self) -> Counter[str]:
        """Prove from the files that each study of the list has one row; returns how often each finish reason occurs.

        Raises:
            MegptError: a file is missing, damaged, or holds other studies than its shard.
        """
        reasons: Counter[str] = Counter()
        for shard, expected in enumerate(self.shards.study_ids()):
            if not expected:
                continue
            path, again = self.path(shard), "delete this one file and run the same command again"
            try:
                rows = list(read_rows(path, ["study_id", "finish_reason"]))
            except InputError as error:
                cause = f"it was damaged after it was written ({error.cause})" if error.cause else "it was deleted"
                raise MegptError(f"{path} cannot be read", cause=cause, next=again) from None
            if [row["study_id"] for row in rows] != expected:
                raise MegptError(
                    f"{path} does not hold the studies of its shard",
                    cause="something else has written or changed it",
                    next=again,
                )
            reasons.update(row["finish_reason"] for row in rows)
        return reasons

    def write_failed(self) -> int:
        """Write failed.parquet, the studies without a report; returns their number."""
        return write_rows(self.folder / FAILED, self._failed_rows(), FAILED_SCHEMA)

    def _failed_rows(self) -> Iterator[dict[str, Any]]:
        origin = {name: self.shards.notes[name] for name in ("source", "format")}
        for shard in self._used():
            if not self.count_failed(shard):
                continue
            rows = read_rows(self.path(shard), ["study_id", "error"])
            errors = {row["study_id"]: row["error"] for row in rows if row["error"] is not None}
            # their texts and films are not read: a failed study costs its own row
            for listed in self.shards.read(self.shards[shard], ("study_id", "subject_id", "views", "split", "error")):
                if error := errors.get(listed.study.study_id):
                    yield {**listed.study.failed_row(error), **origin}

    # ---- status

    def status(self) -> RunStatus:
        """The progress of the run, from its files alone: no process is asked, so it works after a kill as well."""
        finished = self.finished()
        failed = sum(map(self.count_failed, finished))
        if (self.folder / SUCCESS).exists():
            state = "finished"
        else:
            state = "running" if is_locked(self.folder) else "stopped"
        rate = self._rate(finished, running=state == "running")
        return RunStatus(self.shards.studies, self.count(finished), failed, rate, state)

    def _rate(self, finished: list[int], *, running: bool) -> float | None:
        """Studies per second since the last start, until now if the job runs, else until the last file."""
        starts = [launch["started"] for launch in launches(self.folder) if "started" in launch]
        written = {shard: self.path(shard).stat().st_mtime for shard in finished} if starts else {}
        recent = {shard: at for shard, at in written.items() if at >= starts[-1]}
        if not recent:
            return None
        end = time.time() if running else max(recent.values())
        return self.count(recent) / max(end - starts[-1], 1e-3)


def finished_shards(folder: Path) -> set[int]:
    """The numbers of the shards that have a file."""
    reports = folder / REPORTS
    if not reports.is_dir():
        return set()
    names = (name for name, _, _ in entries(reports))
    return {int(name[5:-8]) for name in names if name.startswith("part-") and name.endswith(".parquet")}


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of killed writers; only the process that has claimed the folder may call this."""
    for pattern in (f"{LIST}/.*.tmp", ".*.tmp"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def read_run(folder: Path) -> dict[str, Any]:
    """The content of run.json."""
    return dict(json.loads((folder / RUN_JSON).read_text()))


def _nothing_listed(source: Source, split: str) -> InputError:
    if split == "all":
        return InputError(
            f"no study in {source.place}",
            cause=f"read as {source.format}, it lists none: an empty folder, or another one than was meant",
            next="check source=PATH and data.format (docs/data.md)",
        )
    return InputError(
        f"no study of split {split!r} in {source.place}",
        cause="the archive is empty, or its studies belong to other splits",
        next="set generate.split=all",
    )
