"""The shard list that `prepare` and `generate` share.

- any number of studies, splits and shard sizes: each study is in one shard, in order; a list is read back the same
- small shards share a file and a row group, large ones have their own; no shard is cut
- films inside a table are fetched by row, in any order, and a table that changed since is refused
- an interrupted list is absent; a new one replaces what it left
- memory does not grow with the number of studies
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megpt.config import DataConfig
from megpt.data.ids import unique
from megpt.data.shards import ShardList, ShardListWriter
from megpt.data.sources import open_source
from megpt.data.studies import Listed, with_films, write_studies
from megpt.errors import InputError, MegptError
from megpt.study import Study, View


def make(folder: Path, splits: list[str], shard_size: int) -> ShardList:
    with ShardListWriter(folder, shard_size) as writer:
        for number, split in enumerate(splits):
            writer.add(Listed(Study(f"s{number:05d}", split=split)), split)
        return writer.finish(format="any")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["train", "val", "test"]), min_size=1, max_size=40), st.integers(1, 12))
def test_each_study_is_in_one_shard(tmp_path_factory, splits: list[str], size: int) -> None:
    shards = make(tmp_path_factory.mktemp("list"), splits, size)
    assert ShardList.load(shards.folder) == shards and shards.studies == len(splits)
    found = [(shard.split, entry.study.study_id) for shard in shards for entry in shards.read(shard)]
    assert sorted(name for _, name in found) == [f"s{n:05d}" for n in range(len(splits))]
    for split in set(splits):
        assert [name for of, name in found if of == split] == [
            f"s{n:05d}" for n, of in enumerate(splits) if of == split
        ]
    assert [[entry.study.study_id for entry in shards.read(shard)] for shard in shards] == list(shards.study_ids())
    assert all(1 <= shard.studies <= size for shard in shards) and len(list(shards)) == len(shards)
    assert len({shard.name for shard in shards}) == len(shards)
    for position in (-1, len(shards)):
        with pytest.raises(IndexError):
            shards[position]


@pytest.mark.parametrize("shard_size, files, groups", [(1, 3, 10), (7, 3, 10), (600, 3, 8), (7000, 2, 1)])
def test_small_shards_share_a_file(tmp_path: Path, shard_size: int, files: int, groups: int) -> None:
    shards = make(tmp_path, [""] * 10_001, shard_size)
    parts = sorted(tmp_path.glob("part-*.parquet"))
    assert [path.name for path in parts] == [f"part-{n:06d}.parquet" for n in range(files)]
    assert pq.ParquetFile(parts[0]).num_row_groups == groups
    for number in (0, 1, len(shards) // 2, len(shards) - 1):
        ids = [f"s{n:05d}" for n in range(number * shard_size, min((number + 1) * shard_size, 10_001))]
        shard = shards[number]
        assert [entry.study.study_id for entry in shards.read(shard)] == ids and len(ids) == shard.studies
        assert (shard.number, shard.name) == (number, f"part-{number:06d}")
    assert [name for names in shards.study_ids() for name in names] == [f"s{n:05d}" for n in range(10_001)]


def test_later_segments_begin_new_files_and_shards(tmp_path: Path) -> None:
    """The record allows a list to grow at its end, without a change to what is there."""
    shards = ShardList(tmp_path, 2, (("train", 3), ("test", 1), ("train", 5001), ("train", 1)))
    assert [(s.name, s.studies, s.file, s.row) for s in list(shards)[:4]] == [
        ("train-00000", 2, "train-00000.parquet", 0),
        ("train-00001", 1, "train-00000.parquet", 2),
        ("test-00000", 1, "test-00000.parquet", 0),
        ("train-00002", 2, "train-00001.parquet", 0),
    ]
    assert [(s.name, s.studies, s.file, s.row) for s in list(shards)[-2:]] == [
        ("train-02502", 1, "train-00002.parquet", 0),
        ("train-02503", 1, "train-00003.parquet", 0),
    ]


def test_films_inside_a_table(tmp_path: Path) -> None:
    studies = [
        Study(f"s{n}", views=tuple(View(f"f{n}{v}", data=b"%d-%d" % (n, v)) for v in range(n % 3)), split="train")
        for n in range(9)
    ]
    write_studies(tmp_path / "table", "train", studies[:5], 0)
    write_studies(tmp_path / "table", "train", studies[5:], 1)
    source = open_source(tmp_path / "table", data=DataConfig())
    listed = list(source.listed())
    assert all(view.data is None for entry in listed for view in entry.study.views)
    assert list(with_films(listed)) == studies
    mixed = [listed[7], Listed(Study("alone")), listed[2], listed[8], listed[1]]
    assert list(with_films(mixed)) == [studies[7], Study("alone"), studies[2], studies[8], studies[1]]

    write_studies(tmp_path / "table", "train", studies[:1], 1)
    path = tmp_path / "table" / "data/split=train" / "part-00001.parquet"
    for entry in (listed[5], listed[7]):  # another study's row now, and no row at all
        with pytest.raises(MegptError) as caught:
            list(with_films([entry]))
        assert str(caught.value) == (
            f"{path} does not have the films of study {entry.study.study_id!r}\n"
            f"  where: row {entry.row}\n"
            "  cause: the table has changed since this job was started\n"
            "  next:  choose another output=PATH, which starts over"
        )


def test_another_study_in_the_row_is_not_taken_for_it(tmp_path: Path) -> None:
    films = (View("film", data=b"x"),)
    write_studies(tmp_path / "table", "train", [Study("a", views=films), Study("b", views=films)], 0)
    listed = list(open_source(tmp_path / "table", data=DataConfig()).listed())
    write_studies(tmp_path / "table", "train", [Study("b", views=films), Study("a", views=films)], 0)
    with pytest.raises(MegptError, match=r"does not have the films of study 'a'\n  where: row 0\n"):
        list(with_films(listed))


def test_a_list_that_grows(tmp_path: Path) -> None:
    base = make(tmp_path, ["train"] * 3 + ["test"], 2)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.parquet")}
    (tmp_path / "train-00007.parquet").write_bytes(b"of a writer that was killed")
    with ShardListWriter(tmp_path, 2, base) as writer:
        for number in (1, 7):
            writer.add(Listed(Study(f"s{number:05d}", split="train"), state=b"now"), "train")
        grown = writer.finish(superseded={"train-00000.parquet": [1]}, format="any")
    assert ShardList.load(tmp_path) == grown and (grown.studies, len(grown), len(base)) == (5, 4, 3)
    assert before.items() <= {path: path.read_bytes() for path in tmp_path.glob("*.parquet")}.items()
    assert not (tmp_path / "train-00007.parquet").exists()
    found = [(s.name, s.studies, s.rows, [e.study.study_id for e in grown.read(s)]) for s in grown]
    assert found == [
        ("train-00000", 1, 2, ["s00000"]),
        ("train-00001", 1, 1, ["s00002"]),
        ("test-00000", 1, 1, ["s00003"]),
        ("train-00002", 2, 2, ["s00001", "s00007"]),
    ]
    assert [names for *_, names in found] == list(grown.study_ids()) and grown[3] == list(grown)[3]
    assert grown.read(grown[3])[0].state == b"now" and grown.splits() == {"train": 4, "test": 1}


def test_an_interrupted_list_is_absent(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ShardListWriter(tmp_path, 2) as writer:
        for number in range(5003):
            writer.add(Listed(Study(f"s{number}")))
        raise KeyboardInterrupt
    assert ShardList.load(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["part-000000.parquet"]
    make(tmp_path, ["test"], 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "test-00000.parquet"]


def test_ids_are_unique() -> None:
    names = ["a", "A", "b\udcff", "ä", "a "]
    assert [entry.study.study_id for entry in unique(Listed(Study(name)) for name in names)] == names
    with pytest.raises(InputError, match=r"^two studies have the id 'b\\udcff'\n  where: here\n"):
        list(unique((Listed(Study(name)) for name in [*names, "b\udcff"]), where="here"))
    with pytest.raises(InputError, match=r"^the archive has a study without an id\n  where: here$"):
        list(unique([Listed(Study(""))], where="here"))


def test_memory_does_not_grow_with_the_archive() -> None:
    def peak(count: int) -> int:
        studies: Iterator[Listed] = (Listed(Study(f"study{n:09d}")) for n in range(count))
        tracemalloc.start()
        assert sum(1 for _ in unique(studies)) == count
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(20_000) < peak(200) + 20_000  # a set of ids would hold two megabytes
