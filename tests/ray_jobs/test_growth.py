"""The same command on the same output, day after day: `prepare` and `generate` take up what is new in the source.

Their frame, plans and files are the real ones; the work is done in this process, without Ray, so that it can be killed
at each rename of a file. (tests/ray_jobs/test_prepare.py and test_generate.py grow a table with Ray.)

- done studies stay, byte for byte; new ones are new shards, in their patient's split; nothing new: nothing to do
- a study whose films have changed is named and left, or done again; one that is gone stays
- `ids` selects; `retry=failed` does the failed ones again into the same table, also after exit code 3
- killed before any rename, the next start ends with each study once, and no study is twice at any time
- another source, another setting: refused; a source that has grown: not
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from local_jobs import LocalPrepare
from PIL import Image

from megpt.config import Config, GenerateConfig, load_config
from megpt.errors import InputError, TooManyFailed
from megpt.films.decode import UnreadableFilm, load_films
from megpt.model.checkpoint.decoding import completed
from ray_jobs.generate import job as generate_job
from ray_jobs.generate.job import Generate


class LocalGenerate(Generate):
    def _decoding(self) -> tuple[GenerateConfig, dict[str, str]]:
        return completed(self.config.generate, str(self.config.checkpoint))

    def _check_weights(self) -> None:
        """There is no model."""

    def demand(self) -> None:
        return None

    def work(self, folder: Path) -> None:
        for number in self.predictions.left():
            self.predictions.write_shard(number, map(self._row, self.predictions.studies(number)))

    def _row(self, listed: Any) -> dict[str, Any]:
        try:
            (film,) = load_films(listed.study, size=8, max_views=None, max_pixels=10**6)
        except UnreadableFilm as error:
            return {"study_id": listed.study.study_id, "finish_reason": "error", "error": error.reason}
        return {"study_id": listed.study.study_id, "finish_reason": "stop", "report": str(film.getpixel((0, 0)))}


def draw(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), grey, np.uint8)).save(path, "PNG")


class Archive:
    """A manifest of one film a study, two studies a patient; `broken` films are no films."""

    def __init__(self, folder: Path):
        self.folder, self.names = folder, list[str]()

    def add(self, *numbers: int, broken: bool = False) -> None:
        for n in numbers:
            draw(self.folder / "films" / f"{n}.png", n)
            if broken:
                (self.folder / "films" / f"{n}.png").write_bytes(b"not a film")
            self.names.append(f"s{n:02d},films/{n}.png,p{n // 2},Report {n}.")
        self._write()

    def remove(self, n: int) -> None:
        self.names = [line for line in self.names if not line.startswith(f"s{n:02d},")]
        self._write()

    def _write(self) -> None:
        rows = ["study_id,image_path,subject_id,report", *self.names]
        (self.folder / "manifest.csv").write_text("\n".join(rows) + "\n")


class Runs:
    """One job on one output."""

    def __init__(self, job: type[LocalPrepare] | type[LocalGenerate], archive: Archive, out: Path):
        self.job, self.archive, self.out = job, archive, out

    def config(self, *more: str) -> Config:
        if self.job is LocalPrepare:
            own = ["prepare.shard_size=3", "prepare.image_size=8", "prepare.max_failed_fraction=0.9"]
        else:
            (self.out.parent / "checkpoint").mkdir(exist_ok=True)
            (self.out.parent / "checkpoint" / "config.json").write_text("{}")
            own = [
                f"checkpoint={self.out.parent}/checkpoint",
                "generate.shard_size=3",
                "generate.split=all",
                "generate.max_failed_fraction=0.9",
            ]
        return load_config(None, [f"source={self.archive.folder}", f"output={self.out}", *own, *more])

    def __call__(self, *more: str) -> None:
        assert self.job.run(self.config(*more)) == 0

    @property
    def files(self) -> dict[str, bytes]:
        return {str(p.relative_to(self.out)): p.read_bytes() for p in sorted(self.out.glob("[dr]*/**/*.parquet"))}

    @property
    def good(self) -> list[str]:
        """The ids with a report or a film, each as often as it is there."""
        rows = [row for path in self.files for row in pq.ParquetFile(self.out / path).read().to_pylist()]
        return sorted(row["study_id"] for row in rows if not row.get("error"))

    @property
    def greys(self) -> dict[str, int]:
        """What the table says about a study's film."""
        found = {}
        for path in self.files:
            for row in pq.ParquetFile(self.out / path).read().to_pylist():
                if "views" in row:
                    (self.out / "film.jpg").write_bytes(row["views"][0]["bytes"])
                    row["report"] = Image.open(self.out / "film.jpg").getpixel((0, 0))
                    (self.out / "film.jpg").unlink()
                found[row["study_id"]] = int(row["report"] or -1)
        return found

    @property
    def failed(self) -> dict[str, str]:
        return {row["study_id"]: row["error"] for row in pq.read_table(self.out / "failed.parquet").to_pylist()}

    @property
    def done(self) -> bool:
        return (self.out / "_SUCCESS").exists()


def names(*numbers: int) -> list[str]:
    return [f"s{n:02d}" for n in numbers]


@pytest.fixture(params=[LocalPrepare, LocalGenerate], ids=["prepare", "generate"])
def runs(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.setattr(generate_job, "checkpoint_fingerprint", lambda config: "mark")
    archive = Archive(tmp_path / "archive")
    archive.add(*range(0, 16, 2))
    return Runs(request.param, archive, tmp_path / "out")


def said(capfd: pytest.CaptureFixture[str]) -> str:
    return capfd.readouterr().err


def test_what_is_new_is_done(runs: Runs, capfd: pytest.CaptureFixture[str]) -> None:
    runs()
    before = runs.files
    said(capfd)
    runs()
    assert f"{runs.job.name}: {runs.out} is finished, nothing to do\n" in said(capfd) and runs.files == before
    runs.archive.add(1, 3, 5, 7)
    assert runs.job.run(runs.config(), dry_run=True) == 0
    assert "would read 4 studies" in (text := said(capfd)) or "would write 4 reports" in text
    runs()
    assert f"{runs.job.name}: 4 new studies\n" in said(capfd)
    assert runs.good == names(*range(8), 8, 10, 12, 14) and runs.done
    assert before.items() <= runs.files.items(), "what was done stays, byte for byte"
    if runs.job is LocalPrepare:
        parts = {}
        for path in runs.files:
            for row in pq.ParquetFile(runs.out / path).read().to_pylist():
                assert parts.setdefault(row["subject_id"], path.split("/")[1]) == path.split("/")[1], "one patient"


def test_changed_films_are_named_and_left_or_done_again(runs: Runs, capfd: pytest.CaptureFixture[str]) -> None:
    runs()
    before = runs.files
    draw(runs.archive.folder / "films" / "4.png", 201)
    draw(runs.archive.folder / "films" / "12.png", 202)
    runs.archive.remove(8)
    said(capfd)
    runs()
    lines = said(capfd)
    assert (
        f"{runs.job.name}: the films of 2 studies have changed: s04, s12; "
        "they are left as they are (data.changed=redo does them again)\n"
    ) in lines
    assert f"{runs.job.name}: 1 studies are not in the source any more; what was made of them stays\n" in lines
    assert runs.files == before and runs.greys["s04"] == 4
    runs("data.changed=redo")
    assert f"{runs.job.name}: 2 studies are done again\n" in said(capfd)
    assert runs.good == names(*range(0, 16, 2)) and runs.done
    assert (runs.greys["s04"], runs.greys["s12"], runs.greys["s06"]) == (201, 202, 6)
    runs("data.changed=redo")
    assert "is finished, nothing to do" in said(capfd)


def test_retry(runs: Runs, capfd: pytest.CaptureFixture[str]) -> None:
    runs.archive.add(1, 3, 5, broken=True)
    limit = "prepare.max_failed_fraction=0.1" if runs.job is LocalPrepare else "generate.max_failed_fraction=0.1"
    with pytest.raises(TooManyFailed):
        runs(limit)
    assert list(runs.failed) == names(1, 3, 5) and all(runs.failed.values()) and runs.done
    before = runs.files
    draw(runs.archive.folder / "films" / "1.png", 1)
    draw(runs.archive.folder / "films" / "5.png", 5)
    with pytest.raises(TooManyFailed):
        runs(limit)  # without retry, a repaired film is a changed one and is left
    assert runs.files == before
    runs("retry=failed", limit)
    assert runs.good == sorted(names(*range(0, 16, 2), 1, 5))
    assert list(runs.failed) == names(3) and runs.done
    runs("retry=failed", limit)
    assert list(runs.failed) == names(3)
    said(capfd)
    draw(runs.archive.folder / "films" / "3.png", 3)
    runs("retry=failed")
    assert f"{runs.job.name}: 1 studies are done again\n" in said(capfd)
    assert runs.failed == {} and len(runs.good) == 11
    runs("retry=failed")
    assert "is finished, nothing to do" in said(capfd)


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".parquet"])
def test_ids(runs: Runs, tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]) -> None:
    import pandas

    path, wanted = tmp_path / f"ids{suffix}", pandas.DataFrame({"study_id": [*names(2, 10), "s99"]})
    {".txt": lambda: path.write_text("s02\n\n s10 \ns99\n"), ".csv": lambda: wanted.to_csv(path),
     ".parquet": lambda: wanted.to_parquet(path)}[suffix]()  # fmt: skip
    runs(f"ids={path}")
    assert runs.good == names(2, 10)
    assert f"{runs.job.name}: 1 studies that `ids` names are not in the source: s99\n" in said(capfd)
    runs()
    assert runs.good == names(*range(0, 16, 2)) and len(runs.files) >= 2
    path = tmp_path / "strangers.txt"
    path.write_text("a\nb\n")
    with pytest.raises(InputError, match=r"^none of the 2 studies that `ids` names is in the source\n"):
        runs(f"ids={path}")
    assert runs.done, "what was done stays"


@pytest.mark.parametrize(
    "name, text, error",
    [
        ("ids.txt", " \n", r"ids\.txt names no study\n"),
        ("ids.csv", "id\ns1\n", r"ids\.csv has no column study_id\n"),
        ("ids.txt", b"\xff\xfe", r"ids\.txt is not text in UTF-8\n"),
        ("ids.txt", None, r"^no file at .*ids\.txt\n"),
    ],
)
def test_lists_of_ids_that_cannot_be_read(runs: Runs, tmp_path: Path, name: str, text: Any, error: str) -> None:
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=error):
        runs(f"ids={tmp_path / name}")
    assert not runs.out.exists()


def test_limit_is_of_the_whole_table(runs: Runs) -> None:
    runs("limit=3")
    assert runs.good == names(0, 2, 4)
    runs.archive.names.insert(0, "s01,films/0.png,p0,Report.")
    runs.archive.add(3)
    runs("limit=3")
    assert runs.good == names(0, 2, 4)


def test_another_source_is_refused(runs: Runs, tmp_path: Path) -> None:
    runs()
    other = Archive(tmp_path / "other")
    other.add(21)
    with pytest.raises(InputError, match=r"source\.path: '?\S*archive'? → '?\S*other"):
        Runs(runs.job, other, runs.out)()
    assert runs.done and runs.good == names(*range(0, 16, 2))


def at_each_rename(act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Kill `act` before its first rename, its second, … until it has none left to be killed at."""
    real = Path.replace
    for allowed in range(200):
        count = 0

        def replace(self: Path, target: Any, allowed: int = allowed) -> Path:
            nonlocal count
            if count == allowed:
                raise KeyboardInterrupt
            count += 1
            return real(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace)
            try:
                act()
                return
            except KeyboardInterrupt:
                pass
        yield allowed
    raise AssertionError("it never ends")


def test_killed_at_any_rename(runs: Runs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import shutil

    runs.archive.add(1, 3, broken=True)
    runs()
    monday = tmp_path / "monday"
    shutil.copytree(runs.out, monday)
    draw(runs.archive.folder / "films" / "3.png", 3)
    draw(runs.archive.folder / "films" / "6.png", 206)
    runs.archive.add(5, 7)
    everyone = sorted(names(*range(0, 16, 2), 3, 5, 7))
    before, kills = runs.files, 0
    command = ("retry=failed", "data.changed=redo")
    for _ in at_each_rename(lambda: runs(*command), monkeypatch):
        kills += 1
        assert not runs.done or runs.files == before, "an output that is about to change is not called finished"
        assert len(runs.good) == len(set(runs.good)), "never twice"
        assert set(runs.good) >= set(everyone) - set(names(3, 5, 6, 7)), "what was done and has not changed stays"
        runs()  # what the killed start has put into the plan is done without being asked for again
        assert runs.done and len(runs.good) == len(set(runs.good)) and set(runs.good) >= {*everyone} - {"s03"}
        runs(*command)
        assert runs.good == everyone and runs.greys["s06"] == 206 and list(runs.failed) == names(1) and runs.done
        shutil.rmtree(runs.out)
        shutil.copytree(monday, runs.out)
    assert kills >= 8
    assert runs.good == everyone, "and not killed at all"
