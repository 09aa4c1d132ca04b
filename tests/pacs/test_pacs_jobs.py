"""From a PACS and back, by the commands of docs/pacs.md, on Ray: prepare, generate, send.

- films are read by Ray's workers, from the PACS itself and by way of a table that links to them
- six studies give six reports, and the PACS then has one document a study; the next day's study is added
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from dicom_exports import film
from orthanc_server import Orthanc, needs_orthanc

from ray_jobs.__main__ import main

pytest.importorskip("dicomweb_client")
pytest.importorskip("highdicom")
pytestmark = [needs_orthanc, pytest.mark.slow]
UID = "1.2.826.0.1.3680043.8.498"


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[Orthanc]:
    with Orthanc(tmp_path / "orthanc") as server:
        server.store(*(film(f"{UID}.{n}", 1, patient=f"PID-{n}", ViewPosition="PA") for n in range(6)))
        yield server


def test_there_and_back(without_ray: None, tiny_checkpoint: Path, pacs: Orthanc, tmp_path: Path) -> None:
    rules = ["generate.max_new_tokens=8", "generate.min_new_tokens=1", f"checkpoint={tiny_checkpoint}"]

    def megpt(job: str, *words: str) -> None:
        assert main([job, *words]) == 0

    def documents() -> list[str]:
        return sorted(entry["0020000D"] for entry in pacs.found("instances", Modality="SR"))

    studies, first, second = tmp_path / "studies", tmp_path / "first", tmp_path / "second"
    megpt("prepare", f"source={pacs.address}", f"output={studies}", "prepare.films=link")
    megpt("generate", f"studies={studies}", f"output={first}", *rules)
    megpt("send", f"predictions={first}", f"to={pacs.address}")
    assert documents() == []
    megpt("send", f"predictions={first}", f"to={pacs.address}", "send.store=true")
    assert documents() == [f"{UID}.{n}" for n in range(6)]
    pacs.store(film(f"{UID}.7", 1, patient="PID-1"))
    megpt("generate", f"source={pacs.address}", f"output={second}", *rules)
    megpt("send", f"predictions={second}", f"to={pacs.address}", "send.store=true")
    assert documents() == [f"{UID}.{n}" for n in (0, 1, 2, 3, 4, 5, 7)]
    both = [pq.read_table(folder / "reports", columns=["study_id", "report"]).to_pylist() for folder in (first, second)]
    assert {row["study_id"]: row["report"] for row in both[0]} == {
        row["study_id"]: row["report"] for row in both[1] if row["study_id"] != f"{UID}.7"
    }
