"""A PACS as source, against Debian's Orthanc on loopback.

- its studies, views, ids and patients are those that the `dicom` source finds in the same files
- the next day asks for the headers of new studies only; a study that got a film counts as changed
- dates, days, description, modalities and page say what is asked for; what a part does not list is not gone
- prepare stores the films, or links to them, and a linked table's films are read from the PACS
- options and addresses that cannot be used are refused by name, and no password is shown
- the connection may be TLS, with a bundle of the hospital's own
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import requests
from dicom_exports import film, studies, write_exports
from local_jobs import LocalPrepare
from orthanc_server import Orthanc, Proxy, needs_orthanc
from pydicom import dcmread

from megpt.config import DataConfig, load_config
from megpt.data.sources import open_source
from megpt.data.studies import read_studies
from megpt.errors import InputError
from megpt.films.decode import load_film
from megpt.study import Study

pytest.importorskip("dicomweb_client")
pytestmark = needs_orthanc
UID = "1.2.826.0.1.3680043.8.498"


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """Sixteen studies of eight kinds (dicom_exports.study_files)."""
    with Orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        for _, _, files, _ in studies(16):
            server.store(*(made.data for made in files))
        yield server


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Orthanc]:
    with Orthanc(tmp_path / "orthanc") as server:
        yield server


def listed(place: Any, out: Path | None = None, **options: Any) -> list[Study]:
    source = open_source(place, data=DataConfig(options=options))
    if out is not None:
        out.mkdir(exist_ok=True)
        source.keep_in(out)
    return list(source.studies())


def run(*overrides: str) -> None:
    LocalPrepare.run(load_config(None, list(overrides)))


def test_the_studies_are_those_of_the_same_files(
    pacs: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEGPT_SUBJECT_KEY", "0123456789abcdef")
    expected = write_exports(tmp_path / "files", 16)

    def plain(found: list[Study]) -> list[Any]:
        return sorted((s.study_id, s.subject_id, [(v.image_id, v.position) for v in s.views], s.error) for s in found)

    from_pacs = plain(listed(pacs.address, tmp_path / "out"))
    assert from_pacs == plain(listed(tmp_path / "files"))
    assert {name: [position for _, position in views] for name, _, views, _ in from_pacs} == {
        name: views for name, views in expected.items() if views
    }
    assert len(from_pacs) == 12
    left_out = {row["study_id"]: row["kinds"] for row in pq.read_table(tmp_path / "out/left_out.parquet").to_pylist()}
    assert left_out == {f"{UID}.{n}": kinds for ns, kinds in (((4, 12), ["MR"]), ((5, 13), ["CR HAND"])) for n in ns}
    said = capsys.readouterr().err
    assert (
        "dicomweb: 12 studies, 16 films, 0 files that cannot be used (16 studies of the PACS, 16 of them new)" in said
    )
    assert "SMITH" not in said and "PID" not in said
    index = (tmp_path / "out/dicom_index.sqlite").read_bytes()
    assert b"SMITH" not in index and b"PID-" not in index


def test_the_next_day_asks_for_new_studies_only(own: Orthanc, tmp_path: Path) -> None:
    own.store(film(f"{UID}.1", 1), film(f"{UID}.2", 1, patient="PID-2"))
    with Proxy(own.port) as proxy:

        def asked() -> list[str]:
            paths = [path.partition("?")[0].removeprefix("/dicom-web/") for _, path, _ in proxy.requests]
            proxy.requests.clear()
            return sorted(path for path in paths if path != "studies")

        first = listed(proxy.address, tmp_path / "out")
        assert asked() == [f"studies/{UID}.{n}/series{rest}" for n in (1, 2) for rest in ("", f"/{UID}.{n}.1/metadata")]
        assert listed(proxy.address, tmp_path / "out") == first and asked() == []
        own.store(film(f"{UID}.3", 1, patient="PID-2"), film(f"{UID}.1", 2))
        third = listed(proxy.address, tmp_path / "out")
        assert [len(study.views) for study in third] == [2, 1, 1] and third[1] == first[1]
        assert [path for path in asked() if path.endswith("/series")] == [f"studies/{UID}.{n}/series" for n in (1, 3)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 2, 3]),
        ({"dates": "20261125"}, [2]),
        ({"dates": 20261125}, [2]),
        ({"dates": "20261125-"}, [2, 3]),
        ({"dates": "-20261125"}, [1, 2]),
        ({"dates": "20261101-20261124"}, [1]),
        ({"days": 1}, [3]),
        ({"description": "*chest*"}, [1, 2]),
        ({"page": 1}, [1, 2, 3]),
        ({"page": 2}, [1, 2, 3]),
    ],
)
def test_what_is_asked_for(filtered: Orthanc, options: dict[str, Any], expected: list[int]) -> None:
    source = open_source(filtered.address, data=DataConfig(options=options))
    assert sorted(study.study_id for study in source.studies()) == [f"{UID}.{n}" for n in expected]
    assert source.whole == (not options or "page" in options)


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """Three studies of as many days; the last is of today."""
    today = f"{datetime.date.today():%Y%m%d}"
    with Orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        server.store(
            film(f"{UID}.1", 1, StudyDate="20261124", StudyDescription="XR Chest PA"),
            film(f"{UID}.2", 1, StudyDate="20261125", StudyDescription="CHEST AP", Modality="CR"),
            film(f"{UID}.3", 1, StudyDate=today, StudyDescription="Thorax"),
        )
        yield server


def test_modalities_and_most(filtered: Orthanc) -> None:
    only = open_source(filtered.address, data=DataConfig(modalities=("CR",)))
    assert [study.study_id for study in only.studies()] == [f"{UID}.2"]
    assert len(listed(filtered.address, most=2)) == 2


def test_prepare_day_by_day(own: Orthanc, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    days = ("20261124", "20261125", "20261126")
    own.store(*(film(f"{UID}.{n}", 1, patient=f"PID-{n}", StudyDate=days[0]) for n in range(2)))
    out = f"output={tmp_path / 'out'}"
    run(f"source={own.address}", out, "prepare.films=link")
    own.store(film(f"{UID}.7", 1, patient="PID-1", StudyDate=days[1]))
    run(f"source={own.address}", out, "prepare.films=link", f"data.options.dates={days[1]}")
    said = capsys.readouterr().err
    assert "prepare: 1 new studies" in said and "not in the source any more" not in said
    table = list(read_studies(tmp_path / "out"))
    assert sorted(study.study_id for study in table) == [f"{UID}.{n}" for n in (0, 1, 7)]
    assert len({study.subject_id for study in table}) == 2
    assert all(view.data is None for study in table for view in study.views)
    # linked films are read from the PACS, by whoever reads the table
    again = listed(tmp_path / "out")
    assert {load_film(view, size=None, max_pixels=10**6).size for study in again for view in study.views} == {(24, 16)}
    own.delete_study(f"{UID}.0")
    run(f"source={own.address}", out, "prepare.films=link")
    assert "1 studies are not in the source any more" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"source\.options\.description: None → '\*chest\*'"):
        run(f"source={own.address}", out, "prepare.films=link", "data.options.description=*chest*")


def test_embedded_films_are_the_files_of_the_pacs(own: Orthanc, tmp_path: Path) -> None:
    stored = film(f"{UID}.1", 1)
    own.store(stored)
    run(f"source={own.address}", f"output={tmp_path / 'out'}", "prepare.films=embed")
    (study,) = read_studies(tmp_path / "out")
    (tmp_path / "film.dcm").write_bytes(study.views[0].data or b"")
    read = dcmread(tmp_path / "film.dcm")
    assert read.PixelData == stored.PixelData and study.views[0].uri is None
    record = (tmp_path / "out/megpt.yaml").read_text() + (tmp_path / "out/run.json").read_text()
    assert own.address in record


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"date": "20261101"}, "unknown key 'data.options.date'\n"),
        ({"dates": "2026-11-01"}, "data.options.dates = '2026-11-01': it is YYYYMMDD, YYYYMMDD-YYYYMMDD, or one"),
        ({"dates": "20261301"}, "data.options.dates = '20261301': month must be in 1..12"),
        ({"page": 0}, "data.options.page = 0: "),
        ({"dates": "20261101", "days": 2}, "dates and days are both set"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError) as caught:
        open_source("dicomweb://pacs/dicom-web", data=DataConfig(options=options))
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "dicomweb://doctor:hunter2@pacs/dicom-web",
        "dicomweb://hunter2@pacs/dicom-web",
        "dicomweb://pacs/dicom-web?token=hunter2",
        "dicomweb://pacs/dicom-web#hunter2",
        "dicomweb:///hunter2",
        "dicomweb://pacs:hunter2/dicom-web",
    ],
)
def test_addresses_that_hold_too_much_or_too_little(address: str) -> None:
    with pytest.raises(InputError) as caught:
        open_source(address, data=DataConfig())
    assert "hunter2" not in str(caught.value) and "`source`" in str(caught.value)


def test_tls(filtered: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = certificate(tmp_path)
    with Proxy(filtered.port, tmp_path / "both.pem") as proxy:
        with pytest.raises(InputError) as caught:
            listed(proxy.address)
        assert "the PACS has no certificate that is trusted here" in str(caught.value)
        assert caught.value.next == "check host, port and TLS (docs/pacs.md), and run it again"
        monkeypatch.setenv("MEGPT_PACS_CA_BUNDLE", str(bundle))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", requests.certs.where())
        study, *_ = listed(proxy.address)
        assert load_film(study.views[0], size=None, max_pixels=10**6).size == (24, 16)
    monkeypatch.setenv("MEGPT_PACS_CA_BUNDLE", str(tmp_path / "nowhere.pem"))
    with pytest.raises(InputError, match="MEGPT_PACS_CA_BUNDLE names no file"):
        listed(proxy.address)


def certificate(folder: Path) -> Path:
    """A certificate of localhost, and both.pem with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.x509.oid import NameOID

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    (folder / "certificate.pem").write_bytes(pem)
    (folder / "both.pem").write_bytes(secret + pem)
    return folder / "certificate.pem"
