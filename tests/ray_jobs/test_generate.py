"""`megpt generate`: an archive becomes a table of reports, each study exactly once.

- the table has the schema of DESIGN to the letter, each study once, references and image ids included, errors as rows
- run.json names config, decoding, versions, counts and seconds
- failed.parquet can be fed back as a source, films and all
- more failures than max_failed_fraction: exit code 3, the table complete
- SIGKILL of an actor: the table of an uninterrupted run
- a node that does not see the archive ends the job; no film is called missing for it
- a film that kills the process that decodes it becomes an error of its study
- an archive that cannot be listed (no such split, an id twice) leaves nothing behind
- a dry run counts
- no report text in what is printed, not even by an error that nobody foresaw
"""

from __future__ import annotations

import io
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image
from small_runs import report_rows

from megpt.config import Config, load_config
from megpt.data.growth import Choice, Intake
from megpt.data.sources import open_source
from megpt.data.studies import Listed, write_studies
from megpt.errors import InputError, TooManyFailed, from_json, to_json
from megpt.generation.predictions import Predictions, finished_shards
from megpt.study import PREDICTIONS_SCHEMA, Study, View
from ray_jobs.generate import worker as workers
from ray_jobs.generate.job import Generate
from ray_jobs.status import Status

STUDIES, BROKEN = 46, (0, 21)
SECRET = "Mrs Example has a normal heart."


def film(rng: np.random.Generator) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (70, 80), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def studies(count: int = STUDIES) -> Iterator[Study]:
    rng = np.random.default_rng(0)
    for n in range(count):
        data = b"not a film" if n in BROKEN else film(rng)
        views = (View(f"film{n}", "PA", data),) if n != 9 else (View("film9", "PA", data), View("film9b", "LL", data))
        yield Study(f"study{n:03d}", f"patient{n // 2}", views, report=SECRET if n % 3 else None)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    write_studies(folder, "test", studies(), 0)
    write_studies(folder, "train", [Study("other", "p", (View("f", data=b"x"),))], 0)
    return folder


def config(archive: Path, checkpoint: Path, output: Path, *overrides: str) -> Config:
    return load_config(
        None,
        [
            f"source={archive}",
            f"checkpoint={checkpoint}",
            f"output={output}",
            "generate.split=test",
            "generate.shard_size=8",
            "generate.slots=4",
            "generate.min_new_tokens=2",
            "generate.max_new_tokens=8",
            *overrides,
        ],
    )


def rows(output: Path) -> dict[str, dict]:
    found = report_rows(output)
    assert len({row["study_id"] for row in found}) == len(found)
    return {row["study_id"]: row for row in found}


@pytest.fixture(scope="module")
def finished(archive: Path, tiny_checkpoint: Path, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    output = tmp_path_factory.mktemp("finished") / "out"
    assert Generate.run(config(archive, tiny_checkpoint, output)) == 0
    return output


@pytest.mark.slow
def test_the_table(finished: Path, archive: Path, tiny_checkpoint: Path) -> None:
    from megpt.model import fingerprint

    for path in (finished / "reports").glob("*.parquet"):
        assert pq.read_schema(path).equals(PREDICTIONS_SCHEMA)
        assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"
    assert sorted(p.name for p in (finished / "reports").iterdir()) == [f"part-{n:06d}.parquet" for n in range(6)]
    found = rows(finished)
    assert sorted(found) == [s.study_id for s in studies()]
    for study in studies():
        row = found[study.study_id]
        assert row["subject_id"] == study.subject_id and row["reference"] == study.report
        assert row["image_ids"] == [view.image_id for view in study.views]
        assert row["model"] == fingerprint(tiny_checkpoint)
        if int(study.study_id[5:]) in BROKEN:
            assert (row["report"], row["finish_reason"], row["num_tokens"]) == (None, "error", 0)
            assert row["error"] == "not a JPEG, PNG, DICOM, TIFF, BMP, WebP or JPEG 2000 file"
        else:
            assert row["error"] is None and row["finish_reason"] in ("stop", "length")
            assert 2 <= row["num_tokens"] <= 8 and row["prompt_id"] in (0, 1, 2)
    assert len({row["report"] for row in found.values()}) > 10


@pytest.mark.slow
def test_run_json_and_status(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = json.loads((finished / "run.json").read_text())
    assert run["counts"]["studies"] == STUDIES and run["counts"]["error"] == len(BROKEN)
    assert run["backend"] == "engine" and run["decoding"]["repetition_penalty"] == 2.0
    assert run["config"]["generate"]["shard_size"] == 8 and run["seconds"] > 0
    assert {"torch", "transformers", "ray"} <= run["versions"].keys()
    predictions = Predictions.open(finished)
    assert predictions is not None
    state = predictions.status()
    assert (state.done, state.failed, state.left, state.state) == (46, 2, 0, "finished")
    assert Status.run(Config(), str(finished)) == 0
    assert "46 of 46 studies done, 2 failed, 0 left" in capsys.readouterr().out


@pytest.mark.slow
def test_the_hf_backend_writes_the_same(
    finished: Path, archive: Path, tiny_checkpoint: Path, tmp_path: Path, ray_cluster: None
) -> None:
    Generate.run(config(archive, tiny_checkpoint, tmp_path / "out", "generate.backend=hf", "cluster.num_workers=2"))
    assert rows(tmp_path / "out") == rows(finished)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["backend"] == "hf"


@pytest.mark.slow
def test_failed_studies_can_be_fed_back(
    finished: Path, tiny_checkpoint: Path, tmp_path: Path, without_ray: None
) -> None:
    with pytest.raises(TooManyFailed, match="2 of 2"):
        Generate.run(config(finished / "failed.parquet", tiny_checkpoint, tmp_path / "out"))
    again = rows(tmp_path / "out")
    assert sorted(again) == ["study000", "study021"]
    assert (tmp_path / "out" / "_SUCCESS").exists()
    with pytest.raises(TooManyFailed):  # a finished job says the same again
        Generate.run(config(finished / "failed.parquet", tiny_checkpoint, tmp_path / "out"))


@pytest.mark.slow
def test_the_next_day(finished: Path, tiny_checkpoint: Path, tmp_path: Path, without_ray: None) -> None:
    everyone = list(studies(12))
    write_studies(tmp_path / "archive", "test", everyone[:9], 0)
    command = config(tmp_path / "archive", tiny_checkpoint, tmp_path / "out", "generate.max_failed_fraction=0.5")
    Generate.run(command)
    before = {path: path.read_bytes() for path in (tmp_path / "out" / "reports").iterdir()}
    write_studies(tmp_path / "archive", "test", everyone[9:], 1)
    Generate.run(command)
    after = {path: path.read_bytes() for path in (tmp_path / "out" / "reports").iterdir()}
    assert before.items() <= after.items() and len(after) == len(before) + 1
    expected = rows(finished)
    assert rows(tmp_path / "out") == {study.study_id: expected[study.study_id] for study in everyone}
    # the broken one is done again, alone, and fails again
    Generate.run(command.updated(retry="failed"))
    assert rows(tmp_path / "out") == {study.study_id: expected[study.study_id] for study in everyone}
    assert [r["study_id"] for r in pq.read_table(tmp_path / "out" / "failed.parquet").to_pylist()] == ["study000"]


def wait_for(condition, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


@pytest.mark.slow
def test_an_actor_is_killed(
    finished: Path, archive: Path, tiny_checkpoint: Path, tmp_path: Path, ray_cluster: None
) -> None:
    output = tmp_path / "out"
    import threading

    killed: list[int] = []

    def kill() -> None:
        wait_for(lambda: finished_shards(output))
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                name = entry.read_bytes().decode(errors="replace")
                if "ShardWorker" in name and _descends(int(entry.parent.name)):
                    os.kill(int(entry.parent.name), signal.SIGKILL)
                    killed.append(int(entry.parent.name))
            except OSError:
                continue

    thread = threading.Thread(target=kill)
    thread.start()
    assert Generate.run(config(archive, tiny_checkpoint, output)) == 0
    thread.join()
    assert killed
    assert rows(output) == rows(finished)


@pytest.mark.slow
def test_a_film_that_kills_its_process(archive: Path, tiny_checkpoint: Path, tmp_path: Path, ray_cluster: None) -> None:
    settings = config(archive, tiny_checkpoint, tmp_path)
    predictions = Predictions.create(
        tmp_path,
        open_source(archive, data=settings.data),
        split="test",
        shard_size=5,
        intake=Intake(choice=Choice(limit=5)),
    )
    worker = workers.ShardWorker(settings.to_yaml(), predictions, str(archive), "mark", {"num_cpus": 0.1})

    def crash(chunk: list[Listed], **options: Any) -> list[workers.Pixels]:
        if any(listed.study.study_id == "study003" for listed in chunk):
            os.kill(os.getpid(), signal.SIGKILL)
        return workers.decode(chunk, **options)

    worker.decode = ray.remote(crash).options(max_retries=0, num_cpus=0.1)
    found = {study.study_id: films for study, films in worker._films(predictions.studies(0))}
    assert [name for name, films in found.items() if not isinstance(films, list)] == ["study000", "study003"]
    assert str(found["study003"]) == "decoding it ends the process"


@pytest.mark.slow
def test_a_node_that_does_not_see_the_archive(tiny_checkpoint: Path, tmp_path: Path, ray_cluster: None) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    for n in range(3):
        (archive / f"{n}.png").write_bytes(film(np.random.default_rng(n)))
    settings = config(archive, tiny_checkpoint, tmp_path / "out")
    predictions = Predictions.create(
        tmp_path / "out", open_source(archive, data=settings.data), split="all", shard_size=3
    )
    worker = workers.ShardWorker(settings.to_yaml(), predictions, str(archive), "mark", {"num_cpus": 0.1})
    (archive / "1.png").unlink()
    archive.rename(tmp_path / "elsewhere")
    told = from_json(worker._answer(0)["error"])
    assert told.exit_code == 1
    assert str(told).startswith(f"the archive {archive} is not visible on node ")
    assert not finished_shards(tmp_path / "out")
    (tmp_path / "elsewhere").rename(archive)
    counts = worker._answer(0)
    assert (counts["error"], counts["studies"], json.loads(counts["reasons"])) == ("", 3, {"missing file": 1})
    assert [row["error"] for row in rows(tmp_path / "out").values()] == [None, "missing file", None]


def _descends(pid: int) -> bool:
    """Whether a process is below this one, so that no other session's actor is hit."""
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    return False


def test_an_archive_that_cannot_be_listed(archive: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no study of split 'val'"):
        Generate.run(config(archive, tiny_checkpoint, tmp_path / "out", "generate.split=val"))
    twice = tmp_path / "twice"
    write_studies(twice, "test", [*studies(3), *studies(1)], 0)
    with pytest.raises(InputError, match="study000"):
        Generate.run(config(twice, tiny_checkpoint, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_no_checkpoint_and_dry_run(
    archive: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="no checkpoint"):
        Generate.run(config(archive, tmp_path, tmp_path / "out"))
    assert Generate.run(config(archive, tiny_checkpoint, tmp_path / "out", "limit=20"), dry_run=True) == 0
    assert "20 reports" in capsys.readouterr().err


def test_an_unforeseen_error_tells_kind_and_place_alone() -> None:
    try:
        raise KeyError(SECRET)
    except KeyError as error:
        told = from_json(to_json(workers.unforeseen(error, 7)))
    assert str(told).startswith("shard 7 failed with an unexpected KeyError\n  where: ")
    assert "test_generate.py:" in str(told) and SECRET not in str(told)


def test_the_checkpoint_s_decoding_and_language_model(
    archive: Path, tiny_checkpoint: Path, tiny_llm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from megpt.config import GenerateConfig, load_config
    from megpt.model import MeGPTForConditionalGeneration, MeGPTProcessor
    from megpt.model.checkpoint.decoding import carry

    model = MeGPTForConditionalGeneration.from_pretrained(tiny_checkpoint)
    carry(model.generation_config, GenerateConfig(num_beams=2, min_new_tokens=3, max_new_tokens=33))
    model.save_pretrained(tmp_path / "checkpoint")
    MeGPTProcessor.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path / "checkpoint")
    line = [f"source={archive}", f"checkpoint={tmp_path / 'checkpoint'}", f"output={tmp_path / 'out'}"]
    plain = Generate(load_config(None, line))
    plain.open()
    plain.preview(tmp_path / "out")
    assert "decoding: num_beams=2, repetition_penalty=2.0, " in capsys.readouterr().err.replace("\n", " ")
    other = Generate(load_config(None, [*line, "generate.num_beams=1", f"model.llm={tiny_llm}"]))
    other.open()
    rules, identity = other.config.generate, other.identity()
    assert (rules.num_beams, rules.min_new_tokens, rules.max_new_tokens) == (1, 3, 33)
    assert (plain.llm, other.llm) == (None, str(tiny_llm))
    assert "model" not in identity and identity["generate"]["max_new_tokens"] == 33
