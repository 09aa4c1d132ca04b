"""WebDataset shards: tar files whose members share a key; films are read where they lie, nothing is unpacked.

    train-000000.tar:  000000.png  000000.txt  000000.json  000001.png …     (or 000000.frontal.png, 000000.lateral.png)

Members of one key follow one another and make a study. `.txt` (or .report, .caption) is its report; a .json may hold
report, findings, impression, split, patient and labels. Only regular members are read, none is written anywhere, and
texts are bounded.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from megpt.config import DataConfig
from megpt.data.members import MAX_MEMBER_BYTES, tar_uri
from megpt.data.positions import side_of_name
from megpt.data.sources.base import FILM_SUFFIXES, near_folders
from megpt.data.sources.columns import find_columns, id_cell, label_columns, observations, split_name, split_of_path
from megpt.data.sources.reading import decode_text, parse_report
from megpt.data.sources.rows import FilmRow, TabularSource
from megpt.errors import InputError
from megpt.films.decode import HEADER_BYTES, film_type

TEXTS = frozenset({"txt", "report", "caption", "text"})
MAX_TEXT_BYTES = 1 << 20
# A tar of other things is recognised as such after this many members.
HEAD_MEMBERS = 64


@dataclass
class _Sample:
    films: list[tuple[str, int, int]] = field(default_factory=list)
    """(name, offset, size)"""
    text: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)


class WebDatasetSource(TabularSource):
    """One study per key, in the order of the shards."""

    format = "webdataset"
    about = "WebDataset: *.tar whose members are KEY.png|jpg|dcm with KEY.txt or KEY.json"

    @classmethod
    def detect(cls, path: Path, data: DataConfig) -> bool:
        shards = _shards(path)
        return bool(shards) and _has_samples(shards[0])

    def tables(self) -> Iterable[Path]:
        shards = _shards(self.root)
        if not shards:
            raise InputError(f"no .tar in {self.root}", next="give the folder of the shards, or one shard")
        for shard in shards:
            if self._inside.resolve(shard.relative_to(self.folder).as_posix()) is None:
                raise InputError(
                    f"{shard} is a link that leads out of the archive", next="set data.roots to where it may lead"
                )
        return shards

    def film_rows(self) -> Iterator[FilmRow]:
        self.rule = "a study per key"
        shards = list(self.tables())
        for shard in shards:
            relative = shard.relative_to(self.folder).with_suffix("").as_posix()
            split = split_of_path(relative)
            for key, sample in self._samples(shard):
                yield from self._rows_of(shard, key if len(shards) == 1 else f"{relative}/{key}", sample, split)

    def _samples(self, shard: Path) -> Iterator[tuple[str, _Sample]]:
        """(key, films, texts) of each run of members with one key."""
        members = _members(shard, self.ignored)
        for key, group in groupby(members, key=lambda found: _key(found[1].name)[0]):
            sample = _Sample()
            for tar, member in group:
                self._take(shard, tar, member, sample)
            if sample.films:
                yield key, sample
            else:
                self.ignored["keys without a film"] += 1

    def _take(self, shard: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, sample: _Sample) -> None:
        extension = _key(member.name)[1].rpartition(".")[2].lower()
        if extension in TEXTS or extension == "json":
            if member.size > MAX_TEXT_BYTES:
                raise InputError(f"{shard} holds a text of {member.size} bytes", where=repr(member.name))
            raw = _read(tar, member, member.size)
            if extension != "json":
                sample.text = decode_text(raw, self.form)
                return
            try:
                fields = json.loads(raw)
            except (ValueError, RecursionError):
                raise InputError(f"{shard} holds a .json that is not JSON", where=repr(member.name)) from None
            sample.fields = fields if isinstance(fields, dict) else {}
        elif f".{extension}" in FILM_SUFFIXES or film_type(_read(tar, member, HEADER_BYTES)):
            if member.size > MAX_MEMBER_BYTES:
                self.ignored["films above 1 GiB"] += 1
            else:
                sample.films.append((member.name, member.offset_data, member.size))
        else:
            self.ignored[f"members .{extension}"] += 1

    def _rows_of(self, shard: Path, study_id: str, sample: _Sample, split: str) -> Iterator[FilmRow]:
        where = f"{shard}, key {study_id.rpartition('/')[2]}"
        columns = find_columns(sample.fields)
        parts = parse_report(sample.text) if sample.text else None
        subject = None if columns.subject is None else id_cell(sample.fields[columns.subject], where=where)
        split = split_name(columns.text(sample.fields, "split"), where=where) or split
        labels = observations(sample.fields, label_columns(sample.fields), where=where)
        for name, offset, size in sample.films:
            yield FilmRow(
                study_id,
                tar_uri(shard, offset, size),
                subject,
                columns.text(sample.fields, "position") or side_of_name(name).upper(),
                split,
                parts.text if parts else columns.text(sample.fields, "report"),
                columns.text(sample.fields, "findings") or (parts.findings if parts else None),
                columns.text(sample.fields, "impression") or (parts.impression if parts else None),
                labels,
                where,
                image_id=name,
                member=True,
            )


def _key(name: str) -> tuple[str, str]:
    """(key, extensions) of a member: everything before the first dot of its last part, and what is after it."""
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return f"{folder}{slash}{stem}".removeprefix("./"), extension


def _members(shard: Path, ignored: Any) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The regular members, streamed; links, devices and hidden files are not read."""
    try:
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore  # tarfile keeps every header it has seen
                last = member.name.rpartition("/")[2]
                if member.name.startswith("/") or ".." in member.name.split("/"):
                    ignored["members whose path leads out"] += 1
                elif member.isreg() and not member.issparse() and not last.startswith("."):
                    yield tar, member
                elif not member.isdir():
                    ignored["links and devices in a tar"] += 1
    except (tarfile.TarError, EOFError) as error:
        raise InputError(
            f"{shard} cannot be read as a tar",
            cause=f"{type(error).__name__}: compressed, damaged or cut off",
            next="unpack a .tar.gz to .tar, or copy the shard again",
        ) from None
    except OSError as error:
        raise InputError(f"{shard} cannot be read", cause=type(error).__name__) from None


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo, size: int) -> bytes:
    file = tar.extractfile(member)
    return b"" if file is None else file.read(size)


def _has_samples(shard: Path) -> bool:
    """Whether the first members are films as WebDataset keeps them: pictures, or DICOM beside texts of the same keys.

    A tar of DICOM files alone is an export, whose studies its headers tell.
    """
    dicom, texts = set[str](), set[str]()
    try:
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for _ in range(HEAD_MEMBERS):
                if (member := tar.next()) is None:
                    break
                key, extension = _key(member.name)
                if extension.rpartition(".")[2].lower() in {*TEXTS, "json"}:
                    texts.add(key)
                elif member.isreg() and (kind := film_type(_read(tar, member, HEADER_BYTES))):
                    if kind != "dicom":
                        return True
                    dicom.add(key)
    except (tarfile.TarError, EOFError, OSError):
        pass
    return bool(dicom & texts)


def _shards(path: Path) -> list[Path]:
    """The tars of a folder, or of its sub-folders (train/, val/, …) if it has none."""
    if path.is_file():
        return [path] if path.suffix == ".tar" else []
    if found := sorted(path.glob("*.tar")):
        return found
    return [shard for folder in near_folders(path)[1:] for shard in sorted(folder.glob("*.tar"))]
