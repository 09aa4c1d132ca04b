"""The plan of `prepare`: the archive's manifest, cut into shards of studies, on disk before the first film is opened.

    OUT/.work/plan/train-00000.parquet …      the studies of each shard, films by uri
    OUT/.work/plan/plan.json                  written last: without it there is no plan

A plan depends on the archive, the shard size and the seed only, never on the number of workers; a job that is started
again goes by the plan it made, so its shards are the same whatever has happened to the archive meanwhile. Memory: one
number per study and one per patient.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megpt.data.studies import RowWriter, read_rows, write_rows
from megpt.errors import InputError
from megpt.output import write_aside
from megpt.study import SPLITS, STUDIES_SCHEMA, Study

# Studies of an archive without splits: by patient, so that nobody is in two of them.
SHARES = (("train", 0.8), ("val", 0.9), ("test", 1.0))
PLAN = "plan.json"


@dataclass(frozen=True)
class Shard:
    """The studies that one task prepares and one file holds."""

    split: str
    number: int
    studies: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05d}"


@dataclass(frozen=True)
class Plan:
    """The shards, and what was seen of the archive while making them."""

    folder: str
    shards: tuple[Shard, ...]
    split_by: str
    """archive: it says so itself; patient: by hash of the patient's id; none: no reports, so all is `test`."""
    patients_in_two_splits: int = 0

    @property
    def studies(self) -> int:
        return sum(shard.studies for shard in self.shards)

    def read(self, shard: Shard) -> Iterator[Study]:
        """The studies of one shard, in the plan's order."""
        for row in read_rows(Path(self.folder) / f"{shard.name}.parquet"):
            row["views"] = row["views"] or ()
            yield Study.from_row(row, split=shard.split)


def load_plan(folder: Path) -> Plan | None:
    """The plan an earlier run made here; None where there is none, or where it was killed while making it."""
    try:
        tree = json.loads((folder / PLAN).read_text())
    except FileNotFoundError:
        return None
    return Plan(
        str(folder), tuple(Shard(**s) for s in tree["shards"]), tree["split_by"], tree["patients_in_two_splits"]
    )


def make_plan(folder: Path, studies: Iterable[Study], *, shard_size: int, seed: int) -> Plan:
    """Stream the manifest into shards.

    Raises:
        InputError: two studies with one id, a study without one, or no studies at all.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    seen = _Seen()
    unknown = folder / "unknown.parquet"
    with contextlib.ExitStack() as stack:
        writers = {split: stack.enter_context(_Shards(folder, split, shard_size)) for split in SPLITS}
        # Whether an archive without splits has reports is known only at its end: until then its studies wait aside.
        waiting = write_rows(unknown, seen.pass_known(studies, writers), STUDIES_SCHEMA)
        if not seen.ids:
            raise InputError("the archive lists no studies", next="check source=PATH and data.format")
        if waiting:
            for row in read_rows(unknown):
                writers[seen.split_of(row["subject_id"] or row["study_id"], seed)].write(row)
    unknown.unlink(missing_ok=True)
    shards = tuple(shard for split in SPLITS for shard in writers[split].done)
    split_by = "archive" if seen.splits else "patient" if seen.has_reports else "none"
    plan = Plan(str(folder), shards, split_by, len(seen.twice))
    with write_aside(folder / PLAN) as temporary:
        tree = {name: value for name, value in asdict(plan).items() if name != "folder"}
        temporary.write_text(json.dumps(tree, indent=1) + "\n")
    return plan


class _Seen:
    """What has to be remembered of an archive: its ids (as hashes), and the split of each patient."""

    def __init__(self) -> None:
        self.ids: set[int] = set()
        self.splits: dict[int, str] = {}
        self.twice: set[int] = set()
        self.has_reports = False

    def pass_known(self, studies: Iterable[Study], writers: dict[str, _Shards]) -> Iterator[dict[str, Any]]:
        """Write the studies whose split is known; yield the rows of the others."""
        for study in studies:
            if not study.study_id:
                raise InputError("the archive has a study without an id")
            # 64 bits: among a million studies two ids collide by chance once in 40 million archives
            if (key := hash(study.study_id)) in self.ids:
                raise InputError(
                    f"two studies have the id {study.study_id!r}",
                    cause="rows of one study must follow one another, and ids must not repeat",
                    next="merge or rename them in the archive's table",
                )
            self.ids.add(key)
            self.has_reports = self.has_reports or bool(study.report or study.findings or study.impression)
            if study.split:
                patient = hash(study.subject_id or study.study_id)
                if self.splits.setdefault(patient, study.split) != study.split:
                    self.twice.add(patient)
                writers[study.split].write(study.to_row())
            else:
                yield study.to_row()

    def split_of(self, patient: str, seed: int) -> str:
        """The split of a patient the archive does not place."""
        if (known := self.splits.get(hash(patient))) is not None:
            return known
        if not self.has_reports:
            return "test"
        digest = hashlib.blake2b(f"{seed}:{patient}".encode(), digest_size=8).digest()
        place = int.from_bytes(digest) / 2**64
        return next(split for split, share in SHARES if place < share)


class _Shards:
    """Writes the rows of one split to a file per `size` of them."""

    def __init__(self, folder: Path, split: str, size: int):
        self.folder, self.split, self.size = folder, split, size
        self.done: list[Shard] = []
        self._file = contextlib.ExitStack()
        self._writer: RowWriter | None = None

    def write(self, row: dict[str, Any]) -> None:
        if self._writer is None:
            path = self.folder / f"{Shard(self.split, len(self.done), 0).name}.parquet"
            self._writer = self._file.enter_context(
                RowWriter(self._file.enter_context(write_aside(path)), STUDIES_SCHEMA)
            )
        self._writer.write(row)
        if self._writer.rows >= self.size:
            self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._file.close()
            self.done.append(Shard(self.split, len(self.done), self._writer.rows))
            self._writer = None

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        if kind is None:
            self._close()
        else:
            self._file.__exit__(kind, *error)
