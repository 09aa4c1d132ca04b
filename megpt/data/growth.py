"""Every day the same command: what a source holds beyond a job's shard list.

    with Intake(base, choice, output=OUT, failed=ids) as intake, ShardListWriter(folder, size, base) as writer:
        for listed in intake.studies(source.listed()):
            writer.add(listed)
        shards = intake.commit(writer)

A study of the list is done, or will be; it is passed over. A study that is not in the list is new. A study that failed
is listed again with `retry=failed`; one whose films have changed is named, and listed again with `data.changed=redo`.
Listing a study again *supersedes* its earlier row: the list names those rows, and the job takes the study out of the
earlier shard's file before it begins the new shard.

Why each study is there exactly once, whatever is killed when. `_SUCCESS` goes first, so an output that is about to
change is never called finished. The new rows are written to files that the list does not name yet; then the list's
record is replaced by one rename, which names the new rows and the superseded ones at once. A kill before it leaves the
old list, and the next start finds the same studies new. A kill after it leaves the new list, which no longer depends
on `retry`, `ids` or the source: the next start removes what is superseded from the earlier files (each replaced by one
rename), then writes the shards that are left. So a study may be absent for a moment, but never in two files.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from megpt.config import Config
from megpt.data.ids import digest, held_together, read_ids, scratch, unique
from megpt.data.members import is_member
from megpt.data.parquet import read_rows
from megpt.data.shards import ShardList, ShardListWriter
from megpt.data.studies import Listed
from megpt.errors import InputError
from megpt.films.members import from_uri
from megpt.films.remote import scheme_of
from megpt.output import reopen
from megpt.places import stamp

# Looking at a film's size and time waits on the file system, not on the CPU.
LOOKERS, LOOK_AT, AHEAD = 16, 64, 1024
NAMED = 5


@dataclass(frozen=True)
class Choice:
    """Which of a source's studies are wanted."""

    ids: frozenset[str] | None = None
    """These only; None for all."""
    redo: bool = False
    """Whether studies whose films have changed are done again."""
    limit: int | None = None
    """The largest number of studies of the list."""


def choice_of(config: Config) -> Choice:
    """What `ids`, `data.changed` and `limit` ask for.

    Raises:
        InputError: `ids` is not a list of study ids.
    """
    ids = read_ids(config.ids) if config.ids is not None else None
    return Choice(ids, redo=config.data.changed == "redo", limit=config.limit)


class Intake(contextlib.AbstractContextManager["Intake"]):
    """Chooses what a list has to take up from a source, and keeps count.

    Args:
        base: the list of the earlier starts.
        output: the job's folder, whose `_SUCCESS` is removed before the list grows.
        failed: ids of studies that are to be done again.
        whole: whether the source lists all that it holds; else what it does not list is not counted as gone.
    """

    def __init__(
        self,
        base: ShardList | None = None,
        choice: Choice | None = None,
        *,
        output: Path | None = None,
        failed: frozenset[str] = frozenset(),
        whole: bool = True,
    ):
        self.whole = whole
        self.base, self.choice, self.output, self.failed = base, choice or Choice(), output, failed
        self.new = self.again = self.gone = 0
        self.changed: list[str] = []
        self.unknown: set[str] = set(self.choice.ids or ())
        self._superseded: defaultdict[str, list[int]] = defaultdict(list)
        self._known = scratch(
            "CREATE TABLE known (id BLOB PRIMARY KEY, state BLOB, file TEXT, row INT, seen INT) WITHOUT ROWID"
        )
        for row in _rows(base) if base else ():
            self._known.execute("INSERT INTO known VALUES (?, ?, ?, ?, 0)", row)

    @property
    def takes_the_first(self) -> bool:
        """Whether the studies that are wanted are the source's first ones."""
        return self.base is None and self.choice.ids is None

    def studies(self, source: Iterable[Listed], *, where: str | None = None) -> Iterator[Listed]:
        """The studies that the list has to take up, with the state of their films.

        Raises:
            InputError: two studies with one id, a study without an id, or none of the chosen ids in the source.
        """
        room = None if self.choice.limit is None else self.choice.limit - (self.base.studies if self.base else 0)
        seen = 0
        for listed in _with_state(held_together(unique(source, where=where))):
            name = listed.study.study_id
            if self.choice.ids is not None and name not in self.choice.ids:
                continue
            self.unknown.discard(name)
            known = self._known.execute("SELECT state, file, row FROM known WHERE id = ?", (digest(name),)).fetchone()
            if known is None:
                if room is None or self.new < room:
                    self.new += 1
                    yield listed
            else:
                self._known.execute("UPDATE known SET seen = 1 WHERE id = ?", (digest(name),))
                if self._is_wanted_again(name, changed=known[0] != listed.state):
                    self._superseded[known[1]].append(known[2])
                    self.again += 1
                    yield listed
            seen += 1
            if self.choice.limit is not None and seen == self.choice.limit:
                return
        if self.choice.ids is None and self.whole:
            self.gone = self._known.execute("SELECT count(*) FROM known WHERE seen = 0").fetchone()[0]
        elif self.choice.ids is not None and len(self.unknown) == len(self.choice.ids):
            raise InputError(
                f"none of the {len(self.choice.ids)} studies that `ids` names is in the source",
                where=where,
                cause="the ids are of another archive, or written in another way",
                next="compare them with the column study_id of a table that `megpt prepare` made of this source",
            )

    def _is_wanted_again(self, name: str, *, changed: bool) -> bool:
        if name in self.failed:
            return True
        if changed:
            self.changed.append(name)
        return changed and self.choice.redo

    def commit(self, writer: ShardListWriter, **notes: Any) -> ShardList:
        """Make the studies that were added to `writer` part of the list; without any, the list stays as it is."""
        if self.base is not None and not writer.studies:
            return self.base
        if self.output is not None:
            reopen(self.output)
        return writer.finish(superseded=self._superseded, **notes)

    def lines(self) -> list[str]:
        """What was found beside the studies of a first start, for the log."""
        found = []
        if self.base is not None and self.new:
            found.append(f"{self.new} new studies")
        if self.again:
            found.append(f"{self.again} studies are done again")
        if self.changed and not self.choice.redo:
            names = ", ".join(self.changed[:NAMED])
            found.append(
                f"the films of {len(self.changed)} studies have changed: {names}; "
                "they are left as they are (data.changed=redo does them again)"
            )
        if self.gone:
            found.append(f"{self.gone} studies are not in the source any more; what was made of them stays")
        if self.unknown:
            names = ", ".join(sorted(self.unknown)[:NAMED])
            found.append(f"{len(self.unknown)} studies that `ids` names are not in the source: {names}")
        return found

    def __exit__(self, *error: object) -> None:
        self._known.close()


def _rows(base: ShardList) -> Iterator[tuple[bytes, bytes, str, int]]:
    """Id, state, file and row of the studies of a list, without those that are listed again later."""
    for file in base.files():
        skip = set(base.superseded.get(file, ()))
        for number, row in enumerate(read_rows(base.folder / file, ["study_id", "state"])):
            if number not in skip:
                yield digest(row["study_id"]), row["state"], file, number


def _with_state(studies: Iterable[Listed]) -> Iterator[Listed]:
    """The studies with the state of their films."""
    stream = iter(studies)
    with ThreadPoolExecutor(LOOKERS) as pool:
        while some := list(islice(stream, AHEAD)):
            pieces = [some[n : n + LOOK_AT] for n in range(0, len(some), LOOK_AT)]
            yield from chain.from_iterable(pool.map(_look_at, pieces))


def _look_at(studies: Iterable[Listed]) -> list[Listed]:
    return [replace(listed, state=film_state(listed)) for listed in studies]


def film_state(listed: Listed) -> bytes:
    """16 bytes that change with a study's films: their names and, of each file, size and time of change.

    Films inside a table or a tar have the state of that file. So a copy of an archive should keep the times.
    """
    state = hashlib.blake2b(digest_size=16)
    for view in listed.study.views:
        content = hashlib.blake2b(view.data).digest() if view.data is not None else _stamp(view.uri)
        state.update(f"{view.image_id}\0".encode("utf-8", "surrogatepass") + content + b"\0")
    state.update(_stamp(listed.file))
    return state.digest()


def _stamp(path: str | None) -> bytes:
    if path is None or scheme_of(path):  # a server's film is known by its name alone
        return b""
    file = path.partition("#")[0] if is_member(path) else from_uri(path)[0]
    try:
        return stamp(file)
    except (OSError, ValueError):
        return b"missing"
