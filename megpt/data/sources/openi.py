"""IU X-Ray as Open-i ships it: one XML file per report, films as PNG or DICOM.

ecgen-radiology/1.xml … 3999.xml      NLMCXR_png/CXR1_1_IM-0001-3001.png      NLMCXR_dcm/1/1_IM-0001-3001.dcm
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from megpt.config import DataConfig
from megpt.data.sources.base import Source
from megpt.data.sources.reading import fold, join
from megpt.errors import InputError
from megpt.places import exists, place
from megpt.study import Study, View

REPORTS = "ecgen-radiology"
PNG, DICOM = "NLMCXR_png", "NLMCXR_dcm"
MAX_XML_BYTES = 4 << 20


class OpeniSource(Source):
    """One study per XML file; this release has no splits."""

    format = "openi"
    about = "IU X-Ray as on Open-i: ecgen-radiology/*.xml with NLMCXR_png/ or NLMCXR_dcm/"

    @classmethod
    def detect(cls, path: Path, data: DataConfig) -> bool:
        reports = place(data.reports) if data.reports else path / REPORTS
        return path.is_dir() and reports.is_dir() and any(reports.glob("*.xml"))

    @cached_property
    def _reports(self) -> Path:
        folder = place(self.data.reports) if self.data.reports else self.root / REPORTS
        if not folder.is_dir():
            raise InputError(f"no reports at {folder}", next="set data.reports to the folder of *.xml")
        return folder

    def tables(self) -> Iterable[Path]:
        return self._files()

    def _files(self) -> list[Path]:
        return sorted(self._reports.glob("*.xml"), key=lambda p: (not p.stem.isdigit(), p.stem.zfill(12)))

    def studies(self) -> Iterator[Study]:
        for path in self._files():
            tree = _parse(path)
            uid = tree.find(".//uId")
            study_id = (uid.get("id") if uid is not None else None) or f"CXR{path.stem}"
            parts = {e.get("Label", "").upper(): fold(e.text) for e in tree.iterfind(".//AbstractText")}
            findings, impression = parts.get("FINDINGS"), parts.get("IMPRESSION")
            images = [e.get("id", "") for e in tree.iterfind(".//parentImage")]
            views = tuple(self._film(study_id, image) for image in images)
            sections: dict[str, Any] = {
                name: parts.get(name.upper()) for name in ("indication", "comparison", "technique")
            }
            report = join(findings, impression)
            yield Study(study_id, study_id, views, report, findings, impression, split="", **sections)

    def _film(self, study_id: str, image: str) -> View:
        """`CXR1_1_IM-0001-3001` is NLMCXR_png/<id>.png, or NLMCXR_dcm/1/1_IM-0001-3001.dcm."""
        short = image.removeprefix(study_id + "_")
        dicom = f"{DICOM}/{study_id.removeprefix('CXR')}/{short}.dcm"
        candidates = (f"{PNG}/{image}.png", dicom, f"{image}.png", f"images/{image}.png")
        views = [self.view(path, image_id=image) for path in candidates]
        existing = (view for view in views if view.uri and exists(view.uri))
        return next(existing, views[0])


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses a document type, and so every entity that a file could define or fetch."""

    def doctype(self, *_: Any) -> None:
        raise InputError("document type")


def _parse(path: Path) -> ElementTree.Element:
    """An XML file that defines no entities.

    Raises:
        InputError: damaged, too large, or with a document type.
    """
    try:
        if path.stat().st_size > MAX_XML_BYTES:
            raise InputError(f"{path} is too large to be a report")
        return ElementTree.fromstring(path.read_bytes(), parser=ElementTree.XMLParser(target=_NoDoctype()))
    except InputError:
        raise InputError(
            f"{path} is refused", cause="it has a document type or more than 4 MiB, and no report needs either"
        ) from None
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        raise InputError(f"{path} is not valid XML", cause=type(error).__name__, next="download it again") from None
