"""Finding the films that a list of studies names, where the same list is used with more than one image tree."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from megpt.data.sources.base import Inside
from megpt.data.sources.folder import FILM_SUFFIXES
from megpt.study import View


class ImageFolder:
    """The folder that a list's image paths are relative to.

    IU X-Ray comes in two namings: R2Gen's `CXR7_IM-2263/0.png`, and Open-i's own `CXR7_IM-2263-1001.png`, all in one
    folder. A study whose folder is absent takes its films by the second.

    Args:
        root: the archive.
        candidates: folders inside the root where images may lie, the likeliest first; "" is the root itself.
    """

    def __init__(self, root: Path, candidates: Sequence[str]):
        self.root = root
        self.base = next((name for name in candidates if (root / name).is_dir()), "")
        self._inside = Inside(root)

    def views(self, study_id: str, paths: Sequence[str], positions: Sequence[str] = ()) -> tuple[View, ...]:
        """The views of a study; one whose path leads out of the archive has no uri."""
        if paths and self._by_study and not (self._folder / study_id).is_dir():
            original = self._by_study.get(study_id)
            if original and not any(self._exists(path) for path in paths):
                return tuple(View(Path(name).stem, uri=self._resolve(name)) for name in original)
        places = [*positions, *[""] * len(paths)]
        return tuple(View(path, place, uri=self._resolve(path)) for path, place in zip(paths, places, strict=False))

    def _resolve(self, path: str) -> str | None:
        return self._inside.resolve(f"{self.base}/{path}" if self.base and not path.startswith("/") else path)

    def _exists(self, path: str) -> bool:
        uri = self._resolve(path)
        return uri is not None and os.path.exists(uri)  # noqa: PTH110

    @property
    def _folder(self) -> Path:
        return self.root / self.base

    @cached_property
    def _by_study(self) -> dict[str, list[str]]:
        """Open-i's names by study id; {} where images lie in folders."""
        found = defaultdict(list)
        with os.scandir(self._folder) as entries:
            for entry in entries:
                stem, _, rest = entry.name.rpartition("-")
                if stem and Path(rest).suffix.lower() in FILM_SUFFIXES and stem.startswith("CXR"):
                    found[stem].append(entry.name)
        return {study_id: sorted(names) for study_id, names in found.items()}
