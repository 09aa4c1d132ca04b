"""IU X-Ray as on Kaggle: indiana_reports.csv, indiana_projections.csv, images/images_normalized/*.png."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from megpt.config import DataConfig
from megpt.data.sources.base import Source
from megpt.data.sources.reading import csv_rows, fold, join
from megpt.errors import InputError
from megpt.study import Study

REPORTS, PROJECTIONS = "indiana_reports.csv", "indiana_projections.csv"
IMAGES = ("images/images_normalized", "images_normalized", "images", "")


class IuKaggleSource(Source):
    """One study per `uid`; this release has no splits."""

    format = "iu_kaggle"
    about = "IU X-Ray as on Kaggle: indiana_reports.csv and indiana_projections.csv with images/images_normalized/"

    def __init__(self, root: Path, data: DataConfig):
        super().__init__(root, data)
        for name in (REPORTS, PROJECTIONS):
            if not (root / name).is_file():
                raise InputError(f"no table at {root / name}", next="set source to the folder that holds both tables")
        self._base = next(name for name in IMAGES if (root / name).is_dir())

    @classmethod
    def detect(cls, path: Path, data: DataConfig) -> bool:
        return (path / REPORTS).is_file() and (path / PROJECTIONS).is_file()

    def tables(self) -> Iterable[Path]:
        return [self.root / REPORTS, self.root / PROJECTIONS]

    def studies(self) -> Iterator[Study]:
        films = defaultdict(list)
        for _, row in csv_rows(self.root / PROJECTIONS, ("uid", "filename", "projection")):
            films[row["uid"]].append((row["filename"], row["projection"].upper()))
        for line, row in csv_rows(self.root / REPORTS, ("uid", "findings", "impression")):
            uid = row["uid"].strip()
            if not uid:
                raise InputError(f"{self.root / REPORTS} has an empty uid", where=f"column 'uid', line {line}")
            views = (
                self.view(f"{self._base}/{name}".lstrip("/"), image_id=name, position=projection)
                for name, projection in films.get(uid, ())
            )
            findings, impression = fold(row["findings"]), fold(row["impression"])
            sections: dict[str, Any] = {name: fold(row.get(name)) for name in ("indication", "comparison")}
            report = join(findings, impression)
            yield Study(uid, uid, tuple(views), report, findings, impression, split="", **sections)
