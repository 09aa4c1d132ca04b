"""Films inside zip and tar archives, read in place.

- a film comes out of zip, tar, tar.gz and gz as it went in, in any order
- a member whose path leads out, that is encrypted, or that unfolds to too much is refused with its reason
- a damaged or cut-off archive is an unreadable film, and never more than that
- a uri names any path and member, and comes back as it was
"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zipfile

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from make_films import gradient, png

from megpt.films import members as module
from megpt.films import unfolded
from megpt.films.decode import UnreadableFilm, load_film
from megpt.films.members import from_uri, members, to_uri
from megpt.study import View

FILMS = {f"day/{n}.png": png(gradient(20 + n)) for n in range(4)}


def load(uri):
    return load_film(View("x", uri=uri), size=None, max_pixels=10**6)


def make_tar(path, films=FILMS, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in films.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    return str(path)


def make_zip(path, films=FILMS):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in films.items():
            archive.writestr(name, data)
    return str(path)


def refusals(path):
    return {member.name: member.refused for member in members(path)}


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_films_of_an_archive(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    name = make_zip(path) if kind == "zip" else make_tar(path, mode="w" + kind[3:].replace(".", ":"))
    assert refusals(name) == dict.fromkeys(FILMS, "")
    for number in (3, 0, 2, 1, 1):
        assert load(f"{name}!day/{number}.png").size == (48, 20 + number)
    with pytest.raises(UnreadableFilm, match=r"^no such member in the archive$"):
        load(f"{name}!day/9.png")


@given(st.integers(0, 2 * 2**20 + 99), st.lists(st.tuples(st.integers(0, 2 * 2**20 + 200), st.integers(0, 2**20))))
def test_an_unfolded_stream_reads_as_a_file_does(size, steps):
    data = os.urandom(1000) * (size // 1000) + os.urandom(size % 1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unfolded, "REMEMBERED", 1)
        plain, stream = io.BytesIO(data), unfolded.UnfoldedFile(io.BytesIO(data), 1 << 30)
        for offset, count in steps:
            plain.seek(offset)
            stream.seek(offset)
            assert (stream.read(count), stream.tell()) == (plain.read(count), plain.tell())


def test_going_back_a_little_unfolds_nothing_again(tmp_path, monkeypatch):
    path, sought = make_tar(tmp_path / "a.tgz", mode="w:gz"), []
    monkeypatch.setattr(gzip.GzipFile, "seek", lambda *args: sought.append(args))
    for number in (3, 0, 2):
        load(f"{path}!day/{number}.png")
    assert sought == []


def test_a_film_that_is_packed_alone(tmp_path):
    path = tmp_path / "film.dcm.gz"
    path.write_bytes(gzip.compress(png(gradient(33))))
    assert list(refusals(str(path))) == ["film.dcm"]
    assert load(f"{path}!film.dcm").size == (48, 33)


def test_an_archive_that_is_gone_is_a_missing_file(tmp_path):
    with pytest.raises(UnreadableFilm, match=r"^missing file$"):
        load(f"{tmp_path}/gone.zip!a")


def test_a_film_whose_name_has_an_exclamation_mark(tmp_path):
    (tmp_path / "a!b.png").write_bytes(png())
    assert load(f"{tmp_path}/a!b.png").size == (48, 40)


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_members_that_lead_out(tmp_path, make):
    path = make(tmp_path / "a", {"../out.png": png(), "/etc/passwd": png(), "in.png": png(), "C:\\x.png": png()})
    out = "archive member whose path leads out of the archive"
    assert list(refusals(path).values()) == [out, out, "", out]
    with pytest.raises(UnreadableFilm, match=rf"^{out}$"):
        load(f"{path}!../out.png")


def test_a_zip_bomb(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"bomb": bytes(80 << 20), "film.png": png()})
    assert refusals(path) == {"bomb": "archive member that unfolds to too many bytes", "film.png": ""}
    assert load(f"{path}!film.png").size == (48, 40)


def test_a_tar_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RATIO_FROM", 1 << 20)
    path = make_tar(tmp_path / "a.tgz", {"film.png": png(), "bomb": bytes(8 << 20), "last": b"x"}, mode="w:gz")
    found = members(path)
    assert next(found).name == "film.png"
    with pytest.raises(UnreadableFilm, match=r"^archive member that unfolds to too many bytes$"):
        list(found)


def test_a_tar_header_of_gigabytes(tmp_path):
    about = tarfile.TarInfo("x")
    about.type, about.size = tarfile.XHDTYPE, 3 << 30
    (tmp_path / "a.tar").write_bytes(about.tobuf() + bytes(4096))
    with pytest.raises(UnreadableFilm, match="too many bytes"):
        refusals(str(tmp_path / "a.tar"))


def test_encrypted_members(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"a.png": png()})
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    assert refusals(path) == {"a.png": "encrypted archive member"}


def test_a_member_without_a_name_hides_no_other(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"a.png": png(), "b.png": png()})
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[data.index(b"PK\x01\x02") + 46] = 0
    (tmp_path / "a.zip").write_bytes(data)
    assert refusals(path) == {"member 1": "archive member without a name", "b.png": ""}


@given(st.integers(0, 2000), st.sampled_from(["zip", "tar", "tgz"]))
@example(where=701, kind="zip")
def test_a_cut_or_damaged_archive(tmp_path_factory, where, kind):
    path = tmp_path_factory.mktemp("cut") / "a"
    make_zip(path) if kind == "zip" else make_tar(path, mode="w:gz" if kind == "tgz" else "w")
    data = path.read_bytes()
    for damaged in (data[: where % len(data)], data[:where] + b"\xff\0\xff" + data[where + 3 :]):
        path.write_bytes(damaged)
        try:
            for member in members(str(path)):
                load(to_uri(str(path), member.name))
        except UnreadableFilm as error:
            assert str(path) not in error.reason
    path.unlink()


@given(st.binary(min_size=1, max_size=20), st.none() | st.text(max_size=10))
def test_uris_come_back(name, member):
    path = "/" + os.fsdecode(name.replace(b"\0", b"").replace(b"/", b"_"))
    uri = to_uri(path, member)
    uri.encode()
    assert from_uri(uri) == (path, member)
