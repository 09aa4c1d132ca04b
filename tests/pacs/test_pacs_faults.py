"""A PACS that fails: a proxy in front of Debian's Orthanc refuses, breaks off, cuts short or dawdles.

- 503, 429, resets, half a multipart, silence: tried again, within a bound; what is left is an error row that says so
- 401, 404 and 503 of one film are error rows; the job goes on, and `retry=failed` mends the table
- a study that vanishes between query and retrieve is an error row, and is retried
- 401, 404, a wrong port at the first question end the job with exit code 2 and nothing written
- a PACS that is down ends the job, not the studies: the same command resumes
- credentials come from the environment only; neither they nor anyone's name reach a log, an error or a file
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from dicom_exports import film
from local_jobs import LocalPrepare
from orthanc_server import Orthanc, Proxy, free_port, needs_orthanc

from megpt.config import DataConfig, load_config
from megpt.data.sources import open_source
from megpt.data.studies import read_studies
from megpt.errors import InputError, MegptError, TooManyFailed
from megpt.films.decode import UnreadableFilm, load_film
from megpt.study import View

pytest.importorskip("dicomweb_client")
from megpt_pacs import client, films

pytestmark = needs_orthanc
UID = "1.2.826.0.1.3680043.8.498"
SECRET = "hunter2-token"


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """Six studies of one film each, behind a password."""
    with Orthanc(tmp_path_factory.mktemp("orthanc"), users={"ray": SECRET}) as server:
        server.store(*(film(f"{UID}.{n}", 1, patient=f"PID-{n}") for n in range(6)))
        yield server


@pytest.fixture
def proxy(pacs: Orthanc, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setenv("MEGPT_PACS_USER", "ray")
    monkeypatch.setenv("MEGPT_PACS_PASSWORD", SECRET)
    monkeypatch.setattr(client, "PAUSE_S", 0.001)
    films._pacs.cache_clear()
    with Proxy(pacs.port) as between:
        yield between


def run(proxy: Proxy, out: Path, *overrides: str) -> None:
    allowed = "prepare.max_failed_fraction=1"
    LocalPrepare.run(load_config(None, [f"source={proxy.address}", f"output={out}", allowed, *overrides]))


def errors(out: Path) -> dict[str, str]:
    """Study number → reason."""
    rows = pq.read_table(out / "failed.parquet", columns=["study_id", "error"]).to_pylist()
    return {row["study_id"].rpartition(".")[2]: row["error"] for row in rows}


def view(proxy: Proxy, number: int = 1) -> View:
    uid = f"{UID}.{number}"
    return View("", uri=f"{proxy.address}/studies/{uid}/series/{uid}.1/instances/{uid}.1.1")


def only_film(number: int, fault: int | float | str, *, times: int = 1000):
    """Spoils the answers to requests of one film, so many times."""
    left = [times]

    def spoil(method: str, path: str) -> int | float | str | None:
        if not path.endswith(f"instances/{UID}.{number}.1.1") or not left[0]:
            return None
        left[0] -= 1
        return fault

    return spoil


@pytest.mark.parametrize("fault", [429, 502, 503, 504, "reset", "half", "short"])
def test_what_passes_is_tried_again(proxy: Proxy, fault: int | str) -> None:
    proxy.spoil = only_film(1, fault, times=client.TRIES - 1)
    assert load_film(view(proxy), size=None, max_pixels=10**6).size == (24, 16)
    assert len(proxy.requests) == client.TRIES


@pytest.mark.parametrize(
    ("fault", "reason", "tries"),
    [
        (401, "the PACS refuses the credentials (401)", 1),
        (403, "the PACS forbids it (403)", 1),
        (404, "not in the PACS (404)", 1),
        (410, "no longer in the PACS (410)", 1),
        (500, "the PACS answers 500", 1),
        (503, "the PACS answers 503 (5 tries)", 5),
        ("reset", "the PACS cannot be reached, or breaks the connection (5 tries)", 5),
        ("half", "the answer of the PACS ends early (5 tries)", 5),
        ("short", "the answer of the PACS ends early (5 tries)", 5),
    ],
)
def test_what_stays_is_the_reason(proxy: Proxy, fault: int | str, reason: str, tries: int) -> None:
    proxy.spoil = only_film(3, fault)
    with pytest.raises(UnreadableFilm) as caught:
        load_film(view(proxy, 3), size=None, max_pixels=10**6)
    assert caught.value.reason == reason and len(proxy.requests) == tries


@pytest.mark.parametrize(
    ("fault", "reason"), [(404, "not in the PACS (404)"), ("short", "the answer of the PACS ends early (5 tries)")]
)
def test_a_film_that_fails_is_an_error_row(
    proxy: Proxy, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: int | str, reason: str
) -> None:
    proxy.spoil = only_film(3, fault)
    run(proxy, tmp_path / "out")
    assert errors(tmp_path / "out") == {"3": reason}
    assert len(list(read_studies(tmp_path / "out"))) == 5
    # and mended
    proxy.spoil = lambda method, path: None
    run(proxy, tmp_path / "out", "retry=failed")
    assert len(list(read_studies(tmp_path / "out"))) == 6 and errors(tmp_path / "out") == {}
    assert "SMITH" not in capsys.readouterr().err


def test_a_slow_film(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGPT_PACS_TIMEOUT_S", "0.2")
    monkeypatch.setattr(client, "TRIES", 2)
    proxy.spoil = only_film(1, 1.0)
    with pytest.raises(UnreadableFilm, match=r"^the PACS did not answer within 0.2 s \(2 tries\)$"):
        load_film(view(proxy), size=None, max_pixels=10**6)
    proxy.spoil = only_film(1, 1.0, times=1)
    assert load_film(view(proxy), size=None, max_pixels=10**6).size == (24, 16)


@pytest.mark.parametrize(
    ("spoiled", "fault", "reason"),
    [
        ("metadata", 404, "not in the PACS (404)"),
        ("metadata", 503, "the PACS answers 503 (5 tries)"),
        ("metadata", "short", "the answer of the PACS is not DICOM JSON (5 tries)"),
        ("series?", 404, "not in the PACS (404)"),
    ],
)
def test_a_study_that_vanishes_between_query_and_retrieve(
    proxy: Proxy, capsys: pytest.CaptureFixture[str], spoiled: str, fault: int | str, reason: str
) -> None:
    proxy.spoil = lambda method, path: fault if f"{UID}.2/" in path and spoiled in path else None
    found = {study.study_id: study for study in open_source(proxy.address, data=DataConfig()).studies()}
    assert len(found) == 6 and {name: study.error for name, study in found.items() if study.error} == {
        f"{UID}.2": reason
    }
    assert len(found[f"{UID}.2"].subject_id) == 32  # so that it stays in its patient's split
    assert "dicomweb: the headers of 1 studies could not be read: they are error rows" in capsys.readouterr().err


def test_a_study_whose_headers_come_later(proxy: Proxy, tmp_path: Path) -> None:
    proxy.spoil = lambda method, path: 404 if f"{UID}.2/" in path else None
    run(proxy, tmp_path / "out")
    assert errors(tmp_path / "out") == {"2": "not in the PACS (404)"}
    proxy.spoil = lambda method, path: None
    run(proxy, tmp_path / "out", "retry=failed")
    assert len(list(read_studies(tmp_path / "out"))) == 6 and errors(tmp_path / "out") == {}


def test_a_study_deleted_after_the_plan(pacs: Orthanc, proxy: Proxy, tmp_path: Path) -> None:
    pacs.store(film(f"{UID}.9", 1))
    source = open_source(proxy.address, data=DataConfig())
    (gone,) = [study for study in source.studies() if study.study_id == f"{UID}.9"]
    pacs.delete_study(f"{UID}.9")
    with pytest.raises(UnreadableFilm, match=r"^not in the PACS \(404\)$"):
        load_film(gone.views[0], size=None, max_pixels=10**6)


@pytest.mark.parametrize(
    ("fault", "text", "following"),
    [
        (401, "the PACS refuses the credentials (401)", "export MEGPT_PACS_TOKEN=…"),
        (403, "the PACS forbids it (403)", "export MEGPT_PACS_TOKEN=…"),
        (404, "no DICOMweb service at ", "give the path too, such as dicomweb://HOST:8042/dicom-web"),
        (503, "the PACS answers 503 (5 tries)", "check host, port and TLS"),
        ("reset", "breaks the connection (5 tries)", "check host, port and TLS"),
    ],
)
def test_a_first_question_without_answer(
    proxy: Proxy, tmp_path: Path, fault: int | str, text: str, following: str
) -> None:
    proxy.spoil = lambda method, path: fault
    with pytest.raises(InputError) as caught:
        run(proxy, tmp_path / "out")
    assert text in caught.value.what and str(caught.value.next).startswith(following)
    assert not (tmp_path / "out").exists()
    assert SECRET not in str(caught.value) and "SMITH" not in str(caught.value)


def test_nobody_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PAUSE_S", 0.001)
    with pytest.raises(InputError, match="the PACS cannot be reached"):
        list(open_source(f"dicomweb://localhost:{free_port()}/dicom-web", data=DataConfig()).studies())


def test_a_list_that_breaks_off(proxy: Proxy, tmp_path: Path) -> None:
    proxy.spoil = lambda method, path: 503 if "offset=2" in path else None
    with pytest.raises(MegptError, match="stopped in the middle of its list of studies") as caught:
        run(proxy, tmp_path / "out", "data.options.page=2")
    assert caught.value.exit_code == 1 and (tmp_path / "out/dicom_index.sqlite").exists()
    proxy.spoil = lambda method, path: None
    run(proxy, tmp_path / "out", "data.options.page=2")
    assert len(list(read_studies(tmp_path / "out"))) == 6


def test_a_service_without_pages(proxy: Proxy, pacs: Orthanc) -> None:
    all_of_them, two = (
        pacs.request("GET", "/dicom-web/studies", params=asked, headers={"Accept": "application/json"}).content
        for asked in ({}, {"limit": 2})
    )
    proxy.spoil = lambda method, path: all_of_them if "/studies?" in path else None
    assert len(list(open_source(proxy.address, data=DataConfig(options={"page": 2})).studies())) == 6
    proxy.spoil = lambda method, path: two if "/studies?" in path else None
    with pytest.raises(MegptError) as caught:
        list(open_source(proxy.address, data=DataConfig(options={"page": 2})).studies())
    assert caught.value.cause == "it gives the same 2 studies again: set data.options.page above their number"


def test_a_pacs_that_is_down_ends_the_job(proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MOST_SILENT", 3)
    proxy.spoil = lambda method, path: 503 if "/instances/" in path else None
    with pytest.raises(MegptError, match="gave no answer to 3 requests in a row") as caught:
        run(proxy, tmp_path / "out", "prepare.shard_size=1")
    assert caught.value.exit_code == 1 and caught.value.cause == "the PACS answers 503 (5 tries)"
    proxy.spoil = lambda method, path: None
    run(proxy, tmp_path / "out", "prepare.shard_size=1", "retry=failed")
    assert len(list(read_studies(tmp_path / "out"))) == 6 and errors(tmp_path / "out") == {}


def test_too_many_failures_are_exit_code_3(proxy: Proxy, tmp_path: Path) -> None:
    proxy.spoil = only_film(3, 404)
    with pytest.raises(TooManyFailed):
        run(proxy, tmp_path / "out", "prepare.max_failed_fraction=0.1")


def test_credentials_stay_in_the_environment(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(proxy, tmp_path / "out")
    assert {sent for *_, sent in proxy.requests} == {"Basic cmF5Omh1bnRlcjItdG9rZW4="}
    everything = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    said = capsys.readouterr()
    for secret in (SECRET, "cmF5Omh1bnRlcjI", "SMITH", "19501224", "PID-"):
        assert secret.encode() not in everything and secret not in said.out + said.err
    monkeypatch.delenv("MEGPT_PACS_USER")
    monkeypatch.delenv("MEGPT_PACS_PASSWORD")
    monkeypatch.setenv("MEGPT_PACS_TOKEN", f" {SECRET}\n")
    proxy.requests.clear()
    with pytest.raises(InputError, match=r"refuses the credentials \(401\)"):  # Orthanc knows no tokens
        list(open_source(proxy.address, data=DataConfig()).studies())
    assert proxy.requests[0][2] == f"Bearer {SECRET}"
    monkeypatch.delenv("MEGPT_PACS_TOKEN")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text(f"machine localhost login ray password {SECRET}\n")
    with pytest.raises(InputError, match=r"asks for credentials \(401\)"):
        list(open_source(proxy.address, data=DataConfig()).studies())


def test_a_redirect_takes_no_credentials_along(proxy: Proxy, pacs: Orthanc) -> None:
    with Proxy(pacs.port) as elsewhere:
        place = elsewhere.address.replace("dicomweb://", "http://")
        proxy.spoil = lambda method, path: f"{place}/studies"
        with pytest.raises(InputError, match=r"\(401\)"):
            list(open_source(proxy.address, data=DataConfig()).studies())
        assert proxy.requests[0][2].startswith("Basic ") and elsewhere.requests[0][2] == ""


@pytest.mark.parametrize("answer", [b"7", b"null", b'["SMITH"]', b"<html>SMITH</html>"])
def test_answers_that_are_no_dicom(proxy: Proxy, answer: bytes) -> None:
    proxy.spoil = lambda method, path: answer
    with pytest.raises(InputError) as caught:
        list(open_source(proxy.address, data=DataConfig()).studies())
    assert "the answer of the PACS is not DICOM JSON" in caught.value.what and "SMITH" not in str(caught.value)
    proxy.spoil = lambda method, path: b"<html>" if "/instances/" in path else None
    with pytest.raises(UnreadableFilm, match=r"^not a JPEG, PNG, DICOM"):
        load_film(view(proxy), size=None, max_pixels=10**6)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"TOKEN": "a", "USER": "b", "PASSWORD": SECRET}, "both MEGPT_PACS_TOKEN and MEGPT_PACS_USER are set"),
        ({"USER": "b"}, "MEGPT_PACS_USER is set without the other half"),
        ({"PASSWORD": SECRET}, "MEGPT_PACS_PASSWORD is set without the other half"),
        ({"TOKEN": f"{SECRET} 2"}, "MEGPT_PACS_TOKEN is not a token"),
        ({"TIMEOUT_S": "soon"}, "MEGPT_PACS_TIMEOUT_S = 'soon' is not a number of seconds"),
    ],
)
def test_credentials_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, given: dict[str, str], text: str) -> None:
    for name, value in given.items():
        monkeypatch.setenv(f"MEGPT_PACS_{name}", value)
    with pytest.raises(InputError) as caught:
        client.Pacs("dicomweb://pacs/dicom-web")
    assert caught.value.what == text and SECRET not in str(caught.value)


def test_uris_that_are_no_films() -> None:
    for uri, reason in {
        "dicomweb://pacs/dicom-web/studies/1.2": "not the address of a film in a PACS",
        "dicomweb://a:b@pacs/studies/1/series/2/instances/3": "not the address of a film in a PACS",
    }.items():
        with pytest.raises(UnreadableFilm) as caught:
            load_film(View("", uri=uri), size=None, max_pixels=10**6)
        assert caught.value.reason == reason
