"""The web application of `megpt serve`, over HTTP, with a model and without Ray.

- the body is a film, or a form of films; the answer is that of `megpt report --json` for the same films
- as events: the films, the text so far, the report
- a bad upload is answered with 4xx and a reason that quotes nothing of it: no film, damaged, a bomb, two patients, …
- too large: 413, read or declared; nothing goes to disk, however large
- too many at once or in a minute: 429
- with a token everything but the page and /healthz needs it; without one only this machine's own pages may ask
- /healthz, /metrics; unknown paths and methods are answered in JSON
"""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from dicom_exports import SECRETS, film
from make_films import encoded, png
from PIL import Image

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
import uvicorn

from megpt.config import load_config
from megpt.generation.answer import RESEARCH_ONLY, Author
from ray_jobs.__main__ import main
from ray_jobs.serve.app import Service, make_app
from ray_jobs.serve.job import Writer

RULES = ("generate.min_new_tokens=2", "generate.max_new_tokens=8", "generate.num_beams=3")
FORM = {"Content-Type": "multipart/form-data; boundary=x"}


@pytest.fixture(scope="module")
def writer(tiny_checkpoint: Path) -> Writer:
    return Writer(Author.of(load_config(None, [f"checkpoint={tiny_checkpoint}", *RULES])), None)


@contextlib.contextmanager
def served(writer: Writer, *overrides: str, token: str | None = None) -> Iterator[str]:
    """The address of a service with other settings."""
    author = writer.author
    changed = author.config.overridden(dict(override.split("=") for override in overrides))

    async def side() -> int:
        return writer.side()

    service = Service(writer.write, Author(**{**vars(author), "config": changed}), side, token)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(make_app(service), port=port, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def url(writer: Writer) -> Iterator[str]:
    with served(writer) as address:
        yield address


def dicom(seed: int, study: str = "1.2.3", **tags: Any) -> bytes:
    data = film(study, seed, **tags)
    data.PixelData = np.random.default_rng(seed).integers(0, 255, (16, 24), dtype=np.uint8).tobytes()
    return encoded(data)


def post(url: str, *films: bytes, **options: Any) -> requests.Response:
    return requests.post(f"{url}/v1/reports", files=[("films", ("f", one)) for one in films], timeout=60, **options)


def test_a_report(url: str, tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bodies = {"a.dcm": dicom(1, ViewPosition="LATERAL"), "b.dcm": dicom(2, ViewPosition="PA"), "c.png": png()}
    for name, body in bodies.items():
        (tmp_path / name).write_bytes(body)
    for names in (["a.dcm", "b.dcm"], ["c.png"]):
        main(["report", *(str(tmp_path / name) for name in names), f"checkpoint={tiny_checkpoint}", *RULES, "--json"])
        expected = json.loads(capsys.readouterr().out) | {"films_unused": 0, "notes": []}
        answer = post(url, *(bodies[name] for name in names))
        assert (answer.status_code, answer.json()) == (200, expected)
        assert answer.headers["cache-control"] == "no-store"
    for media, name in (("application/dicom", "a.dcm"), ("image/png", "c.png"), ("application/octet-stream", "c.png")):
        alone = requests.post(f"{url}/v1/reports", bodies[name], headers={"Content-Type": media}, timeout=60)
        assert alone.status_code == 200 and alone.json()["notice"] == RESEARCH_ONLY
    assert alone.json() == expected


def test_events(url: str) -> None:
    answer = post(url, png(), headers={"Accept": "text/event-stream"})
    events = [event.split("\n", 1) for event in answer.text.strip().split("\n\n")]
    names = [name.removeprefix("event: ") for name, _ in events]
    found = [json.loads(data.removeprefix("data: ")) for _, data in events]
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert names[0] == "films" and names[-1] == "report" and set(names[1:-1]) <= {"text"}
    assert found[-1] == post(url, png()).json()
    assert len(found[0]["films"]) == 1 and found[0]["films"][0].startswith("/9j/")


def test_a_film_for_processing(url: str) -> None:
    answer = post(url, dicom(1, PresentationIntentType="FOR PROCESSING")).json()
    assert answer["notes"] == [
        "film 1 is FOR PROCESSING by its header: detector values, which may look unlike any film"
    ]


def test_a_client_that_goes(writer: Writer) -> None:
    with served(writer) as url:
        with post(url, png(), headers={"Accept": "text/event-stream"}, stream=True) as answer:
            assert answer.raw.read(10) == b"event: fil"
        deadline = time.monotonic() + 30
        while "megpt_in_flight 0.0" not in requests.get(f"{url}/metrics", timeout=60).text:
            assert time.monotonic() < deadline
        assert post(url, png()).status_code == 200


def test_films_beyond_max_views(writer: Writer) -> None:
    with served(writer, "data.max_views=1") as url:
        answer = post(url, dicom(1, ViewPosition="LATERAL"), dicom(2, ViewPosition="PA")).json()
        assert (answer["films"], answer["films_unused"]) == (1, 1)
        assert answer["report"] == post(url, dicom(2, ViewPosition="PA")).json()["report"]


def bomb() -> bytes:
    """A PNG whose header claims 400 million pixels."""
    data = bytearray(png())
    data[16:24] = (20_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("films", "status", "reason"),
    [
        ([b"The patient has an effusion."], 422, "film 1 cannot be used: not a JPEG, PNG, DICOM, TIFF, BMP"),
        ([png(), b""], 400, "a film is empty"),
        ([png(np.eye(90, dtype=np.uint8) * 200)[:-60]], 422, "a film cannot be decoded: damaged PNG (OSError)"),
        ([bomb()], 422, "film 1 cannot be used: 20000x20000 pixels, more than data.max_pixels"),
        (
            [gzip.compress(bytes(128) + b"DICM" + bytes(50_000_000))],
            422,
            "film 1 cannot be used: damaged DICOM (a header without end)",
        ),
        ([dicom(1), dicom(2, "1.2.4", patient="PID-2")], 422, "film 1 and film 2 are of two patients; one report is"),
        ([dicom(1), dicom(2, "1.2.4")], 422, "film 1 and film 2 are of two studies; films of two examinations"),
        ([dicom(1), dicom(1)], 422, "film 1 and film 2 are one film; one SOPInstanceUID"),
        ([dicom(1, Modality="CT")], 422, "film 1 is no chest film; its header says modality CT"),
        ([png()] * 9, 413, "more than 8 films"),
    ],
)
def test_a_bad_upload(url: str, films: list[bytes], status: int, reason: str) -> None:
    for headers in ({}, {"Accept": "text/event-stream"}):
        answer = post(url, *films, headers=headers)
        assert answer.status_code == status and answer.json()["error"].startswith(reason)
        assert not [secret for secret in (*SECRETS, "effusion") if secret in answer.text]


@pytest.mark.parametrize(
    ("headers", "body", "status", "reason"),
    [
        ({"Content-Type": "text/plain"}, b"x", 415, "send multipart/form-data, application/dicom or an image type"),
        ({}, b"x", 415, "send multipart/form-data"),
        ({"Content-Type": "image/png"}, b"", 400, "the request holds no film"),
        ({"Content-Type": "multipart/form-data"}, b"x", 400, "the form cannot be read"),
        (FORM, b"nonsense", 400, "the form "),
        (FORM, b"--x--\r\n", 400, "the request holds no film"),
        (FORM, b'--x\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\nabc', 400, "the form breaks off"),
        (
            FORM,
            b'--x\r\nContent-Disposition: form-data; name="f"\r\n\r\na\r\n--x--',
            400,
            "the form holds a field that",
        ),
    ],
)
def test_a_bad_request(url: str, headers: dict[str, str], body: bytes, status: int, reason: str) -> None:
    answer = requests.post(f"{url}/v1/reports", body, headers=headers, timeout=60)
    assert answer.status_code == status and answer.json()["error"].startswith(reason)


def test_size_and_disk(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    def spilled(self: Any) -> None:
        raise AssertionError("a film would be written to disk")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", spilled)
    noise = np.random.default_rng(0).integers(0, 255, (1500, 1900), np.uint8)
    large = png(noise)
    assert 2 << 20 < len(large) < 3 << 20
    with served(writer, "serve.max_request_mb=3") as url:
        assert post(url, large).status_code == 200
        for answer in (
            post(url, large, large),
            requests.post(f"{url}/v1/reports", iter([large] * 2), headers={"Content-Type": "image/png"}, timeout=60),
        ):
            assert (answer.status_code, answer.json()) == (413, {"error": "the request is larger than 3 MiB"})


def test_rate(writer: Writer) -> None:
    with served(writer, "serve.max_per_minute=2") as url:
        answers = [post(url, png()) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert answers[2].json() == {"error": "more than 2 requests a minute"}
        assert 1 <= int(answers[2].headers["retry-after"]) <= 30


def test_at_once(writer: Writer) -> None:
    with served(writer, "serve.max_in_flight=1") as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as slow:
            slow.sendall(b"POST /v1/reports HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n")
            slow.sendall(b"Content-Length: 1000\r\n\r\nx")
            while not requests.get(f"{url}/metrics", timeout=60).text.count("megpt_in_flight 1.0"):
                time.sleep(0.01)
            answer = post(url, png())
        assert (answer.status_code, answer.json()) == (429, {"error": "more than 1 requests at once"})
        while requests.get(f"{url}/metrics", timeout=60).text.count("megpt_in_flight 1.0"):
            time.sleep(0.01)
        assert post(url, png()).status_code == 200


def test_token(writer: Writer) -> None:
    with served(writer, token="t" * 20) as url:
        for path, headers, status in (
            ("/", {}, 200),
            ("/healthz", {}, 200),
            ("/metrics", {}, 401),
            ("/metrics", {"Authorization": "Bearer " + "t" * 20}, 200),
        ):
            assert requests.get(url + path, headers=headers, timeout=60).status_code == status
        for given, status in (("", 401), ("Bearer " + "t" * 19, 401), ("t" * 20, 401), ("Bearer " + "t" * 20, 200)):
            answer = post(url, png(), headers={"Authorization": given})
            assert answer.status_code == status
            assert status == 200 or answer.headers["www-authenticate"] == "Bearer"


def test_pages_of_other_sites(url: str) -> None:
    assert post(url, png(), headers={"Origin": url}).status_code == 200
    port = url.rpartition(":")[2]
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Host": f"evil.example:{port}"}):
        assert post(url, png(), headers=headers).status_code == 403


def test_health_and_metrics(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(writer) as url:
        assert requests.get(f"{url}/healthz", timeout=60).json() == {"status": "ok", "model": writer.author.model}
        tokens = post(url, png()).json()["num_tokens"]
        post(url, b"no film")
        text = requests.get(f"{url}/metrics", timeout=60).text
        for line in (
            'megpt_requests_total{status="200"} 1.0',
            'megpt_requests_total{status="422"} 1.0',
            f"megpt_tokens_total {tokens:.1f}",
            "megpt_films_total 1.0",
            "megpt_in_flight 0.0",
            "megpt_request_seconds_count 1.0",
            f'megpt_model_info{{fingerprint="{writer.author.model}"}} 1.0',
        ):
            assert line in text.splitlines()

        def gone() -> int:
            raise RuntimeError

        monkeypatch.setattr(writer, "side", gone)
        answer = requests.get(f"{url}/healthz", timeout=60)
        assert (answer.status_code, answer.json()["status"]) == (503, "the model does not answer")
        assert post(url, png()).status_code == 503


def test_other_paths(url: str) -> None:
    assert requests.get(f"{url}/v1/other", timeout=60).json() == {"error": "Not Found"}
    answer = requests.get(f"{url}/v1/reports", timeout=60)
    assert (answer.status_code, answer.json()) == (405, {"error": "Method Not Allowed"})


def test_an_error_of_the_model(url: str, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer.live.writer.processor.tokenizer, "decode", lambda *a, **k: 1 / 0, raising=False)
    answer = post(url, png())
    assert (answer.status_code, answer.json()) == (500, {"error": "the model failed (ZeroDivisionError)"})
    events = post(url, png(), headers={"Accept": "text/event-stream"}).text
    assert events.endswith('event: error\ndata: {"error": "the model failed (ZeroDivisionError)"}\n\n')
    monkeypatch.undo()
    assert post(url, png()).status_code == 200


def test_a_film_that_the_page_shows(url: str) -> None:
    import base64
    import io

    answer = post(url, dicom(1), headers={"Accept": "text/event-stream"}).text
    shown = json.loads(answer.split("data: ", 1)[1].split("\n")[0])["films"][0]
    assert Image.open(io.BytesIO(base64.b64decode(shown))).size == (24, 16)
