"""Reports back to a PACS, against Debian's Orthanc on loopback.

- six studies, prepare, reports, send: one Basic Text SR a study, which dsrdump reads, and which refers to its films
- without send.store nothing is stored, and the counts are said without a word of the reports
- sent again, from the same or another output, nothing is stored twice; new and failed reports are sent
- killed between the PACS and the ledger, or in the middle of a line of it: each report once
- refused: ids that are no StudyInstanceUIDs, an unfinished folder, no address, an address with a password
- one that fails is named, with exit code 3, and is sent by the next start
- OUT holds nothing of a patient, and no text
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
import yaml
from dicom_exports import film
from orthanc_server import Orthanc, Proxy, needs_orthanc

from megpt.config import load_config
from megpt.data.studies import write_rows
from megpt.errors import InputError, TooManyFailed
from megpt.study import PREDICTIONS_SCHEMA
from ray_jobs.__main__ import main

pytest.importorskip("dicomweb_client")
pytest.importorskip("highdicom")
from megpt_pacs import client, send
from megpt_pacs.report import TITLE, report_uid
from megpt_pacs.send import Send

pytestmark = needs_orthanc
UID = "1.2.826.0.1.3680043.8.498"
MODEL = "0123456789abcdef"
TEXT = "Heart size is normal.\nNo pneumothorax: Lungenödem fraglich."
PATIENT = ("MÜLLER", "SMITH", "19501224", "PID-", "Heart size")


@pytest.fixture
def pacs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Orthanc]:
    """Six studies of two films each."""
    monkeypatch.setattr(client, "PAUSE_S", 0.001)
    with Orthanc(tmp_path / "orthanc") as server:
        for n in range(6):
            named = {"patient": f"PID-{n}", "PatientName": "MÜLLER^JÜRGEN", "SpecificCharacterSet": "ISO_IR 100"}
            server.store(*(film(f"{UID}.{n}", k, StudyDate="20261126", AccessionNumber="A1", **named) for k in (1, 2)))
        yield server


def predictions(folder: Path, numbers: Any = range(6), *, shard: int = 0, study_id: str = "uid", **cells: Any) -> Path:
    """What `generate` leaves, with a report for each of these studies."""
    rows = [
        {
            "study_id": f"{UID}.{n}",
            "image_ids": [f"{UID}.{n}.1.{k}" for k in (1, 2)],
            "report": TEXT,
            "error": None,
            "model": MODEL,
            **cells,
        }
        for n in numbers
    ]
    write_rows(folder / f"reports/part-{shard:06d}.parquet", rows, PREDICTIONS_SCHEMA)
    record = {
        "job": "generate",
        "identity": {"source": {"path": "/archive", "format": "dicom"}},
        "config": {"data": {"study_id": study_id}},
    }
    (folder / "megpt.yaml").write_text(yaml.safe_dump(record))
    (folder / "_SUCCESS").write_text("{}")
    return folder


def run(folder: Path, to: str, *overrides: str, store: bool = True) -> int:
    words = [f"options.send.to={to}", f"options.send.store={str(store).lower()}"]
    return Send.run(load_config(None, [f"predictions={folder}", *words, *overrides]))


def stored(pacs: Orthanc) -> list[dict[str, Any]]:
    return sorted(pacs.found("instances", Modality="SR"), key=lambda entry: entry["0020000D"])


def document(pacs: Orthanc, uid: str) -> pydicom.Dataset:
    (found,) = pacs.request("POST", "/tools/lookup", data=uid).json()
    return pydicom.dcmread(io.BytesIO(pacs.request("GET", f"{found['Path']}/file").content))


def test_a_report_becomes_one_document(pacs: Orthanc, tmp_path: Path) -> None:
    assert run(predictions(tmp_path / "out"), pacs.address) == 0
    found = stored(pacs)
    assert [entry["0020000D"] for entry in found] == [f"{UID}.{n}" for n in range(6)]
    assert [entry["00080018"] for entry in found] == [report_uid(f"{UID}.{n}", MODEL) for n in range(6)]
    report = document(pacs, found[2]["00080018"])
    assert report.SOPClassUID == report.file_meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.88.11"
    assert (report.SeriesDescription, report.Modality) == (TITLE, "SR")
    assert TITLE == "Research use only, machine-made"
    assert (report.VerificationFlag, report.PreliminaryFlag, report.CompletionFlag) == (
        "UNVERIFIED",
        "PRELIMINARY",
        "COMPLETE",
    )
    assert (str(report.PatientName), report.PatientID, report.PatientBirthDate) == (
        "MÜLLER^JÜRGEN",
        "PID-2",
        "19501224",
    )
    assert (report.StudyInstanceUID, report.StudyDate, report.AccessionNumber) == (f"{UID}.2", "20261126", "A1")
    assert report.SeriesInstanceUID not in (f"{UID}.2.1", f"{UID}.2")
    (evidence,) = report.CurrentRequestedProcedureEvidenceSequence
    (series,) = evidence.ReferencedSeriesSequence
    films = [f"{UID}.2.1.{k}" for k in (1, 2)]
    assert evidence.StudyInstanceUID == f"{UID}.2" and series.SeriesInstanceUID == f"{UID}.2.1"
    assert [item.ReferencedSOPInstanceUID for item in series.ReferencedSOPSequence] == films
    sections = {item.ConceptNameCodeSequence[0].CodeMeaning: item for item in report.ContentSequence}
    assert sections["Findings"].ContentSequence[0].TextValue == TEXT
    library = [item.ReferencedSOPSequence[0] for item in sections["Image Library"].ContentSequence]
    assert [item.ReferencedSOPInstanceUID for item in library] == films
    assert sections["Comment"].TextValue.startswith(f"{TITLE}: by megpt ") and MODEL in sections["Comment"].TextValue


@pytest.mark.skipif(shutil.which("dsrdump") is None, reason="needs Debian's package dcmtk")
def test_dsrdump_reads_it(pacs: Orthanc, tmp_path: Path) -> None:
    run(predictions(tmp_path / "out", [1]), pacs.address)
    document(pacs, report_uid(f"{UID}.1", MODEL)).save_as(tmp_path / "sr.dcm")
    read = subprocess.run(["dsrdump", "+Pl", str(tmp_path / "sr.dcm")], capture_output=True, text=True, check=True)
    assert read.stdout.startswith("Basic Text SR Document\n") and "error" not in read.stderr.lower()
    for line in (
        "Series              : Research use only, machine-made (#9901)",
        "Verification Flag   : UNVERIFIED",
        "Heart size is normal.\\nNo pneumothorax: Lungenödem fraglich.",
        "IMAGE:",
    ):
        assert line in read.stdout


def test_only_said_until_it_may_store(pacs: Orthanc, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = predictions(tmp_path / "out", range(4))
    predictions(folder, [4, 5], shard=1, report=None, error="missing file")
    assert main(["send", f"predictions={folder}", f"to={pacs.address}"]) == 0
    said = capsys.readouterr().err
    assert said == (
        f"send: would store 4 reports as DICOM Basic Text SR in {pacs.address}; "
        "2 studies have an error in place of a report\n"
        "send: nothing was sent; send.store=true sends\n"
    )
    assert stored(pacs) == [] and not (folder / "sent").exists()
    assert main(["send", f"predictions={folder}", f"to={pacs.address}", "send.store=true"]) == 0
    said = capsys.readouterr().err
    assert f"send: 4 reports stored in {pacs.address}, 0 were there already, 0 failed, 2 studies without" in said
    assert len(stored(pacs)) == 4
    assert main(["send", f"predictions={folder}", f"to={pacs.address}", "store=true"]) == 0
    assert "sent is finished, nothing to do" in capsys.readouterr().err
    files = [path for path in (folder / "sent").rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"ledger.jsonl", "run.json", "_SUCCESS"}
    for secret in PATIENT:
        assert secret.encode() not in b"".join(path.read_bytes() for path in files) and secret not in said


def test_each_report_once(pacs: Orthanc, tmp_path: Path) -> None:
    folder = predictions(tmp_path / "out", range(3))
    run(folder, pacs.address)
    predictions(folder, [3, 4], shard=1)
    with Proxy(pacs.port) as proxy:  # another address is another output
        run(folder, proxy.address, f"output={tmp_path / 'other'}")
        assert len([1 for method, *_ in proxy.requests if method == "POST"]) == 2
    assert json.loads((tmp_path / "other/_SUCCESS").read_text()) == {"stored": 2, "found": 3, "failed": 0, "skipped": 0}
    assert len(stored(pacs)) == 5
    with pytest.raises(InputError, match="exists from another config"):
        run(folder, pacs.address, f"output={tmp_path / 'other'}")
    run(folder, pacs.address)
    assert json.loads((folder / "sent/_SUCCESS").read_text()) == {"stored": 3, "found": 2, "failed": 0, "skipped": 0}
    run(predictions(tmp_path / "better", [0], model="fedcba9876543210"), pacs.address)
    assert len(stored(pacs)) == 6  # another model, another report


def test_one_that_fails_is_named_and_sent_next_time(
    pacs: Orthanc, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = predictions(tmp_path / "out", range(4))
    predictions(folder, [7], shard=1)  # not in the PACS
    with Proxy(pacs.port) as proxy:
        proxy.spoil = lambda method, path: 503 if method == "POST" and f"{UID}.2" in path else None
        with pytest.raises(TooManyFailed) as caught:
            run(folder, proxy.address)
        assert caught.value.exit_code == 3 and caught.value.what == "2 reports were not stored"
        said = capsys.readouterr().err
        assert f"send: {UID}.2: the PACS answers 503 (5 tries)\n" in said
        assert f"send: {UID}.7: a film that it was written from is not in the PACS\n" in said
        assert len(stored(pacs)) == 3
        proxy.spoil = lambda method, path: None
        proxy.requests.clear()
        with pytest.raises(TooManyFailed, match="1 reports were not stored"):
            run(folder, proxy.address)
        assert len([1 for method, *_ in proxy.requests if method == "POST"]) == 1
    assert len(stored(pacs)) == 4


def test_an_answer_that_is_lost_stores_nothing_twice(pacs: Orthanc, tmp_path: Path) -> None:
    with Proxy(pacs.port) as proxy:
        lost = iter(["half", "half"])
        proxy.spoil = lambda method, path: next(lost, None) if method == "POST" else None
        run(predictions(tmp_path / "out", [1]), proxy.address)
        assert len([1 for method, *_ in proxy.requests if method == "POST"]) == 1
    assert len(stored(pacs)) == 1


def test_a_kill_between_the_pacs_and_the_ledger(pacs: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = predictions(tmp_path / "out")
    real = send.Ledger.add
    monkeypatch.setattr(send.Ledger, "add", lambda self, *told: real(self, *told) if len(stored(pacs)) < 3 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(folder, pacs.address)
    monkeypatch.undo()
    ledger = folder / "sent/ledger.jsonl"
    assert len(ledger.read_text().splitlines()) == 2 and len(stored(pacs)) == 3
    ledger.write_bytes(ledger.read_bytes() + b'{"study_id": "1.2.826')
    run(folder, pacs.address)
    states = [json.loads(line)["state"] for line in ledger.read_text().splitlines()]
    assert states == ["stored", "stored", "found", "stored", "stored", "stored"] and len(stored(pacs)) == 6


@pytest.mark.slow
def test_killed_in_the_middle(pacs: Orthanc, tmp_path: Path) -> None:
    folder, command = predictions(tmp_path / "out"), [sys.executable, "-m", "ray_jobs", "send", "send.store=true"]
    with Proxy(pacs.port) as proxy:
        proxy.spoil = lambda method, path: 0.3 if method == "POST" else None
        words = [*command, f"predictions={folder}", f"to={proxy.address}"]
        with subprocess.Popen(words, start_new_session=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}) as process:
            until = time.monotonic() + 120
            while len(stored(pacs)) < 2 and time.monotonic() < until:
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGKILL)
        assert 2 <= len(stored(pacs)) < 6 and not (folder / "sent/_SUCCESS").exists()
        proxy.spoil = lambda method, path: None
        subprocess.run(words, check=True)
    assert len(stored(pacs)) == 6 and (folder / "sent/_SUCCESS").exists()


@pytest.mark.parametrize("kind", ["hash", "accession"])
def test_ids_that_are_no_uids_are_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError) as caught:
        run(predictions(tmp_path / "out", study_id=kind), "dicomweb://pacs/dicom-web")
    assert "are not StudyInstanceUIDs, so nothing says where a report belongs" in caught.value.what
    assert caught.value.where == f"data.study_id={kind}" and "data.study_id=uid" in str(caught.value.next)


def test_the_table_behind_the_predictions_counts(tmp_path: Path) -> None:
    folder, table = predictions(tmp_path / "out"), predictions(tmp_path / "studies", study_id="hash")
    record = yaml.safe_load((folder / "megpt.yaml").read_text())
    record["identity"]["source"] = {"path": str(table), "format": "table"}
    (folder / "megpt.yaml").write_text(yaml.safe_dump(record))
    with pytest.raises(InputError, match="are not StudyInstanceUIDs"):
        run(folder, "dicomweb://pacs/dicom-web")


def test_headers_that_make_no_document(pacs: Orthanc, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pacs.store(film(f"{UID}.8", 1, PatientBirthDate="SMITH"), film(f"{UID}.8", 2, PatientBirthDate="SMITH"))
    with pytest.raises(TooManyFailed, match="1 reports were not stored"):
        run(predictions(tmp_path / "out", [1, 8]), pacs.address)
    said = capsys.readouterr().err
    assert (
        f"send: {UID}.8: no document can be made of its films' headers (ValueError)\n" in said and "SMITH" not in said
    )
    with pytest.raises(TooManyFailed) as caught:
        run(predictions(tmp_path / "empty", [1, 2], report=" "), pacs.address)
    assert caught.value.cause == "most often: its row has no text (2)" and len(stored(pacs)) == 1


@pytest.mark.parametrize("module", ["highdicom", "dicomweb_client.api"])
def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError) as caught:
        run(predictions(tmp_path / "out"), "dicomweb://pacs/dicom-web")
    assert caught.value.what.endswith(" is not installed")
    assert caught.value.next == "pip install 'megpt[pacs]', on every node"


def test_what_cannot_be_sent_is_refused(tmp_path: Path) -> None:
    folder = predictions(tmp_path / "out")
    with pytest.raises(InputError, match="`to` is not set"):
        Send.run(load_config(None, [f"predictions={folder}"]))
    with pytest.raises(InputError) as caught:
        run(folder, "dicomweb://ray:hunter2@pacs/dicom-web")
    assert "hunter2" not in str(caught.value) and caught.value.what.startswith("`to` holds more than")
    with pytest.raises(InputError, match="`to` is not the address of a DICOMweb service"):
        run(folder, "https://pacs/dicom-web")
    with pytest.raises(InputError, match=r"^unknown key 'send.stored'\n.*\n  next:  did you mean send.store"):
        Send.run(load_config(None, [f"predictions={folder}", "options.send.stored=true"]))
    with pytest.raises(InputError, match="`predictions` is not set"):
        Send.run(load_config(None, []))
    (folder / "_SUCCESS").unlink()
    with pytest.raises(InputError, match="is not a finished output of `megpt generate`") as unfinished:
        run(folder, "dicomweb://pacs/dicom-web")
    assert unfinished.value.next == "run the same `megpt generate` again: it resumes"
    (tmp_path / "csv").mkdir()
    with pytest.raises(InputError, match=r"it has no megpt\.yaml of it"):
        run(tmp_path / "csv", "dicomweb://pacs/dicom-web")
    write_rows(folder / "reports/part-000000.parquet", [{"study_id": "s50414267"}], PREDICTIONS_SCHEMA)
    (folder / "_SUCCESS").write_text("{}")
    with pytest.raises(InputError, match="the films come from an archive that is not DICOM"):
        run(folder, "dicomweb://pacs/dicom-web")
