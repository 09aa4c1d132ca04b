"""An archive at an address is read as the same archive on disk: every layout, and films of every kind of uri.

- every format gives the same studies, with the address in place of the folder
- films are fetched ahead of their turn, one request a film; those inside tars, zips and tables too
- an object that changes while it is read, is missing or may not be read is an error row; the job goes on
- an address in a table leads only where `data.roots` allows; a list on a web server is read without a listing
- thousands of films at an address are planned from one listing, without a request for any of them
"""

from __future__ import annotations

import functools
import http.server
import io
import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import test_generic_sources
import test_layouts
import test_public_sources
from dicom_exports import write_exports
from far_store import Fault, Proxy, put_folder
from make_films import png

from megpt.config import DataConfig, PrepareConfig
from megpt.data import sources
from megpt.data.parquet import read_rows
from megpt.data.prepare import list_shards, merge_failed, prepare_shard
from megpt.data.sources import open_source
from megpt.data.sources.base import Inside
from megpt.data.studies import read_studies, with_films
from megpt.errors import InputError, MegptError
from megpt.films.decode import UnreadableFilm, load_films
from megpt.places import place, snapshot, stores
from megpt.study import Study

LAYOUTS = (
    *(test_layouts.test_chexpert, test_layouts.test_chexpert_plus, test_layouts.test_padchest, test_layouts.test_vindr),
    *(test_layouts.test_rsna, test_layouts.test_rexgradient, test_layouts.test_webdataset),
    *(test_layouts.test_imagefolder_with_a_table_in_each_split, test_layouts.test_parquet_with_films_inside),
    *(test_layouts.test_parquet_with_paths_alone, test_layouts.test_an_archive_inside_the_only_folder),
    test_public_sources.test_r2gen_iu_under_open_i_names,
    *(test_public_sources.test_iu_from_kaggle, test_public_sources.test_iu_from_open_i),
    *(test_public_sources.test_mimic_dicom_tree, test_public_sources.test_mimic_without_tables),
    *(test_public_sources.test_rexrank_object_and_list, test_public_sources.test_nih),
    *(test_generic_sources.test_a_folder_is_a_study, test_generic_sources.test_a_flat_folder_and_a_heap),
    *(test_generic_sources.test_dicom_files_without_a_suffix, test_generic_sources.test_a_studies_table),
    test_generic_sources.test_a_manifest,
)


@pytest.fixture(autouse=True)
def keyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGPT_SUBJECT_KEY", "a key of a department, long enough")


def moved(studies: list[Study], old: str, new: str) -> list[Study]:
    """The studies with their films at another place."""
    return [
        replace(study, views=tuple(replace(v, uri=v.uri and v.uri.replace(old, new)) for v in study.views))
        for study in studies
    ]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__[5:])
def test_a_layout_at_an_address(layout: Any, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, DataConfig]] = []

    def recording(path: Any, *, data: DataConfig) -> Any:
        asked.append((Path(path), data))
        return open_source(path, data=data)

    module = __import__(layout.__module__, fromlist=["open_source"])
    monkeypatch.setattr(module, "open_source", recording)
    root = tmp_path / "root"
    root.mkdir()
    layout(root)
    put_folder(root, f"{bucket}/root")
    assert asked
    path, data = asked[-1]

    def far(text: str | None) -> str | None:
        return text and text.replace(str(root), f"{bucket}/root")

    changes = {"reports": far(data.reports), "annotations": far(data.annotations)}
    there = open_source(str(far(str(path))), data=data.model_copy(update=changes))
    here = open_source(path, data=data)
    assert there.format == here.format
    try:
        expected = moved([entry.study for entry in here.listed()], str(root), f"{bucket}/root")
    except InputError as error:
        with pytest.raises(InputError) as raised:
            list(there.listed())
        assert raised.value.what == far(error.what)
        return
    assert [entry.study for entry in there.listed()] == expected
    assert (there.rule, there.ignored) == (here.rule, here.ignored)
    films = zip(with_films(there.listed()), with_films(here.listed()), strict=True)
    for one, other in films:
        assert pixels(one) == pixels(other)


def pixels(study: Study) -> Any:
    try:
        return [film.tobytes() for film in load_films(study, size=16, max_views=None, max_pixels=10**7)]
    except UnreadableFilm as error:
        return error.reason


@pytest.mark.slow
def test_dicom_exports_at_an_address(bucket: str, tmp_path: Path, proxy: Proxy) -> None:
    root = tmp_path / "exports"
    write_exports(root, 10)
    put_folder(root, f"{bucket}/exports")
    here = list(open_source(root, data=DataConfig()).studies())
    there = list(open_source(f"{bucket}/exports", data=DataConfig()).studies())
    assert len(here) > 5
    assert there == moved(here, str(root.resolve()), f"{bucket}/exports")
    assert [pixels(s) for s in with_films(map(listed, there))] == [pixels(s) for s in here]


def listed(study: Study) -> Any:
    from megpt.data.studies import Listed

    return Listed(study)


def drawn(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (24, 24), np.uint8)


def archive(bucket: str, count: int) -> str:
    rows = ["study_id,image_path,report"]
    for n in range(count):
        stores.put(f"{bucket}/arch/films/{n}.png", png(drawn(n)))
        rows.append(f"s{n},films/{n}.png,Report {n}.")
    stores.put(f"{bucket}/arch/manifest.csv", "\n".join(rows).encode())
    return f"{bucket}/arch"


def prepared(source: str, out: Path) -> tuple[set[str], dict[str, str]]:
    """Ids in the table, and error rows."""
    opened = open_source(source, data=DataConfig())
    shards = list_shards(out / "plan", opened.listed(), shard_size=4, seed=0, source=opened)
    settings = PrepareConfig(image_size=16)
    for shard in shards:
        prepare_shard(out, shards, shard, settings, archive=opened.root, max_pixels=10**6)
    merge_failed(out, shards)
    failed = {row["study_id"]: row["error"] for row in read_rows(out / "failed.parquet")}
    return {study.study_id for study in read_studies(out)}, failed


def test_films_that_cannot_be_read_are_error_rows(bucket: str, proxy: Proxy, tmp_path: Path) -> None:
    source = archive(bucket, 6)

    def change() -> None:
        stores.put(f"{source}/films/1.png", png(drawn(7)))

    def get(number: int) -> Any:
        return lambda method, path: method == "GET" and path.endswith(f"/films/{number}.png")

    proxy.faults += [Fault(get(1), cut_at=20, before=change, times=1), Fault(get(2), status=403)]
    stores.delete(f"{source}/films/3.png")
    proxy.seen.clear()
    done, failed = prepared(source, place(f"{bucket}/out"))
    assert done == {"s0", "s4", "s5"}
    assert failed == {"s1": "changed while it was read", "s2": "no right to read it", "s3": "missing file"}
    assert sum(get(4)(*request) for request in proxy.seen) == 1
    assert not any(method == "HEAD" and "/films/1" not in path and "/films/" in path for method, path in proxy.seen)


def test_a_store_that_goes_away_ends_the_job_and_calls_no_film_broken(
    bucket: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = archive(bucket, 2)
    monkeypatch.setattr(stores, "TRIES", 1)
    stores._store.cache_clear()
    proxy.faults.append(Fault(lambda method, path: "/films/1.png" in path, status=503))
    with pytest.raises(MegptError, match="does not answer as it should"):
        prepared(source, tmp_path / "out")


def test_addresses_in_a_table_lead_where_they_may(bucket: str) -> None:
    inside = Inside(place(f"{bucket}/arch"), [f"{bucket}/films"])
    assert inside.resolve("a/b.png") == f"{bucket}/arch/a/b.png"
    assert inside.resolve("./a//b.png") == f"{bucket}/arch/a/b.png"
    assert inside.resolve(f"{bucket}/films/x.png") == f"{bucket}/films/x.png"
    for path in (
        "../x.png",
        "a/../../x.png",
        "/etc/passwd",
        f"{bucket}/other/x.png",
        f"{bucket}/arch/../x",
        "s3://b/x",
        "",
    ):
        assert inside.resolve(path) is None, path
    near = Inside(Path("/data"), [f"{bucket}/films"])
    assert near.resolve(f"{bucket}/films/x.png") == f"{bucket}/films/x.png"
    assert near.resolve(f"{bucket}/x.png") is None and near.resolve("x.png") == "/data/x.png"


def test_nothing_there(bucket: str) -> None:
    with pytest.raises(InputError) as raised:
        open_source(f"{bucket}/nothing", data=DataConfig())
    assert raised.value.what == f"no archive at {bucket}/nothing"
    assert raised.value.cause == "no object has this name, or begins with it and a /"


def test_a_list_on_a_web_server(tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "1.png").write_bytes(png(drawn(1)))
    (tmp_path / "list.csv").write_text("study_id,image_path,report\ns1,films/1.png,Clear.\ns2,films/2.png,Clear.\n")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            done, failed = prepared(f"http://127.0.0.1:{server.server_address[1]}/list.csv", tmp_path / "out")
        finally:
            server.shutdown()
    assert done == {"s1"} and failed == {"s2": "missing file"}


def test_planning_many_films(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A listing as a store gives it, page by page, without a store: its objects would take minutes to make."""
    pages = []

    def everything(address: str) -> Iterator[stores.Found]:
        yield stores.Found(f"{address}/manifest.csv", len(table), "m", 0.0)
        for n in range(5_000):
            if n % 1000 == 0:
                pages.append(n)
            yield stores.Found(f"{address}/films/{n // 100:04d}/{n:06d}.png", 1000 + n, f'"{n:032x}"', 0.0)

    lines = ["study_id,image_path", *(f"s{n:06d},films/{n // 100:04d}/{n:06d}.png" for n in range(5_000))]
    table = "\n".join(lines).encode()
    monkeypatch.setattr(stores, "everything", everything)
    monkeypatch.setattr(stores, "head", lambda address: pytest.fail(f"a request for {address}"))
    monkeypatch.setattr(stores, "open_object", lambda address: io.BytesIO(table))
    root = place(f"{bucket}/arch")
    tracemalloc.start()
    snapshot.with_listing(str(root))
    monkeypatch.setattr(sources, "take_listing", lambda path: None)
    source = open_source(str(root), data=DataConfig(format="manifest"))
    shards = list_shards(tmp_path / "plan", source.listed(), shard_size=500, seed=0, source=source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert shards.studies == 5_000 and len(pages) == 5 and peak < 40e6
    states = pq.read_table(next(tmp_path.glob("plan/*.parquet")), columns=["state"])["state"].to_pylist()
    assert len(set(states)) == len(states)
