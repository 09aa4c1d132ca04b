"""BLEU, ROUGE-L and CIDEr.

- the published scores of three runs, to six digits
- BLEU as sacrebleu has it, ROUGE-L as rouge-score has it
- any texts at all: BLEU's counts, ROUGE-L and CIDEr exactly as pycocoevalcap has them
- many sets at once are the same as one after another; a report of 12,000 words takes no longer than a moment
- statistics of parts add up to the score of the whole; each study's BLEU is that of its row
- empty texts score nothing; a blank report stays blank whatever the cleaner
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from rouge_score import rouge_scorer

from megpt.evaluation import nlg, score_reports
from megpt.evaluation.texts import scored_text

GENERATED = [
    "the heart is normal in size . the lungs are clear . no pleural effusion or pneumothorax .",
    "small left pleural effusion . the heart is mildly enlarged . no focal consolidation is seen .",
    "no acute cardiopulmonary abnormality .",
]
REFERENCES = [
    "heart size is normal . the lungs are clear . there is no pleural effusion or pneumothorax .",
    "there is a small right pleural effusion . the heart is mildly enlarged . no pneumothorax .",
    "no acute disease . the heart is normal in size .",
]


@pytest.mark.parametrize("run", ["template", "sft_rag_beam3", "copy_oracle_cw1_lr2e5_logp_top20"])
def test_published_scores(real_data: Path, run: str) -> None:
    folder = real_data / "metric_conformity" / run
    pairs = list(json.loads((folder / "pairs.json").read_text()).values())
    published = json.loads((folder / "scores.json").read_text())["published"]
    scores = score_reports(
        [p["hyp"] for p in pairs], [p["ref"] for p in pairs], cleaner="none", meteor=False, clinical=False
    )
    for n in range(1, 5):
        assert scores[f"BLEU_{n}"] == pytest.approx(published[f"Bleu_{n}"], abs=5e-7)
    assert scores["ROUGE_L"] == pytest.approx(published["ROUGE_L"], abs=5e-7)
    assert scores["CIDEr"] == pytest.approx(published["CIDEr"], abs=5e-7)


def test_bleu_is_sacrebleus() -> None:
    rows = nlg.bleu_statistics(GENERATED, REFERENCES)
    for order in range(1, 5):
        metric = sacrebleu.BLEU(tokenize="none", smooth_method="none", max_ngram_order=order)
        assert nlg.bleu(rows.sum(0))[order - 1] == pytest.approx(
            metric.corpus_score(GENERATED, [REFERENCES]).score / 100, abs=1e-8
        )
    # Shorter than its reference: the brevity penalty counts.
    assert rows[2, -2] < rows[2, -1]


def test_rouge_is_rouge_scores() -> None:
    class Spaces:
        def tokenize(self, text: str) -> list[str]:
            return text.split()

    scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=Spaces())
    for value, text, reference in zip(nlg.rouge_l(GENERATED, REFERENCES), GENERATED, REFERENCES, strict=True):
        score = scorer.score(reference, text)["rougeL"]
        beta = 1.2
        f = (1 + beta**2) * score.precision * score.recall / (score.recall + beta**2 * score.precision)
        assert value == pytest.approx(f, abs=1e-12)


TEXT = st.lists(st.sampled_from(["the", "heart", "is", "no", ".", "é", "\ud800x"]), max_size=12).map(" ".join)


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8))
@settings(max_examples=150, deadline=None)
def test_any_texts_score_as_pycocoevalcap_has_them(pairs: list[tuple[str, str]]) -> None:
    generated, references = (list(side) for side in zip(*pairs, strict=True))
    counts = [cook_test(g, cook_refs([r])) for g, r in pairs]
    expected = [(*c["correct"], *c["guess"], c["testlen"], c["reflen"][0]) for c in counts]
    assert nlg.bleu_statistics(generated, references).tolist() == [list(row) for row in expected]
    rouge = [Rouge().calc_score([g], [r]) if g and r else 0.0 for g, r in pairs]
    assert nlg.rouge_l(generated, references).tolist() == rouge
    keys = range(len(pairs))
    if any(references):
        theirs = Cider().compute_score({k: [references[k]] for k in keys}, {k: [generated[k]] for k in keys})[1]
        assert nlg.cider(generated, references) == pytest.approx(np.asarray(theirs), abs=1e-12)


def test_many_sets_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nlg, "_CHUNK", 2)
    picks = np.array([[0, 1, 2], [2, 2, 0]])
    both = nlg.text_statistics(GENERATED, REFERENCES, picks)
    for k, pick in enumerate(picks):
        texts = [GENERATED[i] for i in pick]
        assert (both.bleu[k] == nlg.bleu_statistics(texts, REFERENCES)).all()
        assert both.rouge[k] == pytest.approx(nlg.rouge_l(texts, REFERENCES))
        assert both.cider[k] == pytest.approx(nlg.cider(texts, REFERENCES))
    with pytest.raises(ValueError, match="3 generated texts, but 2 references"):
        nlg.cider(GENERATED, REFERENCES[:2])


def test_a_report_of_12000_words() -> None:
    rng = np.random.default_rng(0)
    long = " ".join(f"w{i}" for i in rng.integers(0, 500, 12_000))
    other = " ".join(f"w{i}" for i in rng.integers(0, 500, 12_000))
    began = time.monotonic()
    statistics = nlg.text_statistics([long, "the " * 4000], [other, other], np.array([[0, 1]]))
    assert time.monotonic() - began < 3
    assert 0 < statistics.rouge[0, 0] < 1 and statistics.rouge[0, 1] == 0


def test_more_words_than_there_are_characters_below_the_surrogates() -> None:
    long = " ".join(f"w{i}" for i in range(60_000))
    assert nlg.rouge_l([long], [long]).tolist() == [1]
    assert nlg.rouge_l([long], ["w55296 w55297"])[0] == pytest.approx(nlg.rouge_l([long], ["w7 w8"])[0])


def test_parts_add_up() -> None:
    whole = nlg.bleu_statistics(GENERATED, REFERENCES)
    parts = [nlg.bleu_statistics(GENERATED[i : i + 1], REFERENCES[i : i + 1]) for i in range(3)]
    assert (np.concatenate(parts) == whole).all()
    assert nlg.bleu(whole).shape == (3, 4)


def test_cider_needs_the_whole_set() -> None:
    whole = nlg.cider(GENERATED, REFERENCES)
    assert whole.shape == (3,) and whole.max() > 0
    assert nlg.cider(GENERATED[:1], REFERENCES[:1]) == pytest.approx([0.0])
    assert nlg.cider(REFERENCES, REFERENCES).mean() > 5


def test_empty_texts_score_nothing() -> None:
    assert nlg.rouge_l(["", "a"], ["", ""]).tolist() == [0.0, 0.0]
    assert nlg.bleu(nlg.bleu_statistics([""], ["the heart"]).sum(0)).max() < 1e-6
    assert nlg.cider([], []).shape == (0,)


@pytest.mark.parametrize("cleaner", ["none", "r2gen-iu", "r2gen-mimic", "r2gengpt-iu", "r2gengpt-mimic"])
@pytest.mark.parametrize("text", [None, "", " ", ".", "\n"])
def test_blank_stays_blank(cleaner: str, text: str | None) -> None:
    assert scored_text(text, cleaner) == ""


def test_cleaner_makes_case_and_commas_equal() -> None:
    ours, theirs = ["The heart, is normal.", "No effusion."], ["the heart is normal .", "no effusion ."]
    raw = score_reports(ours, theirs, cleaner="none", meteor=False, clinical=False)
    cleaned = score_reports(ours, theirs, cleaner="r2gen-iu", meteor=False, clinical=False)
    assert raw["BLEU_1"] < 0.7 and cleaned["BLEU_1"] == pytest.approx(1) and cleaned["ROUGE_L"] == pytest.approx(1)
