"""Archives: one file per format; each turns an archive into a stream of `Study`.

    source = open_source("/data/mimic-cxr-jpg", data=config.data)
    for study in source.studies(): ...

A format from another package is a subclass of `Source` with an entry point; it needs no change here:

    [project.entry-points."megpt.sources"]
    my_pacs = "my_package.archive:MyPacsSource"          # the name is the class's `format`

`data.format: auto` takes the first format that detects its layout in the archive: the built-in ones with a layout of
their own, in the order of `FORMATS`; then those of entry points, by name; last the `GENERIC` ones, which accept almost
anything. So an installed format cannot change how a known archive is read, and comes before a plain tree of films.
"""

from __future__ import annotations

import functools
import importlib
from importlib.metadata import EntryPoint, entry_points
from itertools import islice
from pathlib import Path

from megpt.config import DataConfig
from megpt.data.sources.base import Source
from megpt.errors import InputError, did_you_mean
from megpt.films.remote import scheme_of
from megpt.places import is_address, place, take_listing
from megpt.progress import log

__all__ = ["FORMATS", "GENERIC", "GROUP", "Source", "format_names", "load_format", "open_source"]

GROUP = "megpt.sources"
# Name → "module:Class", imported when it is needed.
FORMATS = {
    "failed": "megpt.data.sources.failed:FailedSource",
    "table": "megpt.data.sources.table:TableSource",
    "phantom": "megpt.demo.phantom.source:PhantomSource",
    "mimic_cxr": "megpt.data.sources.mimic_cxr:MimicCxrSource",
    "chexpert_plus": "megpt.data.sources.chexpert_plus:ChexpertPlusSource",
    "chexpert": "megpt.data.sources.chexpert:ChexpertSource",
    "padchest": "megpt.data.sources.padchest:PadchestSource",
    "vindr": "megpt.data.sources.vindr:VindrSource",
    "rsna": "megpt.data.sources.rsna:RsnaSource",
    "rexgradient": "megpt.data.sources.rexgradient:RexgradientSource",
    "r2gen": "megpt.data.sources.r2gen:R2GenSource",
    "iu_kaggle": "megpt.data.sources.iu_kaggle:IuKaggleSource",
    "openi": "megpt.data.sources.openi:OpeniSource",
    "rexrank": "megpt.data.sources.rexrank:RexrankSource",
    "nih": "megpt.data.sources.nih:NihSource",
    "imagefolder": "megpt.data.sources.imagefolder:ImageFolderSource",
    "huggingface": "megpt.data.sources.huggingface:HuggingFaceSource",
    "webdataset": "megpt.data.sources.webdataset:WebDatasetSource",
    "manifest": "megpt.data.sources.manifest:ManifestSource",
    "dicom": "megpt.data.sources.dicom:DicomSource",
    "folder": "megpt.data.sources.folder:FolderSource",
}
GENERIC = ("manifest", "dicom", "folder")
# Those that read any tree of films, whatever tables are in it.
PLAIN = ("dicom", "folder")

NOTHING_FAR = "no object has this name, or begins with it and a /"
_warn_once = functools.cache(log)


def open_source(path: str | Path, *, data: DataConfig) -> Source:
    """The archive at `path`.

    Args:
        path: a folder, the one file that lists the studies, or an address (`dicomweb://…`) whose scheme a format reads.
        data: `format` with its own settings, and the paths of reports and annotations that are not inside the archive.

    Raises:
        InputError: nothing at `path`, an unknown or broken `data.format`, or no format that fits; the text lists the
            formats.
    """
    if scheme := scheme_of(str(path)):
        return _of_scheme(scheme, data)(str(path), data)
    path = place(path)
    take_listing(path)
    if not path.exists():
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(
            f"no archive at {path}",
            cause=NOTHING_FAR if is_address(path) else "the path does not exist on this machine",
            next=f"set source=PATH; {did_you_mean(path.name, near)}" if near else "set source=PATH",
        )
    path = path.absolute()
    if data.format != "auto":
        return load_format(data.format)(path, data)
    return _detect(path, data)


def format_names() -> list[str]:
    """All formats, in the order in which `auto` tries them."""
    added = sorted(_added().keys() - FORMATS.keys())
    return [*(name for name in FORMATS if name not in GENERIC), *added, *GENERIC]


def load_format(name: str) -> type[Source]:
    """The class of a format.

    Raises:
        InputError: no such format, or an entry point that does not give one.
    """
    if name in FORMATS:
        module, _, attribute = FORMATS[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    added = _added()
    if name not in added:
        raise InputError(f"unknown data.format {name!r}", next=did_you_mean(name, ["auto", *format_names()]))
    try:
        loaded = added[name].load()
    except Exception as error:  # another package's code may raise anything
        raise _broken(added[name], f"{type(error).__name__}: {error}") from None
    if not (isinstance(loaded, type) and issubclass(loaded, Source)):
        raise _broken(added[name], f"{added[name].value} is not a subclass of megpt.data.sources.Source")
    if getattr(loaded, "format", None) != name:
        raise _broken(added[name], f"the class calls its format {getattr(loaded, 'format', None)!r}")
    return loaded


def _of_scheme(scheme: str, data: DataConfig) -> type[Source]:
    """The format that reads addresses of this scheme.

    Raises:
        InputError: there is none, or `data.format` names another.
    """
    known: dict[str, str] = {}
    for name in sorted(_added()) if data.format == "auto" else [data.format]:
        try:
            source = load_format(name)
        except InputError as error:
            if data.format != "auto":
                raise
            _warn_once(f"warning: {error.what} and is skipped ({error.cause})")
            continue
        if scheme in source.schemes:
            return source
        known |= dict.fromkeys(source.schemes, name)
    schemes = ", ".join(f"{name}:// ({form})" for name, form in sorted(known.items())) or "none"
    raise InputError(
        f"no archive format reads {scheme}:// addresses"
        if data.format == "auto"
        else f"data.format={data.format} does not read {scheme}:// addresses",
        cause=f"addresses that can be read: {schemes}",
        next="set source=PATH, or install the package that reads them",
    )


def _detect(path: Path, data: DataConfig) -> Source:
    """The first format that fits. A broken entry point is named in a warning and does not stop the others."""
    about = []
    for name in format_names():
        try:
            source = load_format(name)
            fits = source.detect(path, data)
        except Exception as error:
            if name in FORMATS:
                raise
            text = error.what if isinstance(error, InputError) else f"data.format {name!r} fails in detect()"
            cause = error.cause if isinstance(error, InputError) else type(error).__name__
            _warn_once(f"warning: {text} and is skipped ({cause})")
            continue
        if name in PLAIN and fits and (inner := _only_folder(path)) is not None:
            try:
                found = _detect(inner, data)
            except InputError:
                found = None
            if found is not None and found.format not in PLAIN:
                return found
        if fits:
            return source(path, data)
        about.append(f"           {name}: {source.about}")
    raise InputError(
        f"{path} has the layout of no known format",
        cause="known formats:\n" + "\n".join(about),
        next="set data.format=NAME to see what is missing, or write a manifest (docs/data.md)",
    )


def _only_folder(path: Path) -> Path | None:
    """The folder that is all there is in a folder, as archives leave it when they are unpacked."""
    if not path.is_dir():
        return None
    entries = [entry for entry in islice(path.iterdir(), 8) if not entry.name.startswith((".", "__MACOSX"))]
    return entries[0] if len(entries) == 1 and entries[0].is_dir() and not entries[0].is_symlink() else None


def _added() -> dict[str, EntryPoint]:
    """Entry points by name. A name that a built-in format has is ignored, with a warning."""
    found = {}
    for entry in entry_points(group=GROUP):
        if entry.name in FORMATS or entry.name == "auto":
            _warn_once(f"warning: {_label(entry)} is ignored: {entry.name!r} is a built-in name")
        else:
            found[entry.name] = entry
    return found


def _broken(entry: EntryPoint, cause: str) -> InputError:
    return InputError(
        f"{_label(entry)} cannot be loaded",
        cause=cause,
        next=f"repair or uninstall {entry.dist.name if entry.dist else 'the package'}",
    )


def _label(entry: EntryPoint) -> str:
    package = f" of {entry.dist.name}" if entry.dist else ""
    return f"entry point {entry.name!r} ({GROUP}){package}"
