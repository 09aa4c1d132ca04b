"""Objects behind an S3 address, through a real server.

- listing, globbing and reading give what the same files give as a folder, with and without a listing taken at once
- small and large objects, ranges, names with any sign
- an object that changes while it is read is an error, never a mixture; a cut answer is fetched again
- 503 is tried again; a store that stays away, no rights and no bucket are screens; none repeats a key
- a put is whole, or absent, and with `new` the first one stays
- a copy on this machine is fetched once, again when the object changed, and makes room for the next
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from pathlib import Path

import pytest
from far_store import Fault, Proxy, ask, free_port, put_folder

from megpt.errors import InputError, MegptError
from megpt.places import Changed, cache, entries, head_of, here, part_of, place, screen, stores, take_listing, walk
from megpt.places.cache import local_folder
from megpt.places.whole import put_tree, storage_error, write_aside, write_json

FILES = (
    "a.csv",
    "films/1.png",
    "films/2.png",
    "films/sub/3.png",
    "films/sub/x #1?%41+ü.txt",
    "z/split=train/p.parquet",
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(name.encode() * 3)
    return tmp_path / "tree"


@pytest.mark.parametrize("at_once", [False, True], ids=["asked", "listed"])
def test_a_tree_looks_as_on_disk(bucket: str, tree: Path, at_once: bool) -> None:
    put_folder(tree, f"{bucket}/tree")
    far = place(f"{bucket}/tree")
    if at_once:
        take_listing(far)

    def names(found: object) -> list[str]:
        return sorted(str(p).removeprefix(str(far if "://" in str(p) else tree)) for p in found)  # type: ignore

    for pattern in (
        "*",
        "*.csv",
        "films/*.png",
        "**/*.png",
        "**/split=*/*.parquet",
        "*/split=*",
        "films",
        "none",
        "*.x/y",
    ):
        assert names(far.glob(pattern)) == names(tree.glob(pattern)), pattern
    assert names(far.iterdir()) == names(tree.iterdir())
    assert [name for name, _, _ in entries(far / "films")] == ["1.png", "2.png", "sub"]
    assert sorted((f[len(str(far)) :], sorted(d), sorted(n)) for f, d, n in walk(far)) == sorted(
        (f[len(str(tree)) :], sorted(d), sorted(n)) for f, d, n in walk(tree)
    )
    for name in (*FILES, "films", "films/sub", "films/1.pn", "film", "nothing"):
        for method in ("exists", "is_file", "is_dir"):
            assert getattr(far / name, method)() == getattr(tree / name, method)(), (method, name)
    for name in FILES:
        assert (far / name).read_bytes() == (tree / name).read_bytes()
        assert (far / name).stat().st_size == (tree / name).stat().st_size
    with pytest.raises(FileNotFoundError):
        (far / "nothing").stat()
    with pytest.raises(FileNotFoundError):
        (far / "nothing").read_text()


@pytest.mark.parametrize("at_once", [False, True], ids=["asked", "listed"])
def test_folders_that_a_browser_made(bucket: str, proxy: Proxy, at_once: bool) -> None:
    port, name = int(proxy.server.rpartition(":")[2]), bucket.removeprefix("s3://")
    for key in ("tree/", "tree/films/", "tree/films/1.png"):
        assert ask(port, "PUT", f"/{name}/{key}", b"" if key.endswith("/") else b"film")[0] == 200
    far = place(f"{bucket}/tree")
    if at_once:
        take_listing(far)
    assert [str(p) for p in far.iterdir()] == [f"{bucket}/tree/films"]
    assert [str(p) for p in (far / "films").iterdir()] == [f"{bucket}/tree/films/1.png"]
    assert (far / "films").is_dir() and (far / "films" / "1.png").is_file()
    assert [p.name for p in here(far).rglob("*.png")] == ["1.png"]


def test_a_name_that_no_path_has(bucket: str, proxy: Proxy) -> None:
    port = int(proxy.server.rpartition(":")[2])
    assert ask(port, "PUT", f"/{bucket.removeprefix('s3://')}/tree/a//b", b"x")[0] == 200
    with pytest.raises(InputError) as raised:
        take_listing(place(f"{bucket}/tree"))
    assert raised.value.what == f"{bucket}/tree holds an object whose name cannot be read: 'tree/a//b'"


def test_a_listing_costs_a_request_for_a_thousand_names(bucket: str, tree: Path, proxy: Proxy) -> None:
    put_folder(tree, f"{bucket}/tree")
    proxy.seen.clear()
    take_listing(far := place(f"{bucket}/tree"))
    before = len(proxy.seen)
    assert sum(1 for _, _, names in walk(far) for _ in names) == len(FILES)
    assert all((far / name).exists() for name in FILES)
    assert len(proxy.seen) == before <= 3


def test_large_objects_are_read_in_parts_of_one_version(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "WHOLE", 1000)
    monkeypatch.setattr(stores, "RANGE", 64)
    data = random.Random(0).randbytes(5000)
    stores.put(f"{bucket}/big", data)
    with place(f"{bucket}/big").open("rb") as file:
        assert file.read(10) == data[:10]
        file.seek(4990)
        assert file.read() == data[4990:] and file.tell() == 5000
        file.seek(-5000, os.SEEK_END)
        assert file.read() == data
        file.seek(0)
        stores.put(f"{bucket}/big", data[::-1])
        with pytest.raises(Changed):
            file.read()
    assert part_of(f"{bucket}/big", 4998, 10) == data[::-1][4998:] and head_of(f"{bucket}/big", 3) == data[::-1][:3]
    assert part_of(f"{bucket}/big", 5000, 10) == b""


def test_an_object_that_changes_under_a_cut_answer_is_no_mixture(bucket: str, proxy: Proxy) -> None:
    old, new = b"a" * 100_000, b"b" * 100_000
    stores.put(f"{bucket}/film", old)
    cut = Fault(lambda m, p: m == "GET" and p.endswith("/film"), cut_at=50_000, times=1)
    proxy.faults.append(cut)
    assert place(f"{bucket}/film").read_bytes() == old  # the rest is fetched again
    assert cut.times == 0
    proxy.faults[:] = [
        Fault(cut.when, cut_at=50_000, times=1, before=lambda: stores.put(f"{bucket}/film", new)),
    ]
    with pytest.raises(Changed):
        place(f"{bucket}/film").read_bytes()


def test_busy_answers_are_tried_again(bucket: str, proxy: Proxy) -> None:
    proxy.faults.append(Fault(lambda m, p: True, status=503, times=3))
    stores.put(f"{bucket}/x", b"1")
    proxy.faults[:] = [Fault(lambda m, p: m == "GET", status=503, times=3)]
    assert place(f"{bucket}/x").read_bytes() == b"1"
    assert proxy.faults[0].times == 0


def test_a_store_that_stays_away(bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "TRIES", 1)
    stores._store.cache_clear()
    proxy.faults.append(Fault(lambda m, p: True, status=503))
    with pytest.raises(MegptError) as raised:
        place(f"{bucket}/x").read_bytes()
    assert raised.value.what == f"{bucket} does not answer as it should" and raised.value.exit_code == 1
    assert str(raised.value.cause).startswith("HTTP 503") and "secret" not in str(raised.value)


def test_a_store_that_is_not_there(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(stores, "TRIES", 1)
    stores._store.cache_clear()
    with pytest.raises(MegptError) as raised:
        place(f"{bucket}/x").exists()
    assert str(raised.value.cause).startswith("no connection, also after")


def test_a_store_whose_settings_are_missing(monkeypatch: pytest.MonkeyPatch, proxy: Proxy) -> None:
    for name in list(os.environ):
        if name.startswith("AZURE_"):
            monkeypatch.delenv(name)
    with pytest.raises(InputError, match="az://box cannot be opened"):
        place("az://box/x").exists()


def test_slow_answers_are_waited_for_or_asked_again(bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    stores.put(f"{bucket}/x", b"1")
    monkeypatch.setattr(stores, "REQUEST_S", 2)
    stores._store.cache_clear()
    proxy.faults.append(Fault(lambda m, p: m == "GET", delay_s=0.5))
    assert place(f"{bucket}/x").read_bytes() == b"1"
    proxy.faults[:] = [Fault(lambda m, p: m == "GET", delay_s=30, times=1)]
    began = time.monotonic()
    assert place(f"{bucket}/x").read_bytes() == b"1"
    assert time.monotonic() - began < 25


def test_no_rights(bucket: str, proxy: Proxy) -> None:
    proxy.faults.append(Fault(lambda m, p: True, status=403))
    with pytest.raises(PermissionError) as raised:
        place(f"{bucket}/x").exists()
    shown = screen(raised.value)
    assert isinstance(shown, InputError) and shown.what == f"no right to read {bucket}/x"
    assert shown.cause == "the credentials have no right to read there"
    with pytest.raises(InputError, match=f"no right to write {bucket}/y"):
        write_json(place(f"{bucket}/y"), {})
    assert screen(PermissionError(13, "denied", "/local/path")) is None


def test_credentials_that_are_not_set_are_named(bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    shown = storage_error(PermissionError(13, "write", f"{bucket}/y"), place(f"{bucket}/y"))
    assert shown.cause == "AWS_ACCESS_KEY_ID is not set"


def test_no_bucket(proxy: Proxy) -> None:
    with pytest.raises(InputError, match="no bucket at s3://missing-bucket"):
        place("s3://missing-bucket/x").exists()


def test_a_put_is_whole_or_absent(bucket: str) -> None:
    path = place(f"{bucket}/out/table")
    with pytest.raises(ZeroDivisionError), write_aside(path) as temporary:
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert not path.exists() and not temporary.exists()
    for content, new, kept in ((b"one", True, b"one"), (b"two", True, b"one"), (b"three", False, b"three")):
        with write_aside(path, new=new) as temporary:
            temporary.write_bytes(content)
        assert path.read_bytes() == kept
    big = os.urandom(stores.PUT_PART + 1000)
    with write_aside(path) as temporary:
        temporary.write_bytes(big)
    assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(big).digest()
    with pytest.raises(OSError, match="can only be put whole"):
        path.open("w")
    path.unlink()
    with pytest.raises(FileNotFoundError):
        path.unlink()
    path.unlink(missing_ok=True)


def test_a_copy_is_fetched_once_and_again_when_it_changed(bucket: str, tree: Path, proxy: Proxy) -> None:
    put_tree(tree, place(f"{bucket}/tree"))
    stores.put(f"{bucket}/tree/empty", b"")
    folder = local_folder(f"{bucket}/tree/", skip=("z",))
    assert folder.name == "tree"
    found = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert found == sorted([*(name for name in FILES if not name.startswith("z/")), "empty"])
    proxy.seen.clear()
    assert local_folder(f"{bucket}/tree", skip=("z",)) == folder
    assert [method for method, _ in proxy.seen] == ["GET"]  # the listing alone
    stores.put(f"{bucket}/tree/a.csv", b"other")
    assert (local_folder(f"{bucket}/tree", skip=("z",)) / "a.csv").read_bytes() == b"other"
    with pytest.raises(InputError, match=f"nothing at {bucket}/nothing"):
        here(f"{bucket}/nothing")


def test_copies_make_room_the_longest_unused_first(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(3):
        stores.put(f"{bucket}/c{n}/weights", bytes([n]) * 1000)
    copies = []
    monkeypatch.setenv("MEGPT_CACHE_GB", "0.0000025")
    for n in range(3):
        copies.append(local_folder(f"{bucket}/c{n}"))
        os.utime(copies[-1].parent, (n, n))
        if n == 1:  # this process does not use the first any more; the second it does
            cache._held.pop(copies[0].parent).close()
    assert [copy.exists() for copy in copies] == [False, True, True]


def test_a_read_of_a_changed_copy_is_an_error(bucket: str, proxy: Proxy) -> None:
    stores.put(f"{bucket}/c/weights", b"1" * 10)
    proxy.faults.append(
        Fault(lambda m, p: m == "GET" and "list-type" in p, before=lambda: stores.put(f"{bucket}/c/weights", b"2" * 10))
    )
    with pytest.raises(MegptError, match="changed while it was read"):
        local_folder(f"{bucket}/c")
