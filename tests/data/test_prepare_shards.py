"""The shards of `prepare`, and what one shard of it writes.

- shards hold every study once, in order, at most `shard_size` each, whatever the archive's splits
- an archive without splits: a patient is in one split only, the seed decides, all is `test` if there are no reports
- a list that was cut off is made again, a finished one is loaded; repeated or empty ids and an empty archive are errors
- a table with films inside is listed without them; each study gets its own films back
- films are resized, embedded or linked; unreadable ones are dropped; a study without any left goes to failed.parquet
- an archive that is not mounted ends the shard; no film is reported as missing
- a shard with a mark is not prepared again; one killed between any two writes is, and gives the same files
"""

from __future__ import annotations

import io
import socket

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_films import gradient, jpeg, png, write
from PIL import Image

from megpt.config import DataConfig, PrepareConfig
from megpt.data import prepare
from megpt.data.prepare import clear, list_shards, marks, merge_failed, prepare_shard, unfinished
from megpt.data.shards import ShardList
from megpt.data.sources import open_source
from megpt.data.studies import Listed, read_studies
from megpt.errors import InputError, MegptError
from megpt.films.decode import UnreadableFilm
from megpt.study import FAILED_SCHEMA, Study, View

LIMIT = 10**7


def make_list(folder, studies, *, shard_size, seed, source=None):
    return list_shards(folder, map(Listed, studies), shard_size=shard_size, seed=seed, source=source)


def ids_of(shards):
    return {shard.name: [listed.study.study_id for listed in shards.read(shard)] for shard in shards}


def test_shards_follow_the_archives_splits(tmp_path):
    splits = ["train", "test", "train", "val", "train", "train"]
    studies = [Study(f"s{n}", f"p{n}", split=split) for n, split in enumerate(splits)]
    shards = make_list(tmp_path / "plan", studies, shard_size=3, seed=0)
    assert ids_of(shards) == {
        "train-00000": ["s0", "s2", "s4"],
        "train-00001": ["s5"],
        "val-00000": ["s3"],
        "test-00000": ["s1"],
    }
    assert (shards.studies, len(shards)) == (6, 4)
    assert (shards.notes["split_by"], shards.notes["patients_in_two_splits"]) == ("archive", 0)
    assert ShardList.load(tmp_path / "plan") == shards


def placed(shards):
    return {listed.study.study_id: shard.split for shard in shards for listed in shards.read(shard)}


@settings(max_examples=25)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.integers(0, 3))
def test_a_patient_is_in_one_split(tmp_path_factory, patients, seed):
    folder = tmp_path_factory.mktemp("plan")
    studies = [Study(f"s{n}", f"p{patient}", report="r", split="") for n, patient in enumerate(patients)]
    shards = make_list(folder / "a", studies, shard_size=7, seed=seed)
    where = placed(shards)
    assert len(where) == len(patients) and shards.notes["split_by"] == "patient"
    assert len({(p, where[f"s{n}"]) for n, p in enumerate(patients)}) == len(set(patients))
    assert placed(make_list(folder / "b", studies, shard_size=2, seed=seed)) == where


def test_shares_and_seed(tmp_path):
    studies = [Study(f"s{n}", f"p{n}", report="r", split="") for n in range(2000)]
    by_seed = [placed(make_list(tmp_path / str(seed), studies, shard_size=500, seed=seed)) for seed in (1, 2)]
    shares = {split: list(by_seed[0].values()).count(split) / 2000 for split in ("train", "val", "test")}
    assert 0.77 < shares["train"] < 0.83 and 0.08 < shares["val"] < 0.12 and 0.08 < shares["test"] < 0.12
    assert by_seed[0] != by_seed[1]


def test_without_reports_all_is_test(tmp_path):
    shards = make_list(tmp_path / "p", [Study(f"s{n}", split="") for n in range(5)], shard_size=2, seed=0)
    assert set(placed(shards).values()) == {"test"} and shards.notes["split_by"] == "none"


def test_studies_that_the_archive_does_not_place_follow_their_patient(tmp_path):
    known = [Study(f"k{n}", f"p{n}", report="r", split="val") for n in range(20)]
    unknown = [Study(f"u{n}", f"p{n}", report="r", split="") for n in range(20)]
    shards = make_list(tmp_path / "p", [*unknown, *known], shard_size=50, seed=0)
    assert set(placed(shards).values()) == {"val"}


def test_patients_in_two_splits_are_counted(tmp_path):
    studies = [Study("a", "p", split="train"), Study("b", "p", split="test"), Study("c", "q", split="test")]
    assert make_list(tmp_path / "p", studies, shard_size=5, seed=0).notes["patients_in_two_splits"] == 1
    again = [*studies, Study("d", "p", split="train"), Study("e", "", split="val"), Study("f", "", split="test")]
    assert make_list(tmp_path / "q", again, shard_size=5, seed=0).notes["patients_in_two_splits"] == 1


@pytest.mark.parametrize("section", ["report", "findings", "impression"])
def test_one_report_is_enough_to_divide_by_patient(tmp_path, section):
    texts = [Study("a", split="", **{section: "Clear."}), *(Study(f"s{n}", split="") for n in range(99))]
    shards = make_list(tmp_path / "p", texts, shard_size=50, seed=0)
    assert shards.notes["split_by"] == "patient" and set(placed(shards).values()) == {"train", "val", "test"}


@pytest.mark.parametrize(
    "studies, message",
    [
        ([Study("a"), Study("b"), Study("a")], r"^two studies have the id 'a'\n"),
        ([Study("a"), Study("")], r"^the archive has a study without an id$"),
        ([], r"^the archive lists no studies\n"),
    ],
)
def test_archives_that_cannot_be_listed(tmp_path, studies, message):
    with pytest.raises(InputError, match=message):
        make_list(tmp_path / "plan", studies, shard_size=2, seed=0)
    assert ShardList.load(tmp_path / "plan") is None


def test_a_list_that_was_cut_off_is_made_again(tmp_path):
    def killed():
        yield from (Study(f"s{n}") for n in range(5))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_list(tmp_path / "plan", killed(), shard_size=2, seed=0)
    assert ShardList.load(tmp_path / "plan") is None
    shards = make_list(tmp_path / "plan", [Study("x")], shard_size=2, seed=0)
    assert ids_of(ShardList.load(tmp_path / "plan")) == ids_of(shards) == {"test-00000": ["x"]}
    assert sorted(p.name for p in (tmp_path / "plan").iterdir()) == ["plan.json", "test-00000.parquet"]


# --- one shard


@pytest.fixture
def archive(tmp_path):
    folder = tmp_path / "archive"
    write(folder / "films/good.png", png(gradient(80, 60)))
    write(folder / "films/good.jpg", jpeg(gradient(60, 80)))
    write(folder / "films/cut.jpg", jpeg(gradient(600, 800))[:2000])
    rows = [
        "s1,films/good.png,The heart is normal.,train",
        "s1,films/cut.jpg,The heart is normal.,train",
        "s2,films/absent.png,Clear.,train",
        "s3,films/good.jpg,,train",
        "s4,,Nothing.,train",
        "s5,../out.png,Out.,test",
    ]
    write(folder / "manifest.csv", "study_id,image_path,report,split\n" + "\n".join(rows) + "\n")
    return folder


def prepared(tmp_path, archive, **changes):
    options = PrepareConfig(image_size=32, **changes)
    source = open_source(archive, data=DataConfig())
    out = tmp_path / "out"
    shards = make_list(out / prepare.WORK / "plan", source.studies(), shard_size=10, seed=0, source=source)
    results = {
        shard.name: prepare_shard(out, shards, shard, options, archive=archive, max_pixels=LIMIT) for shard in shards
    }
    return out, shards, results, options


def test_resize(tmp_path, archive):
    out, shards, results, _ = prepared(tmp_path, archive)
    first, second = read_studies(out)
    assert (first.study_id, first.report, len(first.views)) == ("s1", "The heart is normal.", 1)
    sizes = [Image.open(io.BytesIO(s.views[0].data)).size for s in (first, second)]
    assert sizes == [(32, 43), (43, 32)]
    assert all(Image.open(io.BytesIO(s.views[0].data)).format == "JPEG" for s in (first, second))
    assert all(v.uri is None for s in (first, second) for v in s.views)
    assert results["train-00000"] == {
        "studies": 4,
        "failed": 2,
        "films": 2,
        "films_dropped": 1,
        "split": "train",
        "reasons": {"missing file": 1, "the study has no films": 1},
    }
    assert list(marks(out, shards)) == list(results.values())
    assert list((out / "data/split=test").iterdir()) == []


def test_failed_studies_are_a_source_again(tmp_path, archive):
    out, shards, _, _ = prepared(tmp_path, archive)
    path = merge_failed(out, shards)
    assert pq.read_schema(path).equals(FAILED_SCHEMA)
    rows = pq.read_table(path).to_pylist()
    assert [(r["study_id"], r["split"], r["error"]) for r in rows] == [
        ("s2", "train", "missing file"),
        ("s4", "train", "the study has no films"),
        ("s5", "test", "no path inside the archive"),
    ]
    write(archive / "films/absent.png", png())
    again = list(open_source(path, data=DataConfig()).studies())
    assert [(s.study_id, s.report) for s in again] == [("s2", "Clear."), ("s4", "Nothing."), ("s5", "Out.")]
    assert {"source": str(archive), "format": "manifest"}.items() <= rows[0].items()
    assert b"Clear." not in path.read_bytes() and "report" not in rows[0]
    assert prepare.prepare_study(again[0], PrepareConfig(image_size=32), max_pixels=LIMIT).views[0].data


def test_a_study_without_a_readable_film_has_the_first_films_reason(archive):
    study = Study("s", views=(View("a", uri=str(archive / "films/absent.png")), View("b", data=b"GIF89a")))
    with pytest.raises(UnreadableFilm, match=r"^missing file$"):
        prepare.prepare_study(study, PrepareConfig(), max_pixels=LIMIT)


def test_the_quality_of_stored_films(tmp_path, archive):
    sizes = []
    for quality in (60, 95):
        out, *_ = prepared(tmp_path / str(quality), archive, jpeg_quality=quality)
        (film,) = next(read_studies(out)).views
        sizes.append(len(film.data))
    assert sizes[0] < sizes[1]


def test_embed_keeps_the_files_as_they_are(tmp_path, archive):
    out, _, results, _ = prepared(tmp_path, archive, films="embed")
    data = [s.views[0].data for s in read_studies(out)]
    assert data == [(archive / "films/good.png").read_bytes(), (archive / "films/good.jpg").read_bytes()]
    assert results["train-00000"]["failed"] == 2 and results["train-00000"]["films_dropped"] == 1


def test_link_checks_headers_only(tmp_path, archive):
    out, _, results, _ = prepared(tmp_path, archive, films="link")
    uris = [[v.uri for v in s.views] for s in read_studies(out)]
    assert uris == [
        [str(archive / "films/good.png"), str(archive / "films/cut.jpg")],
        [str(archive / "films/good.jpg")],
    ]
    assert results["train-00000"]["failed"] == 2


def files_of(out):
    return {
        str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*.parquet")) if prepare.WORK not in str(p)
    }


@pytest.mark.parametrize("after", ["failed", "table", "mark"])
def test_killed_between_any_two_writes(tmp_path, archive, monkeypatch, after):
    whole, whole_shards, _, _ = prepared(tmp_path / "whole", archive)
    merge_failed(whole, whole_shards)
    source = open_source(archive, data=DataConfig())
    out = tmp_path / "cut"
    shards = make_list(out / prepare.WORK / "plan", source.studies(), shard_size=10, seed=0, source=source)
    options = PrepareConfig(image_size=32)
    with monkeypatch.context() as patch:
        real = prepare.write_aside
        suffix = {"failed": ".parquet", "table": ".json", "mark": None}[after]

        def killing(path, **options):
            if suffix is not None and path.suffix == suffix:
                raise KeyboardInterrupt
            return real(path, **options)

        patch.setattr(prepare, "write_aside", killing)
        if suffix is None:
            prepare_shard(out, shards, shards[0], options, archive=archive, max_pixels=LIMIT)
        else:
            with pytest.raises(KeyboardInterrupt):
                prepare_shard(out, shards, shards[0], options, archive=archive, max_pixels=LIMIT)
    assert len(unfinished(out, shards)) == (1 if suffix is None else 2)
    for shard in shards:
        prepare_shard(out, shards, shard, options, archive=archive, max_pixels=LIMIT)
    merge_failed(out, shards)
    assert unfinished(out, shards) == []
    assert files_of(out) == files_of(whole)


@pytest.mark.parametrize("mount_point", [False, True], ids=["no folder", "an empty mount point"])
def test_a_machine_without_the_archive(tmp_path, archive, mount_point):
    source, out, options = open_source(archive, data=DataConfig()), tmp_path / "out", PrepareConfig(image_size=32)
    shards = make_list(out / prepare.WORK / "plan", source.studies(), shard_size=10, seed=0)
    archive.rename(tmp_path / "elsewhere")
    if mount_point:
        archive.mkdir()
    with pytest.raises(MegptError) as caught:
        prepare_shard(out, shards, shards[0], options, archive=archive, max_pixels=LIMIT)
    assert caught.value.exit_code == 1 and str(caught.value) == (
        f"the archive {archive} is not visible on node {socket.gethostname()}\n"
        "  cause: its file system is not mounted there, or was lost; finished shards are kept\n"
        "  next:  mount it, or remove the node from the cluster, then run the same command again: it resumes"
    )
    assert unfinished(out, shards) == list(shards) and not files_of(out)
    if mount_point:
        archive.rmdir()
    (tmp_path / "elsewhere").rename(archive)
    assert prepare_shard(out, shards, shards[0], options, archive=archive, max_pixels=LIMIT)["failed"] == 2


def test_a_done_shard_is_not_done_again(tmp_path, archive):
    out, shards, results, options = prepared(tmp_path, archive)
    table = out / "data/split=train" / "part-00000.parquet"
    table.write_bytes(b"untouched")
    assert prepare_shard(out, shards, shards[0], options, archive=archive, max_pixels=LIMIT) == results["train-00000"]
    assert table.read_bytes() == b"untouched"


def test_clear_removes_what_killed_runs_left(tmp_path, archive):
    out, _, _, _ = prepared(tmp_path, archive)
    leftover = write(out / ".part-00007.parquet.host.1.tmp", b"half")
    half = write(out / prepare.WORK / "done" / ".test-00000.json.host.1.tmp", b"half")
    plan = sorted((out / prepare.WORK / "plan").iterdir())
    clear(out)
    assert not leftover.exists() and not half.exists()
    assert sorted((out / prepare.WORK / "plan").iterdir()) == plan, "the next start takes up what is new"
    assert sorted(p.name for p in (out / "data").iterdir()) == ["split=train"]
    assert [p.name for p in (out / "data/split=train").iterdir()] == ["part-00000.parquet"]
