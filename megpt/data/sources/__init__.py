"""Archives: one file per format, all giving a stream of `Study`.

    source = open_source("/data/mimic-cxr-jpg", data=config.data)
    for study in source.studies(): ...

`data.format: auto` takes the first format in `FORMATS` whose layout the archive has.
"""

from __future__ import annotations

from pathlib import Path

from megpt.config import DataConfig
from megpt.data.sources.base import Source
from megpt.data.sources.folder import FolderSource
from megpt.data.sources.iu_kaggle import IuKaggleSource
from megpt.data.sources.manifest import ManifestSource
from megpt.data.sources.mimic_cxr import MimicCxrSource
from megpt.data.sources.nih import NihSource
from megpt.data.sources.openi import OpeniSource
from megpt.data.sources.r2gen import R2GenSource
from megpt.data.sources.rexrank import RexrankSource
from megpt.data.sources.table import TableSource
from megpt.demo.phantom.source import PhantomSource
from megpt.errors import InputError, did_you_mean

__all__ = ["FORMATS", "Source", "open_source"]

# In the order in which `auto` tries them: the most particular layout first, a plain tree of films last.
FORMATS: dict[str, type[Source]] = {
    kind.format: kind
    for kind in (
        TableSource,
        PhantomSource,
        MimicCxrSource,
        R2GenSource,
        IuKaggleSource,
        OpeniSource,
        RexrankSource,
        NihSource,
        ManifestSource,
        FolderSource,
    )
}


def open_source(path: str | Path, *, data: DataConfig) -> Source:
    """The archive at `path`.

    Args:
        path: a folder, or the one file that lists the studies.
        data: `format`, and where reports and annotations lie when not inside.

    Raises:
        InputError: nothing there, an unknown format's name, or no format that fits; the text lists the formats.
    """
    path = Path(path)
    if not path.exists():
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(
            f"no archive at {path}",
            cause="the path does not exist on this machine",
            next=f"set source=PATH; {did_you_mean(path.name, near)}" if near else "set source=PATH",
        )
    path = path.absolute()
    if data.format != "auto":
        if data.format not in FORMATS:
            raise InputError(f"unknown data.format {data.format!r}", next=did_you_mean(data.format, ["auto", *FORMATS]))
        return FORMATS[data.format](path, data)
    for kind in FORMATS.values():
        if kind.detect(path, data):
            return kind(path, data)
    raise InputError(
        f"{path} has the layout of no known format",
        cause="known formats:\n" + "\n".join(f"           {name}: {kind.about}" for name, kind in FORMATS.items()),
        next="set data.format=NAME to see what is missing, or write a manifest (docs/data.md)",
    )
