"""R2Gen's annotation.json: IU X-Ray with an entry per study, MIMIC-CXR with an entry per image.

    {"train": [{"id", "report", "image_path": ["CXR1_IM-0001/0.png", …]}, …], "val": […], "test": […]}

MIMIC-CXR entries carry `study_id` and `subject_id`, and those of one study become one study with several views: their
report is the same text. The file is streamed; for MIMIC-CXR, memory holds the image paths of a split (60 MB for all).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from megpt.config import DataConfig
from megpt.data.ids import MAX_FILMS, digest, scratch
from megpt.data.sources.base import ImageFolder, Source
from megpt.data.sources.json_stream import json_items, json_keys
from megpt.data.sources.reading import list_of, text_of
from megpt.errors import InputError
from megpt.places import place
from megpt.study import SPLITS, Study

ANNOTATION = "annotation.json"


class R2GenSource(Source):
    """Studies in the order train, val, test."""

    format = "r2gen"
    about = "annotation.json of R2Gen (IU X-Ray or MIMIC-CXR) beside images/"

    def __init__(self, root: Path, data: DataConfig):
        super().__init__(root, data)
        self.annotation = place(data.annotations) if data.annotations else root / ANNOTATION if root.is_dir() else root
        if not self.annotation.is_file():
            raise InputError(f"no annotation at {self.annotation}", next="set data.annotations=PATH")
        self._images = ImageFolder(self.folder, ("images", "files"), data.roots)

    @classmethod
    def detect(cls, path: Path, data: DataConfig) -> bool:
        annotation = place(data.annotations) if data.annotations else path / ANNOTATION if path.is_dir() else path
        if annotation.suffix != ".json" or not annotation.is_file():
            return False
        keys = json_keys(annotation, 1)
        return bool(keys) and keys[0] in SPLITS

    def tables(self) -> Iterable[Path]:
        return [self.annotation]

    def studies(self) -> Iterator[Study]:
        for split in SPLITS:
            first = next(self._entries(split), None)
            if first is not None and "study_id" in first:
                yield from self._grouped(split)
            else:
                yield from (self._study(entry, split) for entry in self._entries(split))

    def _entries(self, split: str) -> Iterator[dict[str, Any]]:
        for number, entry in enumerate(json_items(self.annotation, f"{split}.item")):
            if not isinstance(entry, dict):
                raise InputError(f"{self.annotation}: entry {number} of {split!r} is not an object")
            if not text_of(entry, "id", self.annotation):
                raise InputError(f"{self.annotation}: entry {number} of {split!r} has no 'id'")
            yield entry

    def _study(self, entry: dict[str, Any], split: str) -> Study:
        study_id = text_of(entry, "id", self.annotation) or ""
        report = text_of(entry, "report", self.annotation)
        paths = list_of(entry, "image_path", self.annotation)
        # IU X-Ray ids are PATIENT_IMAGE: CXR2384_IM-0942
        subject = text_of(entry, "subject_id", self.annotation) or study_id.partition("_")[0]
        sections: dict[str, Any] = {
            name: text_of(entry, name, self.annotation) for name in ("indication", "comparison", "technique")
        }
        views = self._images.views(study_id, paths)
        return Study(study_id, subject, views, report=report, findings=report, split=split, **sections)

    def _grouped(self, split: str) -> Iterator[Study]:
        """One study per study_id: a first pass collects its paths, on disk, and a second one reads its report."""
        with contextlib.closing(scratch("CREATE TABLE films (study BLOB, number INT, paths TEXT)")) as db:
            for number, entry in enumerate(self._entries(split)):
                paths = json.dumps(list_of(entry, "image_path", self.annotation))
                db.execute("INSERT INTO films VALUES (?, ?, ?)", (digest(self._study_id(entry)), number, paths))
            db.execute("CREATE INDEX by_study ON films (study, number)")
            for number, entry in enumerate(self._entries(split)):
                study_id = self._study_id(entry)
                found = db.execute(
                    "SELECT number, paths FROM films WHERE study = ? ORDER BY number LIMIT ?",
                    (digest(study_id), MAX_FILMS + 1),
                ).fetchall()
                if found[0][0] == number:
                    films = [path for _, paths in found for path in json.loads(paths)]
                    yield self._study({**entry, "id": study_id, "image_path": films}, split)

    def _study_id(self, entry: dict[str, Any]) -> str:
        study_id = text_of(entry, "study_id", self.annotation)
        if not study_id:
            raise InputError(f"{self.annotation}: entry {entry['id']!r} has no 'study_id'")
        return study_id
