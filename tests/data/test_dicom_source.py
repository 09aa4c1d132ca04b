"""DICOM trees: studies and patients by their UIDs, chest films only, nothing said of anybody.

- five exports of different shapes give each study once, with its views in order; everything else is counted by kind
- a tree that holds DICOM is `dicom`, never `folder`; other files in it are counted
- ids are UIDs and keyed hashes; no name or number from a header or a path is in an id, an error or a log
- the next run opens new files only, and gives a known patient the same id
- what cannot be used is an error row, and the rest is read
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from dicom_exports import SECRETS, film, other, write_exports
from make_films import encoded, png, write
from pydicom.uid import ComprehensiveSRStorage, DeflatedExplicitVRLittleEndian

from megpt.config import DataConfig, PrepareConfig
from megpt.data.prepare import list_shards, merge_failed, prepare_shard
from megpt.data.sources import open_source
from megpt.data.sources.dicom import scan
from megpt.data.sources.dicom.headers import read_header
from megpt.errors import InputError
from megpt.films.decode import UnreadableFilm, load_films

KEY = "a key of a department, long enough"


@pytest.fixture(autouse=True)
def keyed(monkeypatch):
    monkeypatch.setenv("MEGPT_SUBJECT_KEY", KEY)


def read(path, out=None, *, write=True, **data):
    source = open_source(path, data=DataConfig(**data))
    assert source.format == "dicom"
    if out is not None:
        out.mkdir(exist_ok=True)
        source.keep_in(out, write=write)
    return list(source.studies())


def views(studies):
    return {study.study_id: [view.position for view in study.views] for study in studies}


def put(path, data):
    return write(path, encoded(data))


# --- five exports


def test_exports_of_five_shapes(tmp_path, capsys):
    expected = write_exports(tmp_path / "in", 40)
    studies = read(tmp_path / "in", tmp_path / "out")
    assert views(studies) == {uid: positions for uid, positions in expected.items() if positions}
    assert len(studies) == 30
    assert all(load_films(study, size=8, max_views=None, max_pixels=10**6) for study in studies)
    left = pq.read_table(tmp_path / "out" / "left_out.parquet").to_pylist()
    assert {row["study_id"]: (row["kinds"], row["files"]) for row in left} == {
        uid: (["MR"], 3) if number % 8 == 3 else (["CR HAND"], 1)
        for number, uid in enumerate(expected)
        if expected[uid] is None
    }
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("dicom: 30 studies, 40 films, 0 files that cannot be used (")
    assert lines[1] == (
        "dicom: left out: 10 studies without a chest film; files by kind: "
        "MR 15, CR HAND 5, FOR PROCESSING 5, KO 5, PDF 5, repeated SOPInstanceUID 5"
    )
    assert lines[2] == "dicom: not DICOM films: DICOMDIR 1, other 2"


def test_nobody_is_named(tmp_path, capsys):
    write_exports(tmp_path / "in", 16)
    put(tmp_path / "in/SMITH/no_uid", film("1.2", 1, StudyInstanceUID=None))
    write(tmp_path / "in/SMITH/broken.dcm", b"\0" * 128 + b"DICM" + b"\x08\0\x18\0UI\xff\xff")
    for study_id in ("uid", "hash"):
        for study in read(tmp_path / "in", tmp_path / study_id, study_id=study_id):
            said = [study.study_id, study.subject_id, study.error, *(v.image_id + v.position for v in study.views)]
            assert not any(secret in text for text in said for secret in SECRETS)
            assert not study.study_id.startswith("1.2.") or study_id == "uid"
        stored = (tmp_path / study_id / "dicom_index.sqlite").read_bytes()
        assert b"PID-" not in stored.replace(b"SMITH_JOHN_PID-", b"").replace(b"SMITH_PID-", b""), "paths alone"
    assert not any(secret in capsys.readouterr().err for secret in SECRETS)


@pytest.mark.slow
def test_two_thousand_studies_and_the_next_day(tmp_path):
    expected = write_exports(tmp_path / "in", 2_000)
    assert views(read(tmp_path / "in", tmp_path / "out")) == {uid: v for uid, v in expected.items() if v}
    expected |= write_exports(tmp_path / "in", 200, first=2_000, name="-next-day")
    assert views(read(tmp_path / "in", tmp_path / "out")) == {uid: v for uid, v in expected.items() if v}


# --- what is a DICOM tree


def test_a_tree_with_one_dicom_file_among_pictures(tmp_path, capsys):
    write(tmp_path / "a/a.png", png())
    write(tmp_path / "a/notes.txt", "hello")
    put(tmp_path / "z/IM1", film("1.2.3", 1))
    assert views(read(tmp_path)) == {"1.2.3": [""]}
    assert "dicom: not DICOM films: PNG 1, other 1" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["film.dcm", "film", "1.2.840.113619"])
def test_one_file(tmp_path, name):
    assert views(read(put(tmp_path / name, film("1.2.3", 1, ViewPosition="AP")))) == {"1.2.3": ["AP"]}


def test_a_table_of_films_is_no_dicom_tree(tmp_path):
    put(tmp_path / "a.dcm", film("1.2.3", 1))
    write(tmp_path / "manifest.csv", "study_id,image_path\ns,a.dcm\n")
    assert open_source(tmp_path, data=DataConfig()).format == "manifest"


def test_modalities_can_be_chosen(tmp_path):
    put(tmp_path / "a", film("1.1", 1, Modality="CR"))
    put(tmp_path / "b", film("1.2", 1, Modality="XA"))
    assert list(views(read(tmp_path, modalities=["XA"]))) == ["1.2"]


def test_localizers_and_reports_beside_a_film(tmp_path, capsys):
    put(tmp_path / "a", film("1.1", 1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    put(tmp_path / "b", film("1.1", 2))
    put(tmp_path / "c", other("1.1", 3, modality="SR", sop_class=ComprehensiveSRStorage))
    (study,) = read(tmp_path)
    assert [view.image_id for view in study.views] == ["1.1.1.2"]
    assert "files by kind: SR 1, localizer 1" in capsys.readouterr().err


# --- ids


def test_the_key_is_made_once_and_hides_from_others(tmp_path, monkeypatch):
    put(tmp_path / "in/a", film("1.1", 1))
    monkeypatch.delenv("MEGPT_SUBJECT_KEY")
    (first,), (again,), (elsewhere,) = (read(tmp_path / "in", tmp_path / out) for out in ("a", "a", "b"))
    assert first.subject_id == again.subject_id != elsewhere.subject_id
    for name in ("subject_key", "dicom_index.sqlite"):
        assert stat.S_IMODE((tmp_path / "a" / name).stat().st_mode) == 0o600
    (tmp_path / "a" / "subject_key").chmod(0o644)
    with pytest.raises(InputError, match=r"^.*/a/subject_key can be read by others\n"):
        read(tmp_path / "in", tmp_path / "a")
    (tmp_path / "a" / "subject_key").unlink()
    with pytest.raises(InputError) as caught:
        read(tmp_path / "in", tmp_path / "a")
    assert str(caught.value) == (
        f"the patients' ids of {tmp_path}/a were made with another key\n"
        "  cause: MEGPT_SUBJECT_KEY has changed, or subject_key was deleted or replaced\n"
        "  next:  bring the key back, or choose another output=PATH (docs/data.md, DICOM)"
    )


def test_one_key_gives_the_same_ids_everywhere(tmp_path, monkeypatch):
    put(tmp_path / "in/a", film("1.1", 1))
    (first,), (second,) = (read(tmp_path / "in", tmp_path / out) for out in ("a", "b"))
    assert first.subject_id == second.subject_id
    assert len(first.subject_id) == 32
    assert not (tmp_path / "a" / "subject_key").exists()
    monkeypatch.setenv("MEGPT_SUBJECT_KEY", "short")
    with pytest.raises(InputError, match=r"^MEGPT_SUBJECT_KEY has fewer than 16 characters\n"):
        read(tmp_path / "in", tmp_path / "c")


def test_accession_numbers_and_patient_numbers_when_asked_for(tmp_path, capsys):
    for number, accession in enumerate(["A1", "A2", "A2", None]):
        put(tmp_path / f"in/{number}", film(f"1.{number}", 1, AccessionNumber=accession or ""))
    studies = read(tmp_path / "in", study_id="accession", subject_id="patient_id")
    assert (studies[0].study_id, studies[0].subject_id, studies[0].error) == ("A1", "PID-1", "")
    assert [s.error for s in studies[1:]] == [*["accession number of several studies"] * 2, "no accession number"]
    assert len({s.study_id for s in studies}) == 4
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("warning: data.study_id=accession: ")
    assert lines[1].startswith("warning: data.subject_id=patient_id: ")


def test_a_film_of_two_series_and_a_patient_of_two_studies(tmp_path):
    put(tmp_path / "a", film("1.1", 1, series=1, patient="X "))
    put(tmp_path / "b", film("1.1", 1, series=2, patient="X"))
    put(tmp_path / "c", film("1.2", 1, patient="X"))
    put(tmp_path / "d", film("1.3", 1, patient=""))
    studies = {study.study_id: study for study in read(tmp_path)}
    assert len(studies["1.1"].views) == 2
    assert studies["1.1"].subject_id == studies["1.2"].subject_id
    assert len({studies[name].subject_id for name in ("1.2", "1.3")}) == 2


# --- the next day


def test_the_next_run_opens_new_files_only(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(scan, "read_header", lambda head, whole: opened.append(1) or read_header(head, whole))
    for number in range(5):
        put(tmp_path / f"in/{number}", film(f"1.{number}", 1))
    first = read(tmp_path / "in", tmp_path / "out")
    assert len(opened) == 5
    assert read(tmp_path / "in", tmp_path / "out") == first
    assert len(opened) == 5
    put(tmp_path / "in/new", film("1.9", 1))
    put(tmp_path / "in/0", film("1.0", 7, ViewPosition="LATERAL"))
    os.utime(tmp_path / "in/0", ns=(1, 1))
    (tmp_path / "in/1").unlink()
    second = read(tmp_path / "in", tmp_path / "out")
    assert len(opened) == 7
    assert views(second) == {"1.0": ["LATERAL"], "1.2": [""], "1.3": [""], "1.4": [""], "1.9": [""]}
    assert {s.subject_id for s in second} == {s.subject_id for s in first}


def test_a_dry_run_reads_the_index_and_leaves_nothing(tmp_path, monkeypatch):
    put(tmp_path / "in/a", film("1.1", 1))
    monkeypatch.delenv("MEGPT_SUBJECT_KEY")
    read(tmp_path / "in", tmp_path / "empty", write=False)
    assert list((tmp_path / "empty").iterdir()) == []
    first = read(tmp_path / "in", tmp_path / "out")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert read(tmp_path / "in", tmp_path / "out", write=False) == first
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_a_damaged_index_is_built_again(tmp_path):
    put(tmp_path / "in/a", film("1.1", 1))
    first = read(tmp_path / "in", tmp_path / "out")
    write(tmp_path / "out/dicom_index.sqlite", b"SQLite format 3\0" + b"x" * 5000)
    assert read(tmp_path / "in", tmp_path / "out") == first


# --- what cannot be used


def test_a_uid_of_two_patients_and_files_without_one(tmp_path):
    put(tmp_path / "in/a", film("1.1", 1, patient="X"))
    put(tmp_path / "in/b", film("1.1", 2, patient="Y"))
    put(tmp_path / "in/c", film("1.2", 1))
    put(tmp_path / "in/d", film("1.3", 1, StudyInstanceUID=None))
    put(tmp_path / "in/e", film("1.4", 1, StudyInstanceUID="SMITH^JOHN"))
    write(tmp_path / "in/f.dcm", b"\0" * 128 + b"DICM" + b"\x08\0\x18\0UI\xff\xff")
    write(tmp_path / "in/g.dcm", b"")
    write(tmp_path / "in/h.dcm", b"no such thing")
    studies = read(tmp_path / "in", tmp_path / "out")
    assert {(Path(s.views[0].uri).name, s.error) for s in studies} == {
        ("a", "one StudyInstanceUID with several PatientIDs"),
        ("c", ""),
        ("d", "DICOM film without a StudyInstanceUID"),
        ("e", "DICOM film without a StudyInstanceUID"),
        ("f.dcm", "DICOM header that cannot be read"),
        ("g.dcm", "empty file"),
        ("h.dcm", "DICOM header that cannot be read"),
    }
    # The same through the shard list and a prepared shard: one study in the table, six error rows, nothing lost.
    shards = list_shards(tmp_path / "plan", map_listed(tmp_path / "in", tmp_path / "out"), shard_size=10, seed=0)
    settings = PrepareConfig(image_size=8)
    for shard in shards:
        mark = prepare_shard(tmp_path / "out", shards, shard, settings, archive=tmp_path / "in", max_pixels=10**6)
    assert (mark["studies"], mark["failed"]) == (7, 6)
    failed = pq.read_table(merge_failed(tmp_path / "out", shards)).to_pylist()
    assert {row["error"] for row in failed} == {s.error for s in studies if s.error}


def map_listed(path, out):
    source = open_source(path, data=DataConfig())
    source.keep_in(out)
    return source.listed()


def test_a_disc_whose_index_gives_one_uid_to_two_patients(tmp_path):
    from pydicom.fileset import FileSet

    index = FileSet()
    for number, patient in enumerate("XY"):
        index.add(film("1.1", number, patient=patient, StudyDate="20261126", StudyTime="080000", StudyID="1"))
    index.write(tmp_path)
    studies = read(tmp_path)
    assert [(s.study_id[:4], len(s.views), s.error) for s in studies] == [("1.1-", 1, ""), ("1.1-", 1, "")]
    assert len({s.study_id for s in studies}) == len({s.subject_id for s in studies}) == 2


def test_a_study_whose_films_cannot_be_read_is_not_left_out(tmp_path):
    put(tmp_path / "a", film("1.1", 1, Rows=None, PixelData=None))
    (study,) = read(tmp_path)
    with pytest.raises(UnreadableFilm, match="DICOM without an image"):
        load_films(study, size=8, max_views=None, max_pixels=10**6)


def test_a_deflated_header_is_read_within_bounds(tmp_path):
    data = film("1.1", 1, ViewPosition="PA")
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    put(tmp_path / "a", data)
    assert views(read(tmp_path)) == {"1.1": ["PA"]}


def test_bad_archives_beside_good_films(tmp_path, capsys):
    put(tmp_path / "in/a", film("1.1", 1))
    with zipfile.ZipFile(tmp_path / "in/b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("SMITH/bomb.dcm", bytes(80 << 20))
        archive.writestr("SMITH/IM1", encoded(film("1.2", 1)))
        archive.writestr("inner.zip", b"PK\x03\x04")
    with tarfile.open(tmp_path / "in/c.tar", "w") as archive:
        for name, study in (("../SMITH", "1.3"), ("IM1", "1.4")):
            data = encoded(film(study, 1))
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    packed = gzip.compress((tmp_path / "in/c.tar").read_bytes())
    write(tmp_path / "in/d.tgz", packed[: len(packed) // 2])
    write(tmp_path / "in/e.zip", b"PK\x03\x04 no archive")
    write(tmp_path / "in/f.dcm.gz", gzip.compress(encoded(film("1.5", 1))))
    studies = read(tmp_path / "in", tmp_path / "out")
    good = {study.study_id for study in studies if not study.error}
    assert good == {"1.1", "1.2", "1.4", "1.5"}
    assert sorted((Path(s.views[0].uri).name, s.error) for s in studies if s.error) == [
        ("b.zip", "archive member that unfolds to too many bytes"),
        ("c.tar", "archive member whose path leads out of the archive"),
        ("d.tgz", "damaged archive"),
        ("e.zip", "damaged archive"),
    ]
    assert len({s.study_id for s in studies}) == len(studies)
    assert all(load_films(s, size=8, max_views=None, max_pixels=10**6) for s in studies if not s.error)
    said = capsys.readouterr().err
    assert "dicom: not DICOM films: archive inside an archive 1" in said
    assert "SMITH" not in said + "".join(s.study_id + s.error for s in studies)


def test_a_deflated_header_that_unfolds_to_gigabytes(tmp_path):
    data = film("1.1", 1)
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    whole = encoded(data)
    start = 144 + int.from_bytes(whole[140:144], "little")
    # Eighty megabytes in one element before the identifiers, packed to less than a hundredth of that.
    text = b"\x08\0\x05\0UC\0\0" + (80 << 20).to_bytes(4, "little") + bytes(80 << 20)
    packer = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    write(tmp_path / "a", whole[:start] + packer.compress(text) + packer.flush())
    tracemalloc.start()
    (study,) = read(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 40 << 20
    tracemalloc.stop()
    assert study.error == "DICOM header that cannot be read"


def test_names_in_latin_1(tmp_path):
    put(tmp_path / "in" / os.fsdecode(b"M\xfcller!") / "IM1", film("1.1", 1))
    (study,) = read(tmp_path / "in", tmp_path / "out")
    assert study.views[0].uri.endswith("/M%FCller%21/IM1")
    assert load_films(study, size=8, max_views=None, max_pixels=10**6)
    list_shards(tmp_path / "plan", map_listed(tmp_path / "in", tmp_path / "out"), shard_size=10, seed=0)


def test_links_that_lead_out_are_counted(tmp_path, capsys):
    put(tmp_path / "secret", film("1.9", 1))
    put(tmp_path / "in/a", film("1.1", 1))
    (tmp_path / "in/b").symlink_to(tmp_path / "secret")
    (tmp_path / "in/c").symlink_to(tmp_path / "nowhere")
    put(tmp_path / "in/sub/.hidden", film("1.8", 1))
    (tmp_path / "in/d").symlink_to(tmp_path / "in/sub")
    assert list(views(read(tmp_path / "in"))) == ["1.1"]
    assert (
        "not DICOM films: broken link 1, hidden 1, link that leads out 1, link to a folder 1" in capsys.readouterr().err
    )
