"""A job's failed.parquet as an archive: the same studies, read again from where the job read them.

The file holds ids, paths and reasons, and neither report text nor films. So the source that it names is opened again,
and gives those of its studies that the file lists, as they are now: with their text, and with films that have been
repaired since.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from megpt.config import DataConfig
from megpt.data.parquet import read_rows
from megpt.data.sources.base import Source
from megpt.data.sources.table import has_columns
from megpt.data.studies import Listed
from megpt.errors import InputError
from megpt.films.remote import scheme_of
from megpt.places import place, take_listing
from megpt.progress import log
from megpt.study import Study


class FailedSource(Source):
    """Studies of another source, chosen by id."""

    format = "failed"
    about = "failed.parquet of an earlier job: its studies, read again from the source that it names"

    def __init__(self, root: Path, data: DataConfig):
        super().__init__(root, data.model_copy(update={"options": {}}))  # they are those of the source that it names
        self._ids, origins = set[str](), set[tuple[str, str]]()
        for row in read_rows(root, ["study_id", "source", "format"]):
            self._ids.add(str(row["study_id"]))
            origins.add((str(row["source"]), str(row["format"])))
        self._inner = _open(origins, root, data)

    @classmethod
    def detect(cls, path: Path, data: DataConfig) -> bool:
        return path.suffix == ".parquet" and path.is_file() and has_columns(path, "study_id", "error", "source")

    @property
    def origin(self) -> tuple[str, str]:
        return self._inner.origin if self._inner else super().origin

    def tables(self) -> Iterable[Path]:
        return [self.root, *(self._inner.tables() if self._inner else ())]

    def studies(self) -> Iterator[Study]:
        left = set(self._ids)
        for study in self._inner.studies() if self._inner else ():
            if study.study_id in self._ids:
                left.discard(study.study_id)
                yield study
        self._name_missing(left)

    def listed(self) -> Iterator[Listed]:
        left = set(self._ids)
        for listed in self._inner.listed() if self._inner else ():
            if listed.study.study_id in self._ids:
                left.discard(listed.study.study_id)
                yield listed
        self._name_missing(left)

    def _name_missing(self, left: set[str]) -> None:
        if left:
            names = ", ".join(sorted(left)[:5])
            log(f"warning: {len(left)} studies of {self.root} are not in {self.origin[0]} any more: {names}")


def _open(origins: set[tuple[str, str]], root: Path, data: DataConfig) -> Source | None:
    """The source that the file names; None if it lists no study."""
    from megpt.data.sources import load_format

    if not origins:
        return None
    if len(origins) > 1:
        raise InputError(
            f"{root} names {len(origins)} sources",
            cause="it was put together from the files of several jobs",
            next="use them one by one",
        )
    ((path, name),) = origins
    if not scheme_of(path) and not place(path).exists():
        raise InputError(
            f"the source of {root} is not there: {path}",
            cause="failed.parquet lists ids and reasons; films and reports are read from the source again",
            next=f"make {path} available, or set source=PATH to where it is now and ids={root}",
        )
    if not scheme_of(path):
        take_listing(place(path))
    source = load_format(name)(path if scheme_of(path) else place(path), data)
    # The file lies in the output of the job that failed, which holds the key of its ids.
    source.keep_in(root.absolute().parent, write=False)
    return source
