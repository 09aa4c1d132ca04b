"""Films that `prepare` leaves out, and films inside other files.

- each unreadable film is a row of films_failed.parquet, of studies that stay and of studies that fail
- a report does not stay with the lateral film when the frontal one is lost, unless prepare.lateral_alone
- films inside a tar or a Parquet table are read by shards, embedded by `link`, and can be fetched again after a failure
"""

from __future__ import annotations

import io
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from make_films import jpeg, png, write

from megpt.config import DataConfig, PrepareConfig
from megpt.data.positions import side_of, side_of_name
from megpt.data.prepare import WORK, clear, list_shards, merge_failed, merge_failed_films, prepare_shard, prepare_study
from megpt.data.sources import open_source
from megpt.data.studies import read_studies
from megpt.films.decode import UnreadableFilm
from megpt.study import FILMS_FAILED_SCHEMA, Study, View

LIMIT = 10**7


def prepared(tmp_path, archive, **options):
    source, out = open_source(archive, data=DataConfig()), tmp_path / "out"
    shards = list_shards(out / WORK / "plan", source.listed(), shard_size=2, seed=0, source=source)
    settings = PrepareConfig(image_size=16, **options)
    marks = [prepare_shard(out, shards, s, settings, archive=source.root, max_pixels=LIMIT) for s in shards]
    merge_failed(out, shards), merge_failed_films(out, shards)
    return out, marks


def test_every_unreadable_film_is_a_row(tmp_path):
    archive = tmp_path / "archive"
    write(archive / "p/s1/good.png", png())
    write(archive / "p/s1/cut.jpg", jpeg()[:300])
    write(archive / "p/s2/empty.png", b"")
    write(archive / "p/s2/text.png", b"no film")
    out, marks = prepared(tmp_path, archive)
    table = pq.read_table(out / "films_failed.parquet")
    assert table.schema.equals(FILMS_FAILED_SCHEMA)
    rows = {(row["study_id"], row["image_id"]): row["reason"] for row in table.to_pylist()}
    assert set(rows) == {("p/s1", "p/s1/cut.jpg"), ("p/s2", "p/s2/empty.png"), ("p/s2", "p/s2/text.png")}
    assert rows["p/s2", "p/s2/empty.png"] == "empty file"
    assert [(m["films"], m["films_dropped"], m["failed"]) for m in marks] == [(1, 1, 1)]
    clear(out)
    assert sorted(p.name for p in out.iterdir()) == [".work", "data", "failed.parquet", "films_failed.parquet"]


def test_no_unreadable_film(tmp_path):
    write(tmp_path / "archive/p/s1/good.png", png())
    out, _ = prepared(tmp_path, tmp_path / "archive")
    assert pq.read_table(out / "films_failed.parquet").num_rows == 0


@pytest.mark.parametrize(
    "positions, report, kept",
    [
        (("PA", "LATERAL"), "Clear.", False),
        (("FRONTAL", "LL"), "Clear.", False),
        (("AP", "LAO"), "Clear.", False),
        (("PA", "AP"), "Clear.", True),
        (("PA", ""), "Clear.", True),
        (("LATERAL", "PA"), "Clear.", True),
        (("", "LATERAL"), "Clear.", True),
        (("PA", "LATERAL"), None, True),
    ],
)
def test_a_lateral_left_alone(positions, report, kept):
    views = (View("lost", positions[0], data=b""), View("left", positions[1], data=png()))
    study, options = Study("s", views=views, report=report), PrepareConfig(image_size=16)
    if kept:
        assert [v.image_id for v in prepare_study(study, options, max_pixels=LIMIT).views] == ["left"]
    else:
        with pytest.raises(UnreadableFilm) as caught:
            prepare_study(study, options, max_pixels=LIMIT)
        assert caught.value.reason == "the frontal film: empty file (prepare.lateral_alone=true keeps the others)"
        allowed = options.model_copy(update={"lateral_alone": True})
        assert prepare_study(study, allowed, max_pixels=LIMIT).report == report


@pytest.mark.parametrize(
    "position, side",
    [
        *(("PA", "frontal"), ("ap", "frontal"), ("AP_HORIZONTAL", "frontal"), ("Frontal", "frontal")),
        *(("POSTERO_ANTERIOR", "frontal"), ("AP AXIAL", "frontal"), ("LATERAL", "lateral"), ("LL", "lateral")),
        *(("L", "lateral"), ("LEFT LATERAL", "lateral"), ("LAO", "other"), ("COSTAL", "other"), ("", ""), ("UNK", "")),
    ],
)
def test_sides(position, side):
    assert side_of(position) == side


@pytest.mark.parametrize(
    "name, side", [("view1_frontal", "frontal"), ("s1_lat", "lateral"), ("paul", ""), ("ap-2", "frontal"), ("0001", "")]
)
def test_sides_by_name(name, side):
    assert side_of_name(name) == side


# --- films inside other files


def make_archive(folder, kind):
    folder.mkdir()
    if kind == "parquet":
        image = pa.array([{"bytes": data} for data in (png(), b"", jpeg())], pa.struct([("bytes", pa.binary())]))
        pq.write_table(pa.table({"image": image, "text": ["a", "b", "c"]}), folder / "test.parquet", row_group_size=2)
        return
    with tarfile.open(folder / "test.tar", "w") as tar:
        for name, data in (("0.png", png()), ("0.txt", b"a"), ("1.png", b""), ("1.txt", b"b"), ("2.jpg", jpeg())):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("films", ["resize", "embed", "link"])
def test_films_inside_other_files(tmp_path, kind, films):
    make_archive(tmp_path / "archive", kind)
    out, marks = prepared(tmp_path, tmp_path / "archive", films=films)
    views = [view for study in read_studies(out) for view in study.views]
    assert len(views) == 2 and all(view.data and view.uri is None for view in views)
    if films != "resize":
        assert [view.data for view in views] == [png(), jpeg()]
    (row,) = pq.read_table(out / "failed.parquet").to_pylist()
    assert row["error"] == "empty file" and "bytes" not in row["views"][0]
    assert "#" in row["views"][0]["uri"]
    assert sum(mark["failed"] for mark in marks) == 1


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_file_of_films_that_is_gone(tmp_path, kind):
    make_archive(tmp_path / "archive", kind)
    source = open_source(tmp_path / "archive", data=DataConfig())
    shards = list_shards(tmp_path / "plan", source.listed(), shard_size=9, seed=0, source=source)
    next((tmp_path / "archive").iterdir()).rename(tmp_path / "archive/elsewhere")
    (shard,) = shards
    mark = prepare_shard(tmp_path / "out", shards, shard, PrepareConfig(), archive=source.root, max_pixels=LIMIT)
    assert mark["reasons"] == {"missing file": 3}


def test_failed_studies_with_films_inside_a_tar_are_a_source_again(tmp_path):
    make_archive(tmp_path / "archive", "tar")
    out, _ = prepared(tmp_path, tmp_path / "archive")
    again = open_source(out / "failed.parquet", data=DataConfig())
    shards = list_shards(tmp_path / "plan", again.listed(), shard_size=9, seed=0, source=again)
    (shard,) = shards
    mark = prepare_shard(tmp_path / "again", shards, shard, PrepareConfig(), archive=again.root, max_pixels=LIMIT)
    assert mark["reasons"] == {"empty file": 1}, "the film is looked for where it lies"
