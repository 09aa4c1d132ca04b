"""prepare: archive → studies/.

- an archive with broken films gives the table, failed.parquet and run.json; nothing is lost, nothing is there twice
- more failed studies than allowed: the table is complete, exit code 3, now and when run again
- a missing archive, an empty one, and one without a readable study: exit code 2, the text below, nothing left behind
- `fail_fast`: the job ends when too many have failed to be mended by the rest, exit code 1; the same command resumes
- dropped films are rows, with a limit of their own; a table that nobody read ends the job
- --dry-run and --limit
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from megpt.config import load_config
from megpt.data.studies import read_studies
from megpt.errors import TooManyFailed
from megpt.study import FAILED_SCHEMA
from ray_jobs.__main__ import main
from ray_jobs.prepare import Prepare

BROKEN = {3: b"", 7: b"not a film", 11: None}


def make_archive(folder: Path, studies: int, *, side: int = 48, broken: dict[int, bytes | None] = BROKEN) -> Path:
    """A manifest of patients with two studies each; some films are damaged, or absent where None."""
    (folder / "films").mkdir(parents=True)
    rows = ["study_id,image_path,subject_id,report"]
    for n in range(studies):
        path = folder / "films" / f"{n:04}.jpg"
        pixels = np.random.default_rng(n).integers(0, 255, (side // 8, side // 8), np.uint8)
        Image.fromarray(pixels).resize((side, side)).save(path)
        if n in broken:
            path.unlink()
            if broken[n] is not None:
                path.write_bytes(broken[n])
        rows.append(f"s{n:04},films/{n:04}.jpg,p{n // 2},Report number {n}.")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return folder


def config(source: Path, output: Path, *more: str):
    settings = ["prepare.shard_size=4", "prepare.image_size=32", "prepare.max_failed_fraction=0.5", *more]
    return load_config(None, [f"source={source}", f"output={output}", *settings])


def test_an_archive_with_broken_films(tmp_path, in_both_places, capfd):
    source, out = make_archive(tmp_path / "archive", 20), tmp_path / "out"
    assert Prepare.run(config(source, out)) == 0
    studies = list(read_studies(out))
    failed = pq.read_table(out / "failed.parquet")
    assert failed.schema.equals(FAILED_SCHEMA)
    errors = {row["study_id"]: row["error"] for row in failed.to_pylist()}
    assert errors == {
        "s0003": "empty file",
        "s0007": "not a JPEG, PNG, DICOM, TIFF, BMP, WebP or JPEG 2000 file",
        "s0011": "missing file",
    }
    assert sorted([*errors, *(s.study_id for s in studies)]) == [f"s{n:04}" for n in range(20)]
    assert len({(s.subject_id, s.split) for s in studies}) == len({s.subject_id for s in studies})
    run = json.loads((out / "run.json").read_text())
    assert run["counts"] == {"studies": 20, "failed": 3, "films": 17, "films_dropped": 0}
    assert (run["format"], run["split_by"]) == ("manifest", "patient")
    assert sum(split["studies"] for split in run["splits"].values()) == 20
    beside = [".lock", ".work", "README.md", "_SUCCESS", "events.jsonl", "failed.parquet"]
    beside += ["films_failed.parquet", "megpt.yaml", "run.json"]
    assert sorted(p.name for p in out.iterdir() if p.name != "data") == beside
    assert {p.suffix for p in (out / "data").rglob("*") if p.is_file()} == {".parquet"}
    told = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    *_, progress = [event for event in told if event["event"] == "progress"]
    assert (progress["done"], progress["total"], progress["failed"]) == (20, 20, 3)
    assert sorted(progress["reasons"]) == sorted(errors.values())
    # the next day
    before = {path: path.read_bytes() for path in out.glob("data/*/*")}
    Image.new("L", (40, 40), 9).save(source / "films" / "0011.jpg")
    Image.new("L", (40, 40), 9).save(source / "films" / "0020.jpg")
    with (source / "manifest.csv").open("a") as file:
        file.write("s0020,films/0020.jpg,p10,Of the next day.\n")
    assert Prepare.run(config(source, out, "retry=failed")) == 0
    assert before.items() <= {path: path.read_bytes() for path in out.glob("data/*/*")}.items()
    assert sorted(s.study_id for s in read_studies(out)) == [f"s{n:04}" for n in range(21) if n not in (3, 7)]
    assert json.loads((out / "run.json").read_text())["counts"]["studies"] == 21


def test_the_number_of_failures_allowed(tmp_path, without_ray, capfd):
    source, out = make_archive(tmp_path / "archive", 20), tmp_path / "out"
    for _ in range(2):
        with pytest.raises(TooManyFailed) as caught:
            Prepare.run(config(source, out, "prepare.max_failed_fraction=0.1"))
        assert caught.value.exit_code == 3
        assert str(caught.value) == (
            "3 of 20 studies are unreadable, above prepare.max_failed_fraction=0.1\n"
            f"  where: {out}/failed.parquet\n"
            "  cause: see its column `error`; all other studies are in the table\n"
            "  next:  go on with the table as it is, or run again with a larger prepare.max_failed_fraction"
        )
        assert len(list(read_studies(out))) == 17
    # how many may fail is no property of the table
    assert Prepare.run(config(source, out, "prepare.max_failed_fraction=0.2")) == 0


def test_too_many_failures_end_the_job_at_once(tmp_path, in_both_places, capfd):
    broken = dict.fromkeys(range(20), b"")
    source, out = make_archive(tmp_path / "archive", 120, side=16, broken=broken), tmp_path / "out"
    command = ["prepare", f"source={source}", f"output={out}", "prepare.shard_size=2", "prepare.fail_fast=true"]
    for _ in range(2):  # the second start meets what the first has left
        assert main([*command, "prepare.max_failed_fraction=0.1"]) == 1
        error = capfd.readouterr().err.partition("error: ")[2].splitlines()
        what = r"\d+ of 120 studies have failed after \d+, so prepare.max_failed_fraction=0.1 cannot be met any more"
        assert re.fullmatch(what, error[0])
        assert re.fullmatch(r"  where: \d+ × empty file", error[1])
        assert error[2:] == [
            "  cause: prepare.fail_fast ends the job here; finished files stay",
            "  next:  mend these films and run the same command again with retry=failed, or with a larger "
            "prepare.max_failed_fraction",
        ]
        assert not (out / "_SUCCESS").exists() and len(list(out.glob("data/*/*"))) < 50
    assert main([*command, "prepare.max_failed_fraction=0.2"]) == 0
    assert "prepare: 120/120 studies, 20 failed (20 × empty file)" in capfd.readouterr().err
    assert len(list(read_studies(out))) == 100


def test_no_readable_study(tmp_path, in_both_places, capfd):
    source, out = make_archive(tmp_path / "archive", 5, broken=dict.fromkeys(range(5))), tmp_path / "out"
    assert main(["prepare", f"source={source}", f"output={out}"]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == f"prepare: listing the studies of {source} (manifest)"
    assert lines[-4:] == [
        f"error: not one of 5 studies in {source} has a readable film",
        "  where: read as manifest",
        "  cause: most often: missing file (5 studies)",
        "  next:  check source=PATH, data.format and where the images lie (docs/data.md)",
    ]
    assert not out.exists()
    # the next run trips over nothing, whatever its config
    for n in range(5):
        Image.new("L", (40, 40), n).save(source / "films" / f"{n:04}.jpg")
    assert main(["prepare", f"source={source}", f"output={out}", "prepare.image_size=16"]) == 0
    assert len(list(read_studies(out))) == 5


def test_archives_that_are_not_there(tmp_path, capfd):
    out = tmp_path / "out"
    assert main(["prepare", f"source={tmp_path}/absent", f"output={out}"]) == 2
    assert capfd.readouterr().err == (
        f"error: no archive at {tmp_path}/absent\n"
        "  cause: the path does not exist on this machine\n"
        "  next:  set source=PATH\n"
    )
    (tmp_path / "empty").mkdir()
    assert main(["prepare", f"source={tmp_path}/empty", f"output={out}"]) == 2
    assert capfd.readouterr().err == (
        f"error: no studies in {tmp_path}/empty\n  where: read as folder\n  next:  check source=PATH and data.format\n"
    )
    assert main(["prepare", f"output={out}"]) == 2
    assert "`source` is not set" in capfd.readouterr().err
    assert not out.exists()


def test_rows_of_a_study_that_disagree(tmp_path, capfd):
    source, out = make_archive(tmp_path / "archive", 3, broken={}), tmp_path / "out"
    manifest = source / "manifest.csv"
    manifest.write_text(manifest.read_text() + "s0000,films/0002.jpg,p9,Again.\n")
    assert main(["prepare", f"source={source}", f"output={out}"]) == 2
    assert "error: the rows of one study have two values of subject_id\n" in capfd.readouterr().err
    assert not out.exists()


def test_dry_run_and_limit(tmp_path, capfd, without_ray):
    source, out = make_archive(tmp_path / "archive", 12), tmp_path / "out"
    assert main(["prepare", f"source={source}", f"output={out}", "--dry-run", "--limit", "5"]) == 0
    said = capfd.readouterr().err.splitlines()
    assert said[0].startswith("prepare: manifest: 5 studies, 5 films, 5 reports, 0 labels, ")
    assert said[1:] == [f"prepare: would read 5 studies (manifest) of {source} into {out}"]
    assert not out.exists()
    assert Prepare.run(config(source, out, "limit=5")) == 0
    assert sorted(s.study_id for s in read_studies(out)) == ["s0000", "s0001", "s0002", "s0004"]


def test_dropped_films_have_a_limit_of_their_own(tmp_path, without_ray, capfd):
    source, out = make_archive(tmp_path / "archive", 4, broken={}), tmp_path / "out"
    manifest = source / "manifest.csv"
    manifest.write_text(manifest.read_text().replace("films/0001.jpg", "films/0001.jpg|films/absent.jpg"))
    for _ in range(2):
        with pytest.raises(TooManyFailed) as caught:
            Prepare.run(config(source, out, "prepare.max_failed_films_fraction=0.1"))
        assert caught.value.exit_code == 3
        assert str(caught.value) == (
            "1 of 5 films are unreadable and were dropped, above prepare.max_failed_films_fraction=0.1\n"
            f"  where: {out}/films_failed.parquet\n"
            "  cause: see its column `reason`; the studies are in the table with their other films\n"
            "  next:  go on with the table as it is, or run again with a larger prepare.max_failed_films_fraction"
        )
    rows = pq.read_table(out / "films_failed.parquet").to_pylist()
    assert [(row["study_id"], row["image_id"], row["reason"]) for row in rows] == [
        ("s0001", "films/absent.jpg", "missing file")
    ]
    assert Prepare.run(config(source, out, "prepare.max_failed_films_fraction=0.2")) == 0
    lines = capfd.readouterr().err.splitlines()
    assert f"prepare: 4 studies in {out}, 0 failed, 1 films dropped (films_failed.parquet)" in lines
    found = [line for line in lines if line.startswith("prepare: manifest: 4 studies, 5 films, 4 reports, 0 labels, ")]
    assert len(found) == 1


def test_a_table_that_nobody_read(tmp_path, capfd):
    source, out = make_archive(tmp_path / "archive", 2, broken={}), tmp_path / "out"
    (source / "manifest.csv").write_text("colour,size\nred,1\n")
    assert main(["prepare", f"source={source}", f"output={out}"]) == 2
    assert "error: manifest.csv: nothing was read from it\n" in capfd.readouterr().err
    assert not out.exists()
    assert main(["prepare", f"source={source}", f"output={out}", "data.format=folder", "--dry-run"]) == 0
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "films.tar.gz").write_bytes(b"x")
    assert main(["prepare", f"source={tmp_path}/packed", f"output={out}"]) == 2
    assert "error: films.tar.gz: nothing was read from it\n" in capfd.readouterr().err
