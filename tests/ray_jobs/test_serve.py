"""`megpt serve` as a command, on Ray Serve.

- 50 clients at once: every one is answered, each with the archive job's text
- the page in a real Chromium: a film is dropped, shown, its report appears as it is written; axe finds nothing
- neither a text nor a film's name is in any log; nothing of a film is on disk
- SIGTERM ends it with 143, and the port is free again
- refused before anything starts: no token where others can connect, a short one, a port in use, no such checkpoint
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import requests
from dicom_exports import film
from make_films import encoded, png

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("ray.serve", reason="the extra `serve` is not installed")

from megpt.config import load_config
from megpt.generation.answer import RESEARCH_ONLY
from megpt.model import fingerprint
from ray_jobs.__main__ import main

RULES = ("generate.min_new_tokens=20", "generate.max_new_tokens=40", "generate.num_beams=2")
CLIENTS = 50


def dicom(seed: int, study: str) -> bytes:
    data = film(study, seed, patient=f"PID-{study}")
    data.PixelData = np.random.default_rng(seed).integers(0, 255, (16, 24), dtype=np.uint8).tobytes()
    return encoded(data)


@dataclass(frozen=True)
class Running:
    process: subprocess.Popen[str]
    url: str
    folder: Path
    """Where Ray and everything else keep what is temporary."""


@pytest.fixture(scope="module")
def service(tiny_checkpoint: Path) -> Iterator[Running]:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # short: Ray's sockets lie below it
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ray_jobs", "serve", f"checkpoint={tiny_checkpoint}", f"port={port}", *RULES]
    environment = {**os.environ, "RAY_TMPDIR": str(folder), "TMPDIR": str(folder)}
    errors = (folder / "stderr").open("w+")
    process = subprocess.Popen(command, stdout=errors, stderr=errors, text=True, env=environment)
    running = Running(process, f"http://127.0.0.1:{port}", folder)
    try:
        deadline = time.monotonic() + 300
        while not answers(running.url):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "stderr").read_text()
            time.sleep(0.3)
        yield running
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=120)
        shutil.rmtree(folder)


def answers(url: str) -> bool:
    with contextlib.suppress(requests.RequestException):
        return requests.get(f"{url}/healthz", timeout=5).status_code == 200
    return False


@pytest.mark.slow
def test_fifty_clients(service: Running, tiny_checkpoint: Path, without_ray: None, tmp_path: Path) -> None:
    from ray_jobs.generate.job import Generate

    archive = tmp_path / "archive"
    archive.mkdir()
    studies = {f"1.2.{n}": dicom(n, f"1.2.{n}") for n in range(CLIENTS)}
    for name, body in studies.items():
        (archive / f"{name}.dcm").write_bytes(body)

    def ask(name: str) -> Any:
        headers = {"Content-Type": "application/dicom"}
        return requests.post(f"{service.url}/v1/reports", studies[name], headers=headers, timeout=300)

    with ThreadPoolExecutor(CLIENTS) as clients:
        answered = dict(zip(studies, clients.map(ask, studies), strict=True))
    assert {answer.status_code for answer in answered.values()} == {200}

    settings = [f"source={archive}", f"checkpoint={tiny_checkpoint}", f"output={tmp_path / 'out'}", *RULES]
    Generate.run(load_config(None, settings))
    tables = [pq.read_table(path).to_pylist() for path in (tmp_path / "out" / "reports").glob("*.parquet")]
    rows = {row["study_id"]: row for table in tables for row in table}
    same = ("report", "prompt_id", "num_tokens", "finish_reason", "model")
    for name, answer in answered.items():
        assert {key: answer.json()[key] for key in same} == {key: rows[name][key] for key in same}
    metrics = requests.get(f"{service.url}/metrics", timeout=60).text
    assert f'megpt_requests_total{{status="200"}} {CLIENTS:.1f}' in metrics


WATCH = """() => {
  window.drafts = [];
  new MutationObserver(() => window.drafts.push(document.getElementById("report").textContent))
    .observe(document.getElementById("report"), { childList: true, characterData: true, subtree: true });
}"""
DROP = """(bytes) => {
  const films = new DataTransfer();
  films.items.add(new File([new Uint8Array(bytes)], "SMITH_JOHN.dcm"));
  window.dispatchEvent(new DragEvent("drop", { dataTransfer: films, bubbles: true, cancelable: true }));
}"""


@pytest.mark.slow
def test_the_page(service: Running, browser: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe

    body = dicom(3, "1.2.3")
    expected = requests.post(
        f"{service.url}/v1/reports", body, headers={"Content-Type": "application/dicom"}, timeout=300
    ).json()
    tab = browser.new_context(viewport={"width": 1100, "height": 800}).new_page()
    troubles: list[str] = []
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    tab.goto(service.url)
    assert tab.inner_text(".notice") == RESEARCH_ONLY
    tab.evaluate(WATCH)
    tab.evaluate(DROP, list(body))
    tab.wait_for_selector("#report:not(.draft)", timeout=120_000)
    assert tab.text_content("#report") == expected["report"]
    assert [draft for draft in tab.evaluate("window.drafts") if draft and draft != expected["report"]]
    assert tab.text_content("#prompt") == f"cluster {expected['prompt_id']}: {expected['prompt']}"
    assert fingerprint(tiny_checkpoint) in tab.text_content("#model")
    assert "num_beams 2" in tab.text_content("#decoding") and tab.text_content("#state").startswith("Report")
    assert tab.evaluate("document.querySelector('#films img').naturalWidth") == 24
    found = Axe().run(tab).response["violations"]
    assert [(one["id"], [node["html"][:80] for node in one["nodes"]]) for one in found] == []

    # two films by the file dialog, then one that is none
    for number in (1, 2):
        (tmp_path / f"{number}.png").write_bytes(png())
    tab.set_input_files("#choose", [tmp_path / "1.png", tmp_path / "2.png"])
    tab.locator("#films img").nth(1).wait_for(timeout=120_000)
    tab.wait_for_selector("#report:not(.draft)", timeout=120_000)
    assert troubles == []
    (tmp_path / "text.png").write_text("no film")
    tab.set_input_files("#choose", tmp_path / "text.png")
    tab.locator("#error", has_text="No report: film 1 cannot be used: not a JPEG").wait_for(timeout=120_000)
    assert not tab.is_visible("#study")
    tab.set_viewport_size({"width": 390, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    tab.context.close()


@pytest.mark.slow
def test_nothing_is_left(service: Running) -> None:
    body = dicom(4, "1.2.4")
    answer = requests.post(
        f"{service.url}/v1/reports", files={"films": ("SMITH_JOHN.dcm", body, "application/dicom")}, timeout=300
    )
    report = answer.json()["report"]
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(timeout=120) == 143
    assert not answers(service.url)
    said = (service.folder / "stderr").read_text()
    assert f"http://127.0.0.1:{service.url.rpartition(':')[2]}" in said and "Traceback" not in said
    files = [path for path in service.folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    secrets = [report[:20].encode(), b"SMITH", b"PID-1.2.4", body[-60:]]
    for path in files:
        content = path.read_bytes()
        assert not [secret for secret in secrets if secret in content], path


@pytest.mark.parametrize(
    ("token", "arguments", "text"),
    [
        (None, ["host=0.0.0.0"], "serve.host = '0.0.0.0' can be reached from other machines, and there is no token"),
        (None, ["host=::"], "serve.host = '::' can be reached from other machines, and there is no token"),
        ("short", [], "MEGPT_SERVE_TOKEN has fewer than 16 characters"),
        ("t" * 16, ["host=8.8.8.8"], "cannot listen on 8.8.8.8:"),
        (None, ["checkpoint=gone"], "no checkpoint at 'gone'"),
        (None, ["output=x"], "serve does not read output"),
    ],
)
def test_refused(
    token: str | None,
    arguments: list[str],
    text: str,
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("MEGPT_SERVE_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("MEGPT_SERVE_TOKEN", token)
    assert main(["serve", f"checkpoint={tiny_checkpoint}", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"error: {text}")


def test_a_port_in_use(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", f"checkpoint={tiny_checkpoint}", f"port={port}"]) == 2
        assert capsys.readouterr().err.startswith(f"error: cannot listen on 127.0.0.1:{port}\n  cause: Address already")


def test_a_dry_run(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", f"checkpoint={tiny_checkpoint}", "--dry-run"]) == 0
    assert f"fingerprint {fingerprint(tiny_checkpoint)}" in capsys.readouterr().err
