"""ReXrank's exchange format: studies as a JSON list, or as an object by study id, beside their images.

{"CXR1_IM-1": {"image_path": […], "key_image_path", "frontal_lateral": […], "section_findings",
               "section_impression", "report", "context", "split", "subject_id"}, …}
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from megpt.config import DataConfig
from megpt.data.sources.base import ImageFolder, Source, split_name
from megpt.data.sources.json_stream import json_entries
from megpt.data.sources.reading import list_of, text_of
from megpt.errors import InputError
from megpt.places import place
from megpt.study import Study

# Fields that no other list of studies has.
OWN = {"key_image_path", "frontal_lateral", "context", "section_findings", "section_impression"}


class RexrankSource(Source):
    """One file, or all ReXRank*.json of a folder, in the order of their names."""

    format = "rexrank"
    about = "ReXrank's exchange format: ReXRank*.json (a list of studies, or an object by study id) beside images/"

    @classmethod
    def detect(cls, path: Path, data: DataConfig) -> bool:
        return any(_is_rexrank(file) for file in _files(path, data))

    def __init__(self, root: Path, data: DataConfig):
        super().__init__(root, data)
        if not _files(root, data):
            raise InputError(f"no ReXRank*.json in {root}", next="give the file itself, or set data.annotations=PATH")
        self._images = ImageFolder(self.folder, ("images", "files"), data.roots)

    def tables(self) -> Iterable[Path]:
        return _files(self.root, self.data)

    def studies(self) -> Iterator[Study]:
        for path in self.tables():
            for name, key, entry in json_entries(path):
                yield self._study(path, name, key, entry)

    def _study(self, path: Path, name: str, key: str, entry: dict[str, Any]) -> Study:
        images = list_of(entry, "image_path", path)
        study_id = key or text_of(entry, "study_id", path) or text_of(entry, "id", path) or _folder_of(images)
        if not study_id:
            raise InputError(
                f"{path}: {name} has no study id", cause="it has neither study_id, id, nor a folder of images"
            )
        positions = [text.upper() for text in list_of(entry, "frontal_lateral", path)]
        subject = text_of(entry, "subject_id", path) or study_id.partition("_")[0]
        return Study(
            study_id,
            subject,
            self._images.views(study_id, images, positions),
            text_of(entry, "report", path),
            text_of(entry, "section_findings", path),
            text_of(entry, "section_impression", path),
            split=split_name(text_of(entry, "split", path), where=f"{path}, entry {study_id}"),
        )


def _folder_of(images: list[str]) -> str:
    """The id of a study that has none: the folder of its images, or its only image."""
    folders = {str(PurePosixPath(image).parent) for image in images}
    if len(folders) == 1 and folders != {"."}:
        return folders.pop()
    return PurePosixPath(images[0]).stem if len(images) == 1 else ""


def _files(path: Path, data: DataConfig) -> list[Path]:
    if data.annotations:
        return [place(data.annotations)]
    return sorted(p for p in path.glob("*.json") if "rexrank" in p.name.lower()) if path.is_dir() else [path]


def _is_rexrank(path: Path) -> bool:
    if path.suffix != ".json" or not path.is_file():
        return False
    try:
        _, _, entry = next(json_entries(path), ("", "", {}))
    except InputError:
        return False
    return "image_path" in entry and bool(OWN & entry.keys())
