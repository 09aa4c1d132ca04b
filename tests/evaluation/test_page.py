"""index.html, without a browser (tests/evaluation/test_page_in_browser.py opens it in one).

- a small evaluation is one file that loads nothing; a large one has its studies and films beside it
- what a report, an id or an error holds is text, never markup
- findings are marked by what the two reports say, not by their words or their order
- the sentences of two reports are paired, and none is lost
- films are found by id in a studies/ table, and row groups without a wanted study are not read
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from megpt.config import EvaluateConfig, load_config
from megpt.data.studies import write_studies
from megpt.evaluation import evaluate
from megpt.evaluation import page as module
from megpt.evaluation.clinical import label_findings
from megpt.evaluation.clinical_scores import verdicts
from megpt.evaluation.metrics import Evaluation
from megpt.evaluation.page import Extras, System, write_page
from megpt.evaluation.page.alignment import aligned_sentences, sentence_spans
from megpt.evaluation.page.films import page_films, spread
from megpt.evaluation.page.payload import KINDS, NO_MARK, described
from megpt.evaluation.pairs import Pair, Pairs
from megpt.study import CHEXPERT, Study, View

AGREED, INVENTED, MISSED, WRONG_SIDE, DOUBTED = range(5)
HOSTILE = "<script>alert(1)</script> the heart & \"lungs\" are clear </p><img src='http://example.org/x.png'>\u2028]]>"


def film(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (300, 400), shade).save(buffer, "JPEG")
    return buffer.getvalue()


def evaluated(pairs: list[Pair]) -> Evaluation:
    return evaluate(
        Pairs(pairs, models=["abc123"]),
        training_reports=["the lungs are clear", "The heart is normal."],
        cleaner="none",
        settings=EvaluateConfig(meteor=False, bootstrap=20),
        seed=0,
    )


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return evaluated(
        [
            Pair("one", "The heart is normal. No effusion.", "The heart is normal. Small effusion.", prompt_id=1),
            Pair("<b>two</b>", HOSTILE, HOSTILE),
            Pair("three", None, "the lungs are clear", error="film is <i>truncated</i>"),
            Pair("four", "word " * 300, "a " + "verylongword" * 40, finish_reason="length"),
        ]
    )


def marked(generated: list[str | None], references: list[str]) -> list[dict[str, Any]]:
    told = verdicts(label_findings([text or "" for text in generated]), label_findings(references))
    return described(generated, references, told)


def embedded(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="page-data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    return dict(json.loads(found.group(1)))


def test_a_small_evaluation_is_one_file_that_loads_nothing(evaluation: Evaluation, tmp_path: Path) -> None:
    extras = Extras(films=[("one", [film(200), film(90)])], prompts={1: "Describe <the> heart."})
    write_page(tmp_path / "index.html", [System("MeGPT", evaluation)], extras)
    html = (tmp_path / "index.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    assert html.count("data:image/jpeg;base64,") == 2
    tags = re.findall(r"<(?:img|script|link|iframe|source)\b[^>]*>", html)
    assert not [tag for tag in tags if "src=" in tag or "href=" in tag]
    assert "default-src 'none'" in html and "@import" not in html and "url(http" not in html
    assert "not for clinical decisions" in html and "Describe &lt;the&gt; heart." in html
    for text in ("abc123", "constant", "permuted", "BLEU-4", "Support Devices", "METEOR"):
        assert text in html
    studies = {study["id"]: study for study in embedded(html)["studies"]}
    assert studies["three"]["reports"][0]["error"] == "film is <i>truncated</i>"
    assert studies["one"]["prompt"] == 1 and len(studies["one"]["films"]) == 2


def test_a_large_evaluation_has_its_studies_and_films_beside_it(
    evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extras = Extras(films=[("one", [film(200)]), ("four", [film(10)])])
    write_page(tmp_path / "small.html", [System("MeGPT", evaluation)], extras)
    wanted = embedded((tmp_path / "small.html").read_text())["studies"]
    monkeypatch.setattr(module, "INLINE_BYTES", 0)
    monkeypatch.setattr(module, "CHUNK", 3)
    write_page(tmp_path / "index.html", [System("MeGPT", evaluation)], extras)
    html = (tmp_path / "index.html").read_text()
    scripts = re.findall(r'<script src="([^"]+)"></script>', html)
    assert scripts == ["page/studies-0000.js", "page/studies-0001.js"] and embedded(html)["studies"] is None
    studies: list[dict[str, Any]] = []
    for name in scripts:
        call = re.fullmatch(r"megpt\.add\((.*)\);\n", (tmp_path / name).read_text(), re.DOTALL)
        assert call is not None
        studies += json.loads(json.loads(call.group(1)))
    for study, inline in zip(studies, wanted, strict=True):
        assert len(study["films"]) == len(inline["films"])
        assert {**study, "films": 0} == {**inline, "films": 0}
        assert all((tmp_path / source).read_bytes()[:2] == b"\xff\xd8" for source in study["films"])
    write_page(tmp_path / "index.html", [System("MeGPT", evaluated([Pair("x", "a", "b")]))])
    assert len(list((tmp_path / "page").iterdir())) == 1, "files of an earlier page are gone"


def test_reports_are_text(evaluation: Evaluation, tmp_path: Path) -> None:
    write_page(tmp_path / "index.html", [System("<i>mine</i>", evaluation)])
    html = (tmp_path / "index.html").read_text()
    assert "<script>alert" not in html and "<b>two</b>" not in html and "<i>truncated" not in html
    assert "<i>mine</i>" not in html and html.count("<script") == 3
    study = embedded(html)["studies"][1]
    assert study["id"] == "<b>two</b>" and study["reports"][0]["text"] == HOSTILE


def test_two_models_stand_side_by_side(tmp_path: Path) -> None:
    first = evaluated([Pair("s1", "Left effusion.", "Left effusion."), Pair("s2", "Clear lungs.", "Left effusion.")])
    second = evaluated([Pair("s1", None, "Left effusion."), Pair("s2", "Right effusion.", "Left effusion.")])
    write_page(tmp_path / "index.html", [System("A", first), System("B", second)])
    html = (tmp_path / "index.html").read_text()
    assert "A [95 % interval]" in html and "B [95 % interval]" in html
    reports = [study["reports"] for study in embedded(html)["studies"]]
    assert [[r["name"] for r in pair] for pair in reports] == [["A", "B"], ["A", "B"]]
    effusion = CHEXPERT.index("Pleural Effusion")
    assert [effusion, MISSED] in reports[1][0]["kinds"] and [effusion, WRONG_SIDE] in reports[1][1]["kinds"]


@pytest.mark.parametrize(
    ("generated", "reference", "finding", "kind"),
    [
        ("No pneumothorax or effusion.", "No effusion or pneumothorax.", "Pleural Effusion", None),
        ("Left pleural effusion.", "Small effusion on the left.", "Pleural Effusion", 0),
        ("Left pleural effusion.", "Right pleural effusion.", "Pleural Effusion", WRONG_SIDE),
        ("Pleural effusion.", "Right pleural effusion.", "Pleural Effusion", 0),
        ("Left pleural effusion.", "No effusion.", "Pleural Effusion", INVENTED),
        ("The lungs are clear.", "Right pneumothorax.", "Pneumothorax", MISSED),
        ("Possible pneumonia.", "Pneumonia in the right lower lobe.", "Pneumonia", DOUBTED),
    ],
)
def test_kinds_follow_what_is_said(generated: str, reference: str, finding: str, kind: int | None) -> None:
    (result,) = marked([generated], [reference])
    kinds = {CHEXPERT[column]: KINDS[value] for column, value in result["kinds"]}
    assert kinds.get(finding) == (None if kind is None else KINDS[kind])
    column = CHEXPERT.index(finding)
    for text, mentions in ((generated, result["mentions"]), (reference, result["refMentions"])):
        for start, end, place, status, mark in mentions:
            assert 0 <= start < end <= len(text) and status in (-1, 0, 1)
            if place == column and kind is None:
                assert mark == NO_MARK
    # A denial of what the reference states is marked as missed; the denial of what was invented is not marked.
    marks = [mark for _, _, place, status, mark in result["mentions"] if place == column and status == 0]
    assert marks in ([], [NO_MARK], [MISSED])


def test_failed_and_unreferenced_reports_have_no_marks_that_cannot_be() -> None:
    (failed,) = marked([None], ["Left effusion."])
    (unreferenced,) = described(["Left effusion."], [None], np.zeros((1, 14), dtype=np.int8))
    assert failed["mentions"] == [] and [kind for _, kind in failed["kinds"]] == [MISSED] and failed["rows"] is None
    assert unreferenced["kinds"] == [] and {mark for *_, mark in unreferenced["mentions"]} == {NO_MARK}


def test_sentences_are_paired_by_what_they_say() -> None:
    ours, theirs = (
        "No effusion. The heart is large. Bones are intact.",
        "The heart is very large. There is no effusion.",
    )
    rows = aligned_sentences(ours, theirs)
    assert rows is not None
    read = [(ours[a:b] if a >= 0 else "", theirs[c:d] if c >= 0 else "") for a, b, c, d in rows]
    assert ("The heart is large.", "The heart is very large.") in read
    assert ("No effusion.", "There is no effusion.") in read and ("Bones are intact.", "") in read


@given(st.text(alphabet="ab .!?;\n1", max_size=60), st.text(alphabet="ab .!?;\n1", max_size=60))
def test_no_sentence_is_lost(ours: str, theirs: str) -> None:
    rows = aligned_sentences(ours, theirs)
    assert rows is not None
    for text, spans in ((ours, [r[:2] for r in rows]), (theirs, [r[2:] for r in rows])):
        real = [span for span in spans if span[0] >= 0]
        assert sorted(real) == sentence_spans(text) and len(set(real)) == len(real)
        covered = "".join(text[start:end] for start, end in sorted(real))
        assert re.sub(r"[\s.!?;]", "", covered) == re.sub(r"[\s.!?;]", "", text)


def test_a_looping_report_is_shown_whole() -> None:
    assert aligned_sentences("no effusion. " * 4000, "Clear.") is None


def test_films_are_found_by_id(tmp_path: Path) -> None:
    studies = [
        Study("one", views=(View("a", data=film(200)), View("b", data=film(90)))),
        Study("three", views=(View("c", data=b"broken"),)),
        Study("other", views=(View("d", data=film(1)),)),
    ]
    write_studies(tmp_path, "test", studies, 0)
    films = dict(page_films(load_config(None, [f"studies={tmp_path}"]), ["one", "three", "absent"]))
    assert list(films) == ["one"] and len(films["one"]) == 2
    assert max(Image.open(io.BytesIO(films["one"][0])).size) <= 512


def test_films_are_a_sample_from_worst_to_best() -> None:
    scores = np.array([0.5, 0.1, 0.9, 0.3, 0.7])
    assert spread(scores, 3) == [1, 0, 2] and spread(scores, 9) == [1, 3, 0, 4, 2] and spread(scores, 0) == []
