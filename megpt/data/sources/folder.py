"""Films in folders without tables: one study per folder of films, or per film in a folder that holds many patients'.

    p1/s1/a.png, b.png, report.txt     one study of two films, with its report
    train/0001.png, 0001.txt           a study per film: the folder is called train, images, …, holds over 16 films, or
                                       each film has its own .txt

A film is known by its first bytes, not by its suffix. Reports are NAME.txt beside NAME.png, report.txt (or the only
.txt) beside a study's films, and s1.txt beside the folder s1. Nothing else is read, and all of it is counted.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megpt.config import DataConfig
from megpt.data.positions import side_of_name
from megpt.data.sources.base import FILM_SUFFIXES, Source
from megpt.data.sources.columns import SPLIT_NAMES, SYNONYMS, plain
from megpt.data.sources.reading import SectionedReport, decode_text, parse_report
from megpt.errors import InputError
from megpt.films.decode import HEADER_BYTES, film_type
from megpt.places import head_of, is_dir, is_file, place, size_of, walk
from megpt.progress import log
from megpt.study import CHEXPERT, Study, View, utf8_name

# No chest examination has more films than this; a folder with more holds films of many patients.
MAX_FILMS_PER_STUDY = 16
# Folders that hold films of many patients, however few these are: what they are called says nothing of a patient.
_HEAP = re.compile(
    r"(?:(?:stage[-_ ]?\d[-_ ]?)?(?:train|training|val|valid|validate|validation|dev|test|testing)"
    r"|images?|imgs?|films?|pictures?|pngs?|jpe?gs?|jpg|dicoms?|dcms?|tiffs?"
    r"|data|dataset|raw|all|files|x[-_ ]?rays?|cxrs?|scans"
    r"|normal|abnormal|healthy|pneumonia|(?:viral|bacterial)[-_ ]pneumonia|covid(?:[-_ ]?19)?|tuberculosis|tb"
    r"|lung[-_ ]opacity|" + "|".join(name.lower().replace(" ", "[-_ ]") for name in CHEXPERT) + r")"
    r"(?:[-_ ](?:images?|imgs?|films?|pngs?|jpe?gs?|jpg|dicoms?|dcms?|set|data|split|normalized))*(?:[-_ ]?\d{1,4})?"
)
TABLES = ("csv", "tsv", "json", "jsonl", "ndjson", "parquet", "xlsx", "xls", "feather", "arrow")
ARCHIVES = ("zip", "tar", "tgz", "tar.gz", "tar.bz2", "tar.xz", "7z", "rar")
_UNREAD = re.compile(rf"\.(?:(?:{'|'.join(TABLES)})(?:\.gz)?|{'|'.join(map(re.escape, ARCHIVES))})$", re.IGNORECASE)
MAX_REPORT_BYTES = 1 << 20
# Texts that come with an archive and report nothing.
_NO_REPORT = re.compile(r"(?:readme|licen[cs]e|index|sha256sums|md5sums?|changelog|version)\b.*", re.IGNORECASE)
NAMED = 3
_CLASSES = {**SYNONYMS, "normal": "No Finding", "healthy": "No Finding"}


class FolderSource(Source):
    """A tree of films. A study's id is the path of its folder, or of its film without suffix in a folder with many.

    Trees go patient/study/film, so the subject is the folder above the study's, or the study's id if there is none. A
    folder called train, val or test is a split.
    """

    format = "folder"
    about = "a tree of films (and .txt reports): one study per folder, or per film in folders called train, images, …"

    def __init__(self, root: Path, data: DataConfig):
        super().__init__(root, data)
        self._unread: list[str] = []
        self._refused: list[str] = []

    @classmethod
    def detect(cls, path: Path, data: DataConfig) -> bool:
        return path.is_dir() or is_film(path)

    def check(self, *, reports: int, labels: int) -> None:
        """Refuse films without reports or labels beside a table or archive that nobody read.

        Raises:
            InputError: `data.format` is auto, and there is such a file.
        """
        if reports or labels or self.data.format != "auto" or not self._unread:
            return
        others = len(self._unread) - NAMED
        raise InputError(
            f"{', '.join(self._unread[:NAMED])}{f' and {others} more' if others > 0 else ''}: nothing was read from it",
            where=f"{self.root}, read as a plain tree of films, which gave 0 reports and 0 labels",
            cause="a table or archive beside the films, in a layout that megpt does not know",
            next="name its columns with data.columns.image=… (docs/data.md), give the table itself as source, "
            "or set data.format=folder to take the films alone",
        )

    def studies(self) -> Iterator[Study]:
        self.ignored.clear()
        self._unread, self._refused, kinds = [], [], Counter[str]()
        if self.root.is_file():
            self.rule = "one film"
            yield self._study(self.root.stem, [self.root.name])
            return
        for folder, names in self._folders():
            relative = os.path.relpath(folder, str(self.root)).replace(os.sep, "/")
            films = sorted(name for name in names if self._looks_like_film(folder, name))
            texts = {name for name in names if name.lower().endswith(".txt")}
            if not films:
                self._count(relative, {*names} - texts)
                # s50414267.txt beside the folder s50414267 is taken with that folder
                self._count(relative, {t for t in texts if not is_dir(f"{folder}/{t[:-4]}")})
                continue
            named = is_heap(relative.rpartition("/")[2]) or _each_has_a_report(films, texts)
            heap = relative == "." or len(films) > MAX_FILMS_PER_STUDY or named
            kinds["film" if heap else "folder"] += 1
            self.rule = "a study per " + " or ".join(sorted(kinds, reverse=True))
            used: set[str] = set()
            yield from self._heap(relative, films, texts, used) if heap else self._one(relative, films, texts, used)
            self._count(relative, {*names} - {*films} - used)
        if self._refused:
            log(
                f"warning: {len(self._refused)} links lead out of the archive and are not followed: "
                f"{', '.join(self._refused[:NAMED])}; allow where they lead with data.roots=[PATH]"
            )

    def _one(self, relative: str, films: list[str], texts: set[str], used: set[str]) -> Iterator[Study]:
        """The study of a folder, with its report."""
        likely = sorted(t for t in texts if t.lower().startswith("report")) or sorted(
            t for t in texts if not _NO_REPORT.fullmatch(t)
        )
        stems = {Path(film).stem for film in films}
        own = [t for t in likely if Path(t).stem in stems]
        report = None
        if len(likely) == 1 or (own and len(own) == len(likely) == len(films) == 1):
            report = self._report(f"{relative}/{likely[0]}")
            used.add(likely[0])
        elif not likely:
            report = self._report(f"{relative}.txt")
        yield self._study(relative, [f"{relative}/{name}" for name in films], relative.rpartition("/")[0], report)

    def _heap(self, relative: str, films: list[str], texts: set[str], used: set[str]) -> Iterator[Study]:
        """A study per film, each with the report of its name."""
        prefix = "" if relative == "." else relative + "/"
        stems = [Path(name).stem if Path(name).suffix.lower() in FILM_SUFFIXES else name for name in films]
        counts = Counter(stems)
        # films with the same stem, such as a.png and a.dcm, keep their suffixes in their ids
        for stem, name in zip(stems, films, strict=True):
            text = next((t for t in (f"{stem}.txt", f"{Path(name).stem}.txt", f"{name}.txt") if t in texts), None)
            report = None
            if text is not None:
                used.add(text)
                report = self._report(prefix + text)
            yield self._study(prefix + (stem if counts[stem] == 1 else name), [prefix + name], report=report)

    def _folders(self) -> Iterator[tuple[str, list[str]]]:
        """(folder, file names), sorted, without hidden ones; links are followed where they stay in allowed roots."""
        visited = {os.path.realpath(str(self.root))}
        for folder, folders, files in walk(self.root):
            kept = []
            for name in sorted(name for name in folders if not name.startswith(".")):
                path = os.path.join(folder, name)  # noqa: PTH118
                if os.path.islink(path):  # noqa: PTH114
                    real = self._inside.real_folder(path)
                    if real is None:
                        self._refused.append(utf8_name(os.path.relpath(path, self.root)))
                        self.ignored["links that lead out of the archive"] += 1
                        continue
                    # a link to a folder that is read anyway, or to one above it, would repeat its studies
                    if real in visited or f"{real}/".startswith(f"{os.path.realpath(self.root)}/"):
                        self.ignored["links to folders of the archive itself"] += 1
                        continue
                    if f"{os.path.realpath(self.root)}/".startswith(f"{real}/"):
                        self.ignored["links to a folder above the archive"] += 1
                        continue
                    visited.add(real)
                kept.append(name)
            folders[:] = kept
            yield folder, [name for name in files if not name.startswith(".")]

    def _looks_like_film(self, folder: str, name: str) -> bool:
        if name.upper() == "DICOMDIR":  # an index of films, in DICOM's own format
            return False
        return Path(name).suffix.lower() in FILM_SUFFIXES or is_film(f"{folder}/{name}")

    def _count(self, relative: str, names: set[str]) -> None:
        """Take note of files that nothing reads."""
        for name in sorted(names):
            suffix = "".join(Path(name).suffixes[-2:]) if name.lower().endswith(".gz") else Path(name).suffix
            self.ignored[f"{utf8_name(suffix.lower())} files" if suffix else "files without a suffix"] += 1
            if _UNREAD.search(name):
                self._unread.append(utf8_name(name if relative == "." else f"{relative}/{name}"))

    def _report(self, relative: str) -> SectionedReport | None:
        uri = self._inside.resolve(relative)
        if uri is None or not is_file(uri):
            return None
        if size_of(uri) > MAX_REPORT_BYTES:
            raise InputError(f"{utf8_name(uri)} is too large to be a report")
        return parse_report(decode_text(place(uri).read_bytes(), self.form))

    def _study(
        self, study_id: str, films: list[str], subject: str = "", report: SectionedReport | None = None
    ) -> Study:
        views = tuple(self._view(film) for film in films)
        above = films[0].lower().split("/")[:-1]
        split = next((SPLIT_NAMES[name] for name in above if SPLIT_NAMES.get(name)), "")
        # a folder named after an observation holds films that show it, as in Hugging Face's ImageFolder
        shown = _CLASSES.get(plain(above[-1])) if above else None
        labels = {shown: 1} if shown else None
        name, patient = utf8_name(study_id), utf8_name(subject or study_id)
        report = report or SectionedReport(None, None, None)
        sections: dict[str, Any] = {s: getattr(report, s) for s in ("indication", "comparison", "technique")}
        parts = (report.text, report.findings, report.impression)
        return Study(name, patient, views, *parts, labels, split=split, **sections)

    def _view(self, film: str) -> View:
        return self.view(film, image_id=utf8_name(film), position=side_of_name(Path(film).stem).upper())


def _each_has_a_report(films: list[str], texts: set[str]) -> bool:
    """Whether several films lie beside a report each, so that they are not one study's."""
    return len(films) > 1 and len(texts) > 1 and all(f"{Path(film).stem}.txt" in texts for film in films)


def is_heap(name: str) -> bool:
    """Whether a folder's name says that it holds films of many patients."""
    return _HEAP.fullmatch(name.lower()) is not None


def is_film(path: str | Path) -> bool:
    """Whether the file's first bytes are those of a film of a kind that is read."""
    try:
        return is_file(path) and film_type(head_of(path, HEADER_BYTES)) is not None
    except OSError:
        return False
