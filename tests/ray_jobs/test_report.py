"""`megpt report`: the films of one study in, its report on standard output.

- DICOM and PNG: the text is the archive job's, whatever the order of the films; only the text goes to standard output
- `--json` has all that is known of the report
- films of two patients, of two studies, or one twice are refused, and nothing of a header is printed
- no film, no such file, a file that is no film, a damaged one, no chest film, a bomb: one screen, exit code 2
- films beyond data.max_views are named; keys that it does not read are refused
- Ray is not imported
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from dicom_exports import SECRETS, film, other
from make_films import encoded, png, write
from pydicom.uid import MRImageStorage

from megpt import __version__
from megpt.config import load_config
from megpt.errors import printable
from megpt.generation.answer import RESEARCH_ONLY
from megpt.model import fingerprint
from ray_jobs.__main__ import main

SHORT = ("generate.min_new_tokens=2", "generate.max_new_tokens=8")
STUDY = "1.2.3"


def dicom(folder: Path, name: str, seed: int, study: str = STUDY, **tags: Any) -> str:
    data = film(study, seed, **tags)
    data.PixelData = np.random.default_rng(seed).integers(0, 255, (16, 24), dtype=np.uint8).tobytes()
    return str(write(folder / name, encoded(data)))


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str], tiny_checkpoint: Path) -> Any:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["report", *arguments, f"checkpoint={tiny_checkpoint}", *SHORT])
        return code, *capfd.readouterr()

    return run


@pytest.mark.slow
def test_the_archive_jobs_text(
    tmp_path: Path, tiny_checkpoint: Path, without_ray: None, said: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    from ray_jobs.generate.job import Generate

    archive = tmp_path / "archive"
    archive.mkdir()
    lateral = dicom(archive, "a.dcm", 1, ViewPosition="LATERAL")
    frontal = dicom(archive, "b.dcm", 2, ViewPosition="PA")
    alone = dicom(archive, "c.dcm", 3, "1.2.4")
    settings = [f"source={archive}", f"checkpoint={tiny_checkpoint}", f"output={tmp_path / 'out'}", *SHORT]
    Generate.run(load_config(None, [*settings, "generate.num_beams=3"]))
    capfd.readouterr()
    (table,) = (tmp_path / "out" / "reports").glob("*.parquet")
    rows = {row["study_id"]: row for row in pq.read_table(table).to_pylist()}
    for films, study in (([lateral, frontal], STUDY), ([frontal, lateral], STUDY), ([alone], "1.2.4")):
        assert said(*films) == (0, printable(rows[study]["report"], lines=True) + "\n", RESEARCH_ONLY + "\n")
    code, out, _ = said(lateral, frontal, "--json")
    known = json.loads(out)
    same = ("report", "prompt_id", "num_tokens", "finish_reason", "model")
    assert code == 0 and {key: known[key] for key in same} == {key: rows[STUDY][key] for key in same}


def test_all_that_is_known(tmp_path: Path, tiny_checkpoint: Path, said: Any) -> None:
    path = str(write(tmp_path / "film.png", png()))
    code, out, err = said(path, "--json", "generate.num_beams=1", "seed=3")
    known = json.loads(out)
    assert (code, err) == (0, RESEARCH_ONLY + "\n")
    assert said(path, "generate.num_beams=1")[1] == known.pop("report") + "\n"
    prompts = ("Describe the heart.", "Describe the lungs and the pleura.", "Generate a report.")
    assert known.pop("prompt") == prompts[known.pop("prompt_id")]
    assert 2 <= known.pop("num_tokens") <= 8 and known.pop("finish_reason") in ("stop", "length")
    assert known.pop("logprob") < 0 and all(value < 0 for value in known.pop("sentence_logprobs"))
    assert known.pop("novelty") is None  # the prompts were not fitted
    assert known == {
        "films": 1,
        "model": fingerprint(tiny_checkpoint),
        "decoding": {
            "backend": "engine",
            "num_beams": 1,
            "repetition_penalty": 2.0,
            "length_penalty": 2.0,
            "min_new_tokens": 2,
            "max_new_tokens": 8,
            "do_sample": False,
            "temperature": 1.0,
            "top_p": 1.0,
            "precision": "fp32",
            "seed": 3,
        },
        "megpt": __version__,
        "notice": RESEARCH_ONLY,
    }


@pytest.mark.parametrize(
    ("tags", "text"),
    [
        ({"study": "1.2.4", "patient": "PID-2"}, "a.dcm and b.dcm are of two patients\n  where: their DICOM headers"),
        ({"patient": "PID-2"}, "a.dcm and b.dcm are of two patients\n  where: their DICOM headers"),
        ({"study": "1.2.4"}, "a.dcm and b.dcm are of two studies\n  where: their DICOM headers"),
        ({"study": "1.2.4", "patient": ""}, "a.dcm and b.dcm are of two studies\n  where: their DICOM headers"),
        ({"SOPInstanceUID": "1.2.3.1.1"}, "a.dcm and b.dcm are one film\n  cause: one SOPInstanceUID"),
        ({"Modality": "CT"}, "b.dcm is no chest film\n  cause: its header says modality CT\n  next:  set data.modal"),
        ({"BodyPartExamined": "HIP"}, "b.dcm is no chest film\n  cause: its header says body part HIP\n  next:  give"),
    ],
)
def test_films_that_are_not_one_study(
    tmp_path: Path, said: Any, tags: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dicom(tmp_path, "a.dcm", 1)
    dicom(tmp_path, "b.dcm", 2, **tags)
    code, out, err = said("a.dcm", "b.dcm")
    assert (code, out) == (2, "") and err.startswith(f"error: {text}")
    assert not [secret for secret in SECRETS if secret in err]


def test_what_is_no_film(tmp_path: Path, said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "text.png", "The patient has an effusion.")
    write(tmp_path / "cut.png", png()[:-60])
    write(tmp_path / "mr.dcm", encoded(other("1.2", 1, modality="MR", sop_class=MRImageStorage)))
    write(tmp_path / "empty.dcm", b"")
    write(tmp_path / "film.png", png(np.zeros((50, 50), np.uint8)))
    for films, text in (
        ([], "no film is given"),
        (["gone.dcm"], "gone.dcm cannot be used: missing file"),
        ([str(tmp_path)], f"{tmp_path} cannot be used: not a file"),
        (["film.png", "text.png"], "text.png cannot be used: not a JPEG, PNG, DICOM, TIFF"),
        (["cut.png"], "cut.png cannot be used: damaged PNG"),
        (["empty.dcm"], "empty.dcm cannot be used: empty file"),
        (["mr.dcm"], "mr.dcm is no chest film"),
        (["film.png", "data.max_pixels=2000"], "film.png cannot be used: 50x50 pixels, more than data.max_pixels"),
        (["film.png", "output=x"], "report does not read output"),
        (["film.png", "--limit", "1"], "report does not read limit"),
    ):
        code, out, err = said(*films)
        assert (code, out) == (2, "") and err.startswith(f"error: {text}") and len(err.splitlines()) <= 5
        assert "effusion" not in err


def test_a_dry_run(tmp_path: Path, said: Any) -> None:
    films = [str(write(tmp_path / f"{n}.png", png())) for n in range(3)]
    code, out, err = said(*films, "--dry-run", "data.max_views=2", "generate.num_beams=1")
    assert (code, out) == (0, "")
    assert err.startswith("report: 1 of 3 films are not used: data.max_views=2\nreport: would describe 2 films; ")


def test_a_film_for_processing(tmp_path: Path, said: Any) -> None:
    code, _, err = said(dicom(tmp_path, "a.dcm", 1, PresentationIntentType="FOR PROCESSING"))
    assert code == 0 and err.startswith(f"report: {tmp_path / 'a.dcm'} is FOR PROCESSING by its header: ")


def test_without_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write(tmp_path / "film.png", png()))
    assert main(["report", path]) == 2 and "`checkpoint` is not set" in capsys.readouterr().err
    assert main(["report", path, f"checkpoint={tmp_path}"]) == 2
    assert f"no checkpoint at '{tmp_path}'" in capsys.readouterr().err


@pytest.mark.slow
def test_ray_is_not_imported(tmp_path: Path, tiny_checkpoint: Path) -> None:
    path = str(write(tmp_path / "film.png", png()))
    code = "import sys; from ray_jobs.__main__ import main; main(sys.argv[1:]); print('ray' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, "report", path, f"checkpoint={tiny_checkpoint}", *SHORT],
        capture_output=True,
        text=True,
    )
    assert done.stdout.endswith("\nFalse\n") and done.stderr == RESEARCH_ONLY + "\n"
