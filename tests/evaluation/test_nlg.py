"""BLEU, ROUGE-L and CIDEr.

- the published scores of three runs, to six digits
- BLEU as sacrebleu has it, ROUGE-L as rouge-score has it
- statistics of parts add up to the score of the whole; each study's BLEU is that of its row
- empty texts score nothing; a blank report stays blank whatever the cleaner
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
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
