"""index.html.

- one file: nothing is loaded from elsewhere, films lie inside it, and it says that it is for research only
- what a report, an id or an error holds is text, never markup
- scores stand beside both baselines; failed studies are listed; the gallery spreads from worst to best
- differences of two reports are marked in both
- films are found by id in a studies/ table, whole row groups unread where no wanted study is
- in a browser: no script error, the filters work, nothing is wider than a phone of 360 px
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megpt.config import EvaluateConfig, load_config
from megpt.data.studies import write_studies
from megpt.evaluation import evaluate, write_page
from megpt.evaluation.films import gallery_films, spread
from megpt.evaluation.page import chart, differences, gallery
from megpt.evaluation.pairs import Pair, Pairs
from megpt.study import Study, View

HOSTILE = "<script>alert(1)</script> the heart & \"lungs\" are clear </p><img src='http://example.org/x.png'>"


def film(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (300, 400), shade).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    pairs = Pairs(
        [
            Pair("one", "The heart is normal. No effusion.", "The heart is normal. Small effusion."),
            Pair("<b>two</b>", HOSTILE, HOSTILE),
            Pair("three", None, "the lungs are clear", error="film is <i>truncated</i>"),
            Pair("four", "word " * 300, "a " + "verylongword" * 40),
        ],
        models=["abc123"],
    )
    write_studies(
        folder / "studies",
        "test",
        [
            Study("one", views=(View("a", data=film(200)), View("b", data=film(90)))),
            Study("three", views=(View("c", data=b"broken"),)),
            Study("other", views=(View("d", data=film(1)),)),
        ],
        0,
    )
    evaluation = evaluate(
        pairs,
        training_reports=["the lungs are clear", "The heart is normal."],
        cleaner="none",
        settings=EvaluateConfig(meteor=False, bootstrap=20),
        seed=0,
    )
    rows = gallery(evaluation, 10)
    assert sorted(rows) == [0, 1, 2, 3]
    films = gallery_films(load_config(None, [f"studies={folder / 'studies'}"]), ["one", "three", "absent"])
    assert list(films) == ["one"] and len(films["one"]) == 2
    write_page(folder / "index.html", evaluation, rows=rows, films=films)
    return folder / "index.html"


def test_one_file_that_loads_nothing(page: Path) -> None:
    html = page.read_text()
    assert html.count("data:image/jpeg;base64,") == 2
    tags = re.findall(r"<(?:img|script|link|iframe|source|a)\b[^>]*>", html)
    assert all("http" not in tag and "href" not in tag for tag in tags)
    assert all('src="data:image/jpeg' in tag for tag in tags if tag.startswith("<img"))
    assert "default-src 'none'" in html and "@import" not in html and "url(" not in html
    assert "not for clinical decisions" in html


def test_reports_are_text(page: Path) -> None:
    html = page.read_text()
    assert "<script>alert" not in html and "<b>two</b>" not in html and "<i>truncated" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html and "&lt;b&gt;two&lt;/b&gt;" in html
    assert html.count("<script>") == 1


def test_contents(page: Path) -> None:
    html = page.read_text()
    for text in ("abc123", "constant", "permuted", "BLEU-4", "Clinical F1, micro", "Support Devices", "METEOR"):
        assert text in html
    assert "film is &lt;i&gt;truncated&lt;/i&gt;" in html.split('id="errors"')[1]
    assert "1 of 4 studies have no generated report" in html


def test_differences_are_marked_on_both_sides() -> None:
    ours, theirs = differences("The heart is normal. No effusion.", "the heart is normal . Small effusion .")
    assert ("The heart is normal.", True) in ours and ("No", False) in ours and ("effusion.", True) in ours
    assert (". Small", False) in theirs
    assert differences("", "a b") == ([], [("a b", False)])


def test_gallery_spreads_from_worst_to_best() -> None:
    scores = np.array([0.5, 0.1, 0.9, 0.3, 0.7])
    assert spread(scores, 3) == [1, 0, 2] and spread(scores, 9) == [1, 3, 0, 4, 2] and spread(scores, 0) == []


def test_chart_stays_on_its_axis() -> None:
    scores = dict.fromkeys(("BLEU_1", "BLEU_2", "BLEU_3", "BLEU_4", "METEOR", "ROUGE_L"))
    scores |= {"CIDEr": 0.42, "clinical_micro_f1": 0.0, "clinical_macro_f1": 1.0}
    intervals = {name: None if value is None else [value * 0.9, value * 1.1] for name, value in scores.items()}
    rows = chart({"scores": scores, "intervals": intervals, "baselines": {"constant": None, "permuted": scores}})
    assert [row["title"] for row in rows] == ["CIDEr", "Clinical F1, micro", "Clinical F1, macro"]
    assert all(0 <= place <= 100 for row in rows for place in row["place"].values())
    assert rows[0]["end"] == "0.5" and rows[0]["place"]["model"] == pytest.approx(84)


@pytest.mark.slow
def test_in_a_browser(page: Path, tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    probe = tmp_path / "probe.html"
    probe.write_text(f"""<iframe id="f" style="width:360px;height:800px;border:0" src="{page.as_uri()}"></iframe>
<pre id="out"></pre><script>
window.onload = () => {{
  const inside = document.getElementById("f").contentDocument;
  const wide = () => inside.documentElement.scrollWidth;
  const shown = () => inside.getElementById("shown").textContent;
  const set = (id, value) => {{
    const field = inside.getElementById(id);
    field.value = value; field.dispatchEvent(new Event("input"));
  }};
  const lines = ["wide " + wide(), shown()];
  set("search", "verylongword"); lines.push(shown());
  set("search", ""); set("observation", "Pleural Effusion"); lines.push(shown());
  set("observation", ""); set("sort", "ROUGE_L"); set("order", "-1");
  lines.push(inside.querySelector("#cards b").textContent);
  document.getElementById("out").textContent = lines.join("; ");
}};</script>""")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --hide-scrollbars"
    flags += " --allow-file-access-from-files --virtual-time-budget=5000"
    command = [chromium, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", probe.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    said = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.DOTALL)
    assert said is not None
    shown = "wide 360; 4 of 4 shown; 1 of 4 shown; 1 of 4 shown; &lt;b&gt;two&lt;/b&gt;"
    assert said.group(1) == shown
