"""Films in folders, no tables: one study per folder that holds films, or per film where a folder is merely a heap."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from megpt.config import DataConfig
from megpt.data.sources.base import Source
from megpt.films.decode import HEADER_BYTES, kind_of
from megpt.study import Study

FILM_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".dcm", ".dicom", ".dic", ".ima"})
# No examination of a chest has more films than this; a folder with more holds films of many patients.
MAX_FILMS_PER_STUDY = 16


class FolderSource(Source):
    """A tree of films. A study's id is its folder's path (a heap's film: its own, without suffix).

    Its subject is the folder that holds the study's, since trees go patient/study/film; without one, the study's id.
    """

    format = "folder"
    about = "a tree of JPEG, PNG or DICOM films: one study per folder (per film where a folder holds more than 16)"

    @classmethod
    def detect(cls, path: Path, data: DataConfig) -> bool:
        return path.is_dir() or is_film(path)

    def studies(self) -> Iterator[Study]:
        if self.root.is_file():
            yield self._study(self.root.stem, [self.root.name])
            return
        for folder, names in self._folders():
            films = sorted(name for name in names if self._looks_like_film(folder, name))
            relative = os.path.relpath(folder, self.root).replace(os.sep, "/")
            if not films:
                continue
            if relative == "." or len(films) > MAX_FILMS_PER_STUDY:
                prefix = "" if relative == "." else relative + "/"
                stems = [Path(name).stem if Path(name).suffix.lower() in FILM_SUFFIXES else name for name in films]
                counts = Counter(stems)
                # a.png beside a.dcm: two films of one name keep their suffixes as ids
                for stem, name in zip(stems, films, strict=True):
                    yield self._study(prefix + (stem if counts[stem] == 1 else name), [prefix + name])
            else:
                subject = relative.rpartition("/")[0]
                yield self._study(relative, [f"{relative}/{name}" for name in films], subject)

    def _folders(self) -> Iterator[tuple[str, list[str]]]:
        """(folder, file names), sorted, hidden ones left out; links to folders are not followed."""
        for folder, folders, files in os.walk(self.root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield folder, [name for name in files if not name.startswith(".")]

    def _looks_like_film(self, folder: str, name: str) -> bool:
        suffix = Path(name).suffix.lower()
        if suffix in FILM_SUFFIXES:
            return True
        # DICOM files often have no suffix, or end in the last number of an identifier (1.2.840.113619)
        return (not suffix or suffix[1:].isdigit()) and is_film(Path(folder, name))

    def _study(self, study_id: str, films: list[str], subject: str = "") -> Study:
        return Study(study_id, subject or study_id, tuple(self.view(film) for film in films), split="")


def is_film(path: Path) -> bool:
    """Whether the file's first bytes are those of a JPEG, PNG or DICOM file."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return kind_of(file.read(HEADER_BYTES)) is not None
    except OSError:
        return False
