"""The folder of a generation run.

- its shard list is written once, without the films' bytes, and read back; a cut-off one counts as absent
- shards are left until they have a file; a shard's file is whole or absent
- the status and its rate are those of the files since the last start
- failed.parquet has the failed studies with their films, as a source; run.json has counts, launches and versions
- a file that is missing, damaged, or holds other studies than its shard is refused by name
- a split without studies, a repeated id and an empty id are errors that name the archive
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from megpt import __version__
from megpt.config import DataConfig
from megpt.data.growth import Choice, Intake
from megpt.data.sources import Source, open_source
from megpt.data.studies import with_films, write_studies
from megpt.errors import InputError, MegptError
from megpt.generation.predictions import Predictions, finished_shards, read_run, remove_leftovers
from megpt.generation.run_status import record_launch
from megpt.study import FAILED_SCHEMA, PREDICTIONS_SCHEMA, Study, View


def study(number: int) -> Study:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 5), number, np.uint8)).save(file, "PNG")
    views = tuple(View(f"film{number}{side}", "PA", file.getvalue()) for side in "ab"[: 1 + number % 2])
    return Study(f"study{number:03d}", f"patient{number // 2}", views, report="clear" if number % 3 else None)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    write_studies(tmp_path / "archive", "test", map(study, range(30)), 0)
    write_studies(tmp_path / "archive", "train", [Study("other", "p", (View("f", data=b"x"),))], 0)
    return open_source(tmp_path / "archive", data=DataConfig())


def rows(studies: Iterable[Study], failed: Iterable[str] = ()) -> Iterator[dict[str, Any]]:
    for one in studies:
        error = "broken" if one.study_id in set(failed) else None
        yield {"study_id": one.study_id, "finish_reason": "error" if error else "stop", "error": error}


def test_the_list_is_written_once(source: Source, tmp_path: Path) -> None:
    created = Predictions.create(
        tmp_path / "out", source, split="test", shard_size=8, intake=Intake(choice=Choice(limit=20))
    )
    assert (created.shards.studies, len(created.shards), created.count([2])) == (20, 3, 4)
    assert {"source": f"{tmp_path}/archive", "format": "table"}.items() <= created.shards.notes.items()
    assert created.said()[1] == "the first 20 studies, split=test"
    assert Predictions.open(tmp_path / "out") == created
    listed = created.studies(1)
    assert [entry.study.study_id for entry in listed] == [f"study{n:03d}" for n in range(8, 16)]
    assert all(view.data is None for entry in listed for view in entry.study.views)
    assert list(with_films(listed)) == [study(n) for n in range(8, 16)]
    (tmp_path / "out" / "plan" / "plan.json").unlink()
    assert Predictions.open(tmp_path / "out") is None


def test_studies_without_a_split_belong_to_every_one(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "archive" / name).mkdir(parents=True)
        (tmp_path / "archive" / name / "film.dcm").write_bytes(b"")
    plain = open_source(tmp_path / "archive", data=DataConfig(format="folder"))
    for split in ("test", "all"):
        assert Predictions.create(tmp_path / split, plain, split=split, shard_size=2).shards.studies == 2


def test_it_is_said_how_much_of_the_archive_is_taken(tmp_path: Path) -> None:
    rows = "".join(f"{n},{n}.png,{split}\n" for n, split in enumerate(("train", "train", "val", "test")))
    (tmp_path / "manifest.csv").write_text(f"study_id,image_path,split\n{rows}")
    archive = open_source(tmp_path / "manifest.csv", data=DataConfig())

    def said(split: str, limit: int | None = None) -> str:
        out = tmp_path / f"{split}-{limit}"
        Predictions.create(out, archive, split=split, shard_size=2, intake=Intake(choice=Choice(limit=limit)))
        again = Predictions.open(out)
        assert again is not None
        found, taken = again.said()
        assert found.startswith("manifest: ")
        return taken

    assert said("test") == "1 of 4 studies, split=test"
    assert said("all") == "4 of 4 studies, split=all"
    assert said("all", 3) == "the first 3 studies, split=all"


def test_a_table_that_nobody_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "archive" / "s").mkdir(parents=True)
    (tmp_path / "archive" / "s" / "film.dcm").write_bytes(b"")
    (tmp_path / "archive" / "list.csv").write_text("colour\nred\n")
    archive = open_source(tmp_path / "archive", data=DataConfig())
    with pytest.raises(InputError, match=r"^list.csv: nothing was read from it\n"):
        Predictions.create(tmp_path / "out", archive, split="all", shard_size=2)
    assert Predictions.open(tmp_path / "out") is None


def test_shards_left(source: Source, tmp_path: Path) -> None:
    predictions = Predictions.create(tmp_path / "out", source, split="all", shard_size=10)
    assert (predictions.left(), predictions.finished(), finished_shards(tmp_path / "out")) == ([0, 1, 2, 3], [], set())

    def killed() -> Iterator[dict[str, Any]]:
        yield from rows(map(study, range(3)))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predictions.write_shard(1, killed())
    assert predictions.left() == [0, 1, 2, 3] and not list((tmp_path / "out" / "reports").iterdir())
    path = predictions.write_shard(1, rows(map(study, range(9, 19)), failed=["study010", "study012"]))
    assert path.name == "part-000001.parquet" and pq.read_schema(path).equals(PREDICTIONS_SCHEMA)
    assert (predictions.left(), predictions.finished(), predictions.count_failed(1)) == ([0, 2, 3], [1], 2)
    path.rename(path.with_name("part-000007.parquet"))  # of a longer list
    assert (predictions.left(), predictions.finished()) == ([0, 1, 2, 3], [])


def test_leftovers_are_removed(tmp_path: Path) -> None:
    names = (".run.json.host.1.tmp", "plan/.plan.json.host.1.tmp", ".part-000000.parquet.host.1.tmp")
    for name in (*names, "run.json", "plan/plan.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["plan.json", "run.json"]


def test_the_end_of_a_run(source: Source, tmp_path: Path) -> None:
    predictions = Predictions.create(tmp_path / "out", source, split="test", shard_size=8)
    record_launch(predictions.folder, started=1.0)
    with (tmp_path / "out" / "launches.jsonl").open("a") as file:
        file.write('{"started": 2.')  # cut off by a kill
    failed = ["study003", "study004", "study021"]
    for shard in predictions.left():
        predictions.write_shard(shard, rows((entry.study for entry in predictions.studies(shard)), failed))
    counts = predictions.finish(seconds=1.23456, config={"seed": 3}, model="mark")
    assert counts == {"studies": 30, "stop": 27, "length": 0, "error": 3}
    run = read_run(tmp_path / "out")
    assert list(run) == [
        *("megpt", "job", "model", "counts", "shards", "seconds", "launches", "versions", "config"),
    ]
    assert (run["megpt"], run["job"], run["model"], run["seconds"]) == (__version__, "generate", "mark", 1.235)
    assert run["counts"] == counts and run["launches"] == [{"started": 1.0}] and run["config"] == {"seed": 3}
    assert run["versions"].keys() == {"torch", "transformers", "timm", "ray", "pyarrow", "pillow"}
    path = tmp_path / "out" / "failed.parquet"
    assert pq.read_schema(path).equals(FAILED_SCHEMA)
    assert [row["error"] for row in pq.read_table(path).to_pylist()] == ["broken"] * 3
    again = list(open_source(path, data=DataConfig()).studies())
    assert again == [study(n) for n in (3, 4, 21)]


def test_the_rate_is_that_of_the_last_start(source: Source, tmp_path: Path) -> None:
    predictions = Predictions.create(tmp_path / "out", source, split="test", shard_size=8)
    assert predictions.status().lines() == [
        "stopped: 0 of 30 studies done, 0 failed, 30 left",
        "run the same command again: it resumes",
    ]
    for at in (50, 200):
        record_launch(predictions.folder, started=at)
    for shard, at in enumerate((100, 210, 220)):
        os.utime(predictions.write_shard(shard, rows([study(shard)], failed=["study001"])), (at, at))
    assert predictions.status().rate == 16 / 20
    assert predictions.status().lines()[:2] == [
        "stopped: 24 of 30 studies done, 1 failed, 6 left",
        "rate: 0.8 studies/s",
    ]
    (tmp_path / "out" / "_SUCCESS").touch()
    assert predictions.status().lines()[0].startswith("finished: 24 of 30")


def test_a_table_that_was_changed_is_not_called_complete(source: Source, tmp_path: Path) -> None:
    predictions = Predictions.create(
        tmp_path / "out", source, split="test", shard_size=2, intake=Intake(choice=Choice(limit=4))
    )
    predictions.write_shard(0, rows([study(0), study(1)]))
    second = predictions.path(1)
    with pytest.raises(MegptError) as missing:
        predictions.check()
    assert str(missing.value) == (
        f"{second} cannot be read\n"
        "  cause: it was deleted\n"
        "  next:  delete this one file and run the same command again"
    )
    predictions.write_shard(1, rows([study(2), study(3)]))
    assert predictions.check() == {"stop": 4}
    for others in ([study(2), study(1)], [study(2)], [study(3), study(2)], [study(2), study(3), study(3)]):
        predictions.write_shard(1, rows(others))
        with pytest.raises(MegptError) as exchanged:
            predictions.check()
        assert str(exchanged.value) == (
            f"{second} does not hold the studies of its shard\n"
            "  cause: something else has written or changed it\n"
            "  next:  delete this one file and run the same command again"
        )
    second.write_bytes(second.read_bytes()[:100])
    with pytest.raises(MegptError) as damaged:
        predictions.check()
    assert str(damaged.value).startswith(
        f"{second} cannot be read\n  cause: it was damaged after it was written (ArrowInvalid)\n"
    )


def test_archives_that_cannot_be_listed(source: Source, tmp_path: Path) -> None:
    def refusal(archive: Source, split: str = "test") -> str:
        with pytest.raises(InputError) as caught:
            Predictions.create(tmp_path / "out", archive, split=split, shard_size=2)
        assert Predictions.open(tmp_path / "out") is None
        return str(caught.value)

    assert refusal(source, "val") == (
        f"no study of split 'val' in {tmp_path}/archive\n"
        "  cause: the archive is empty, or its studies belong to other splits\n"
        "  next:  set generate.split=all"
    )
    (tmp_path / "nothing").mkdir()
    assert refusal(open_source(tmp_path / "nothing", data=DataConfig()), "all") == (
        f"no study in {tmp_path}/nothing\n"
        "  cause: read as folder, it lists none: an empty folder, or another one than was meant\n"
        "  next:  check source=PATH and data.format (docs/data.md)"
    )
    write_studies(tmp_path / "twice", "test", map(study, (1, 2, 1)), 0)
    assert refusal(open_source(tmp_path / "twice", data=DataConfig())) == (
        "two studies have the id 'study001'\n"
        f"  where: {tmp_path}/twice\n"
        "  cause: rows of one study must follow one another, and each id must name one study\n"
        "  next:  merge or rename them in the archive's table"
    )
    write_studies(tmp_path / "empty", "test", [Study("")], 0)
    assert refusal(open_source(tmp_path / "empty", data=DataConfig())).startswith(
        f"{tmp_path}/empty/data/split=test/part-00000.parquet has an empty study_id\n"
    )


def test_a_damaged_record(source: Source, tmp_path: Path) -> None:
    Predictions.create(tmp_path / "out", source, split="test", shard_size=2, intake=Intake(choice=Choice(limit=4)))
    record = tmp_path / "out" / "plan" / "plan.json"
    written = json.loads(record.read_text())
    assert {name: written[name] for name in ("studies", "shard_size", "format")} == {
        "studies": 4,
        "shard_size": 2,
        "format": "table",
    }
    for text in ("", "[]", '{"studies": 4}', '{"studies": "x", "shard_size": 2}'):
        record.write_text(text)
        with pytest.raises(MegptError, match=r"plan\.json is damaged\n"):
            Predictions.open(tmp_path / "out")
