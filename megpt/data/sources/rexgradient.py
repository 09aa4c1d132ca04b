"""ReXGradient-160K: a JSON of studies a split, beside deid_png/.

metadata/train_metadata_view_position.json:
    {"<id>": {"StudyInstanceUid", "PatientID", "ImagePath": ["../deid_png/…"], "ImageViewPosition": ["PA", …],
              "Indication", "Comparison", "Findings", "Impression", …}, …}

Where a split has no such file, its train_metadata.json is read: the same without the views.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from megpt.config import DataConfig
from megpt.data.sources.columns import split_of_path, text_cell
from megpt.data.sources.json_stream import json_entries
from megpt.data.sources.reading import fold, list_of, text_of
from megpt.data.sources.rows import FilmRow, TabularSource
from megpt.errors import InputError
from megpt.places import is_dir, place

PATTERN, WITHOUT_VIEWS = "*_metadata_view_position.json", "*_metadata.json"
FOLDERS = ("", "images", "metadata", "data", "data/images")


class RexgradientSource(TabularSource):
    """One study per key, in the order train, valid, test."""

    format = "rexgradient"
    about = "ReXGradient-160K: metadata/train_metadata_view_position.json beside deid_png/"

    @classmethod
    def detect(cls, path: Path, data: DataConfig) -> bool:
        return bool(_files(path, data)) and not path.name.endswith((".jsonl", ".csv"))

    def tables(self) -> Iterable[Path]:
        found = _files(self.root, self.data)
        if not found:
            raise InputError(f"no {PATTERN} in {self.root} or its metadata/", next="set data.annotations=PATH")
        return found

    def film_rows(self) -> Iterator[FilmRow]:
        self.rule = "a study per entry"
        for table in self.tables():
            for name, key, entry in json_entries(table):
                yield from self._rows_of(table, name, key, entry)

    def _rows_of(self, table: Path, name: str, key: str, entry: dict[str, Any]) -> Iterator[FilmRow]:
        study_id = key or text_of(entry, "id", table) or text_of(entry, "StudyInstanceUid", table)
        if not study_id:
            raise InputError(f"{table}: {name} has no id", next="it needs a key, 'id' or 'StudyInstanceUid'")
        paths = list_of(entry, "ImagePath", table)
        positions = [text_cell(position) or "" for position in entry.get("ImageViewPosition") or ()]
        for path, position in zip(paths or [""], [*positions, *[""] * (len(paths) + 1)], strict=False):
            inside = path.replace("\\", "/").removeprefix("../")
            yield FilmRow(
                study_id,
                f"{self._base}/{inside}".lstrip("/") if inside else "",
                text_of(entry, "PatientID", table),
                position,
                split_of_path(table.name),
                findings=fold(text_cell(text_of(entry, "Findings", table))),
                impression=fold(text_cell(text_of(entry, "Impression", table))),
                where=f"{table}, {name}",
                image_id=inside.rpartition("/")[2],
                indication=fold(text_cell(text_of(entry, "Indication", table))),
                comparison=fold(text_cell(text_of(entry, "Comparison", table))),
                technique=fold(text_cell(text_of(entry, "Technique", table))),
            )

    @cached_property
    def _base(self) -> str:
        return next((name for name in FOLDERS if is_dir(self.folder / name / "deid_png")), "")


def _files(path: Path, data: DataConfig) -> list[Path]:
    place_of = place(data.annotations) if data.annotations else path
    if place_of.is_file():
        found = [place_of] if place_of.match(PATTERN) or place_of.match(WITHOUT_VIEWS) else []
    else:
        found = _of_splits(place_of) or _of_splits(place_of / "metadata")
    order = ("train", "val", "test", "")
    return sorted(found, key=lambda file: order.index(split_of_path(file.name)))


def _of_splits(folder: Path) -> list[Path]:
    """One file a split. The name without views is a common one: it counts beside films of this archive only."""
    found = {split_of_path(file.name): file for file in sorted(folder.glob(PATTERN))}
    if any(is_dir(root / name / "deid_png") for root in (folder, folder.parent) for name in FOLDERS):
        for file in sorted(folder.glob(WITHOUT_VIEWS)):
            found.setdefault(split_of_path(file.name), file)
    return list(found.values())
