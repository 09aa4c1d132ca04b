"""Formats from other packages, by real entry points (a distribution in a folder on sys.path).

- an installed format is read by `auto` and by name, up to prepare's table, and is listed in errors
- it comes after the built-in layouts and before manifests and folders of films
- a broken one (import error, no Source, another name, an error in detect) is named once and stops no other format;
  asking for it by name is an error that says what to do
- one with a built-in name is ignored, by name
- every built-in format loads under its own name
- one may read addresses, with settings of its own and films that are fetched when they are read; what nobody reads is
  refused by name
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from make_films import png, write

from megpt.config import DataConfig, PrepareConfig
from megpt.data import sources
from megpt.data.prepare import WORK, list_shards, merge_failed, prepare_shard
from megpt.data.sources import FORMATS, format_names, load_format, open_source
from megpt.data.studies import read_studies
from megpt.errors import InputError
from megpt.films import remote
from megpt.films.decode import UnreadableFilm, load_film
from megpt.study import View

MODULE = """
from megpt.data.sources import Source
from megpt.study import Study

class Lines(Source):
    format = "lines"
    about = "films.txt with a study and a film per line"

    @classmethod
    def detect(cls, path, data):
        return (path / "films.txt").is_file()

    def tables(self):
        return [self.root / "films.txt"]

    def studies(self):
        for line in (self.root / "films.txt").read_text().splitlines():
            name, film = line.split()
            yield Study(name, name, (self.view(film),), report="Clear.", split="val")

class Fragile(Lines):
    format = "fragile"

    @classmethod
    def detect(cls, path, data):
        raise KeyError("patient name")
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a distribution with these entry points on sys.path; returns its module's name."""
    sources._warn_once.cache_clear()
    site = tmp_path / "site"
    module = f"formats_{abs(hash(str(tmp_path)))}"

    def installed(**entries: str) -> str:
        write(site / f"{module}.py", MODULE)
        lines = "\n".join(f"{name} = {value.format(module=module)}" for name, value in entries.items())
        write(site / "other_formats-1.0.dist-info" / "entry_points.txt", f"[megpt.sources]\n{lines}\n")
        write(
            site / "other_formats-1.0.dist-info" / "METADATA",
            "Metadata-Version: 2.1\nName: other-formats\nVersion: 1.0\n",
        )
        monkeypatch.syspath_prepend(str(site))
        return module

    yield installed
    sys.modules.pop(module, None)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    write(tmp_path / "archive/a.png", png())
    write(tmp_path / "archive/b.png", png())
    write(tmp_path / "archive/films.txt", "s1 a.png\ns2 b.png\ns3 ../out.png\n")
    return tmp_path / "archive"


def test_an_installed_format_is_read(install, archive: Path, tmp_path: Path) -> None:
    assert open_source(archive, data=DataConfig()).format == "folder"
    install(lines="{module}:Lines")
    source = open_source(archive, data=DataConfig())
    assert source.format == open_source(archive, data=DataConfig(format="lines")).format == "lines"
    out = tmp_path / "out"
    shards = list_shards(out / WORK / "plan", source.listed(), shard_size=2, seed=0, source=source)
    counts = [
        prepare_shard(out, shards, shard, PrepareConfig(image_size=16), archive=archive, max_pixels=10**6)
        for shard in shards
    ]
    assert [(mark["studies"], mark["failed"]) for mark in counts] == [(2, 0), (1, 1)]
    assert [(s.study_id, s.report, s.split) for s in read_studies(out)] == [
        ("s1", "Clear.", "val"),
        ("s2", "Clear.", "val"),
    ]
    with pytest.raises(InputError) as caught:
        open_source(write(tmp_path / "notes.txt", "hello"), data=DataConfig())
    assert "           lines: films.txt with a study and a film per line\n" in str(caught.value)
    with pytest.raises(InputError, match=r"^unknown data.format 'line'\n  next:  did you mean lines"):
        open_source(archive, data=DataConfig(format="line"))


def test_the_order_of_detection(install, archive: Path) -> None:
    install(lines="{module}:Lines", fragile="{module}:Fragile")
    names = [name for name in format_names() if name != "dicomweb"]  # megpt's own, by the same entry points
    assert names == [
        *(name for name in FORMATS if name not in ("manifest", "dicom", "folder")),
        "fragile",
        "lines",
        "manifest",
        "dicom",
        "folder",
    ]
    write(archive / "manifest.csv", "study_id,image_path\nm1,a.png\n")
    assert open_source(archive, data=DataConfig()).format == "lines"
    write(archive / "annotation.json", '{"train": []}')
    assert open_source(archive, data=DataConfig()).format == "r2gen"


@pytest.mark.parametrize(
    "name, value, cause",
    [
        ("gone", "no_such_module_of_formats:Lines", "ModuleNotFoundError: No module named 'no_such_module_of_formats'"),
        ("typo", "{module}:Lnes", "AttributeError: module '{module}' has no attribute 'Lnes'"),
        ("text", "{module}:__name__", "{module}:__name__ is not a subclass of megpt.data.sources.Source"),
        ("others", "{module}:Lines", "the class calls its format 'lines'"),
    ],
)
def test_a_broken_entry_point(install, archive: Path, capsys, name: str, value: str, cause: str) -> None:
    module = install(**{name: value})
    for _ in range(2):
        assert open_source(archive, data=DataConfig()).format == "folder"
    cause = cause.format(module=module)
    assert capsys.readouterr().err == (
        f"warning: entry point '{name}' (megpt.sources) of other-formats cannot be loaded and is skipped ({cause})\n"
    )
    with pytest.raises(InputError) as caught:
        open_source(archive, data=DataConfig(format=name))
    assert str(caught.value) == (
        f"entry point '{name}' (megpt.sources) of other-formats cannot be loaded\n"
        f"  cause: {cause}\n"
        "  next:  repair or uninstall other-formats"
    )
    assert open_source(archive, data=DataConfig(format="folder")).format == "folder"


def test_a_format_that_fails_in_detect(install, archive: Path, capsys) -> None:
    install(fragile="{module}:Fragile", lines="{module}:Lines")
    assert open_source(archive, data=DataConfig()).format == "lines"
    assert capsys.readouterr().err == "warning: data.format 'fragile' fails in detect() and is skipped (KeyError)\n"


def test_a_built_in_name_is_kept(install, archive: Path, capsys) -> None:
    install(folder="{module}:Lines")
    assert open_source(archive, data=DataConfig()).format == "folder"
    assert type(open_source(archive, data=DataConfig(format="folder"))).__name__ == "FolderSource"
    assert capsys.readouterr().err == (
        "warning: entry point 'folder' (megpt.sources) of other-formats is ignored: 'folder' is a built-in name\n"
    )


def test_a_built_in_format_that_fails_is_not_skipped(archive: Path, monkeypatch) -> None:
    monkeypatch.setitem(FORMATS, "nih", "no_such_module_of_formats:Nih")
    with pytest.raises(ModuleNotFoundError):
        open_source(archive, data=DataConfig())


@pytest.mark.parametrize("name", FORMATS)
def test_built_in_formats(name: str) -> None:
    assert load_format(name).format == name and load_format(name).about


# --- addresses, settings and films (the example of docs/extending.md)


@pytest.fixture
def shelf(install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """The documentation's package, over a server in its place; returns what this was asked."""
    page = (Path(__file__).parents[2] / "docs/extending.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class Shelf(" in block]
    module = install(shelf="{module}:Shelf")
    write(tmp_path / "site" / f"{module}.py", code)
    entries = f"[megpt.sources]\nshelf = {module}:Shelf\n[megpt.films]\nshelf = {module}:open_film\n"
    entries += f"broken = {module}:nothing\n"
    write(tmp_path / "site" / "other_formats-1.0.dist-info" / "entry_points.txt", entries)
    asked: list[dict[str, object]] = []

    def get(url: str, *, timeout: float, params: dict[str, object] | None = None) -> SimpleNamespace:
        asked.append({"url": url, **(params or {})})
        status = 404 if url.endswith("b.png") else 200
        return SimpleNamespace(text="a b", content=png(), status_code=status)

    monkeypatch.setattr(requests, "get", get)
    remote._opener.cache_clear()
    return asked


def test_an_address_with_settings_and_films(shelf: list[dict[str, object]], tmp_path: Path) -> None:
    source = open_source("shelf://films/chest", data=DataConfig(options={"ward": "3"}))
    assert (source.place, source.origin) == ("shelf://films/chest", ("shelf://films/chest", "shelf"))
    assert source.identity == {"path": "shelf://films/chest", "format": "shelf", "options": {"ward": "3"}}
    out = tmp_path / "out"
    shards = list_shards(out / WORK / "plan", source.listed(), shard_size=2, seed=0, source=source)
    assert shelf == [{"url": "http://films/chest", "ward": "3", "page": 100}]
    settings = PrepareConfig(films="link")
    (mark,) = [prepare_shard(out, shards, shard, settings, archive=tmp_path, max_pixels=10**6) for shard in shards]
    assert (mark["studies"], mark["failed"], mark["reasons"]) == (2, 1, {"the shelf answers 404": 1})
    (study,) = read_studies(out)
    assert (study.views[0].uri, study.views[0].data) == ("shelf://films/chest/a.png", None)
    # whoever reads the table reads the film from the server
    (again,) = open_source(out, data=DataConfig()).studies()
    assert load_film(again.views[0], size=None, max_pixels=10**6).size == (48, 40)
    # failed.parquet leads back to the address, with the options of the command
    merge_failed(out, shards)
    retried = open_source(out / "failed.parquet", data=DataConfig(options={"ward": "3"}))
    assert [study.study_id for study in retried.studies()] == ["b"] and shelf[-1]["ward"] == "3"


@pytest.mark.parametrize(
    ("address", "data", "text"),
    [
        ("shelf://x", {"options": {"wrad": "3"}}, "unknown key 'data.options.wrad'\n"),
        ("shelf://x", {"options": {"page": 0}}, "data.options.page = 0: Input should be greater than 0\n"),
        ("shelf://x", {"format": "folder"}, "data.format=folder does not read shelf:// addresses\n"),
        ("ftp://x", {}, "no archive format reads ftp:// addresses\n"),
        (".", {"format": "folder", "options": {"ward": "3"}}, "unknown key 'data.options.ward'\n"),
    ],
)
def test_addresses_and_settings_that_nobody_reads(
    shelf: list[dict[str, object]], address: str, data: dict[str, object], text: str
) -> None:
    with pytest.raises(InputError) as caught:
        open_source(address, data=DataConfig(**data))
    assert str(caught.value).startswith(text)
    if "no archive format" in text:
        assert "shelf:// (shelf)" in str(caught.value.cause)


def test_films_that_nobody_can_open(shelf: list[dict[str, object]]) -> None:
    for uri, reason in {
        "ftp://x": "no installed package reads ftp:// films",
        "broken://x": "entry point 'broken' (megpt.films) cannot be loaded (AttributeError)",
    }.items():
        with pytest.raises(UnreadableFilm) as caught:
            load_film(View("", uri=uri), size=None, max_pixels=10**6)
        assert caught.value.reason == reason
    assert remote.scheme_of("file:///a") is None and remote.scheme_of("/a://b") is None
