"""metrics.json.

- its names; what is null says why
- failed studies count as empty reports, and earn no clinical hit; studies without a reference are left out and counted
- the constant report is the one whose BLEU-4 on the training split is highest, by brute force too
- the permuted baseline gives no study its own report
- intervals are those of an explicit resampling with the libraries; F1 is scikit-learn's
- a model that does not beat a baseline is called out
- tasks may run anywhere, in any number of shards, with the same result
- references are scored whole
"""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from megpt.config import EvaluateConfig
from megpt.errors import InputError
from megpt.evaluation import metrics as module
from megpt.evaluation import nlg, score_reports
from megpt.evaluation.baselines import constant_report, derangement, sample
from megpt.evaluation.metrics import Evaluation, evaluate
from megpt.evaluation.pairs import Pair, Pairs
from megpt.evaluation.statistics import SCORES, Statistics
from megpt.evaluation.table import PER_STUDY_SCHEMA, per_study
from megpt.study import CHEXPERT

SENTENCES = (
    "small left pleural effusion .",
    "the heart is enlarged .",
    "no pneumothorax .",
    "the lungs are clear .",
    "right lower lobe consolidation .",
    "there is a pacemaker .",
)
SETTINGS = EvaluateConfig(meteor=False, bootstrap=200)


def reports(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(SENTENCES[i] for i in rng.choice(len(SENTENCES), rng.integers(1, 4), False)) for _ in range(count)]


def pairs_of(generated: list[str | None], references: list[str]) -> Pairs:
    return Pairs(
        [
            Pair(f"s{i}", g, r, error=None if g is not None else "film is truncated")
            for i, (g, r) in enumerate(zip(generated, references, strict=True))
        ]
    )


def scored(generated: list[str | None], references: list[str], **more: object) -> Evaluation:
    arguments = {"training_reports": None, "cleaner": "none", "settings": SETTINGS, "seed": 1, **more}
    return evaluate(pairs_of(generated, references), **arguments)


def test_contract() -> None:
    texts = reports(30, 0)
    result = scored(list(texts), texts, training_reports=reports(40, 1)).metrics
    assert (result["n"], result["unit"], result["cleaner"], result["tokenizer"]) == (30, "study", "none", "whitespace")
    assert {"pycocoevalcap", "python", "meteor"} <= result["versions"].keys()
    assert list(result["scores"]) == list(result["intervals"]) == list(SCORES)
    assert [list(result["baselines"][name]) for name in ("constant", "permuted")] == [list(SCORES)] * 2
    assert result["scores"]["METEOR"] is None and "evaluate.meteor" in result["notes"]["METEOR"]
    assert result["scores"]["BLEU_4"] == pytest.approx(1) and result["scores"]["clinical_micro_f1"] == 1
    assert result["warnings"] == [] and list(result["clinical"]) == list(CHEXPERT)


def test_missing_baselines_say_why() -> None:
    texts = reports(3, 0)
    result = scored(list(texts), texts).metrics
    assert result["baselines"]["constant"] is None and "studies=PATH" in result["notes"]["constant"]
    assert "the constant baseline is missing" in result["warnings"][0]
    alone = scored(list(texts[:1]), texts[:1]).metrics
    assert alone["baselines"]["permuted"] is None and alone["notes"]["permuted"] == "needs two studies"
    off = scored(list(texts), texts, settings=EvaluateConfig(meteor=False, baselines=False)).metrics
    assert off["baselines"] == {"constant": None, "permuted": None} and "baselines" in off["notes"]


def test_failed_studies_count_as_empty() -> None:
    texts = reports(12, 2)
    whole = scored(list(texts), texts).metrics
    half = scored([t if i % 2 else None for i, t in enumerate(texts)], texts).metrics
    assert half["n"] == 12 and half["n_failed"] == 6
    assert half["scores"]["ROUGE_L"] == pytest.approx(whole["scores"]["ROUGE_L"] / 2)
    assert half["scores"]["clinical_micro_f1"] < 0.8
    assert "6 of 12 studies have no generated report" in half["warnings"][-1]
    # Not even "No Finding", which a report without a word might pass for.
    assert scored([None, None], ["the lungs are clear ."] * 2).metrics["clinical"]["No Finding"]["generated"] == 0


def test_no_reference() -> None:
    result = scored(["a", "b"], ["the lungs are clear .", "."], cleaner="r2gen-iu").metrics
    assert result["n"] == 1 and result["n_without_reference"] == 1
    with pytest.raises(InputError, match="no reference is left after cleaning"):
        scored(["a"], ["."])
    with pytest.raises(ValueError, match="no reference"):
        score_reports(["a"], [" "], cleaner="none")


def test_references_are_never_cut() -> None:
    long = " ".join(f"word{i}" for i in range(1000))
    assert scored([long, long], [long, long]).metrics["scores"]["ROUGE_L"] == 1
    recall, beta2 = 1 / 1000, 1.2**2
    one_word = scored(["word0", "word0"], [long, long]).metrics["scores"]["ROUGE_L"]
    assert one_word == pytest.approx((1 + beta2) * recall / (recall + beta2))


def test_constant_report_by_brute_force() -> None:
    texts = [*reports(25, 3), "no no no .", ""]
    best = constant_report(texts, seed=0)
    kept = [t for t in texts if t]
    bleu = {c: nlg.bleu(nlg.bleu_statistics([c] * len(kept), kept).sum(0))[-1] for c in set(kept)}
    assert best is not None and bleu[best] == max(bleu.values())
    assert constant_report([], 0) is None
    assert sample(texts, 5, 1) == sample(texts, 5, 1) and len(sample(texts, 5, 1)) == 5


@given(st.integers(2, 200), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_derangement(n: int, seed: int) -> None:
    order = derangement(n, seed)
    assert sorted(order) == list(range(n)) and not (order == np.arange(n)).any()


def test_permuted_baseline_is_another_studys_report() -> None:
    texts, wanted = reports(20, 4), reports(20, 4)
    result = scored(list(texts), wanted)
    order = derangement(20, 1)
    direct = score_reports([texts[i] for i in order], wanted, cleaner="none", meteor=False)
    for name, value in direct.items():
        assert result.metrics["baselines"]["permuted"][name] == pytest.approx(value)


def test_a_model_that_ignores_the_film_is_called_out() -> None:
    training = reports(40, 5)
    constant = constant_report(training, 1)
    result = scored([constant] * 20, reports(20, 6), training_reports=training).metrics
    assert result["constant_report"] == constant
    assert result["scores"] == result["baselines"]["constant"]
    assert all("does not beat" in warning for warning in result["warnings"]) and len(result["warnings"]) == 2


def test_intervals_are_those_of_resampled_sets() -> None:
    texts, wanted = reports(25, 7), reports(25, 8)
    statistics = scored(list(texts), wanted).statistics
    rng = np.random.default_rng(3)
    rows = [np.repeat(np.arange(25), rng.multinomial(25, np.full(25, 1 / 25))) for _ in range(40)]
    bleu, rouge, macro = [], [], []
    for chosen in rows:
        part = [texts[i] for i in chosen], [wanted[i] for i in chosen]
        bleu.append(nlg.bleu(nlg.bleu_statistics(*part).sum(0))[-1])
        rouge.append(nlg.rouge_l(*part).mean())
        truth, found = statistics.truth[chosen], statistics.found[chosen]
        there = truth.any(0)
        macro.append(f1_score(truth[:, there], found[:, there], average="macro", zero_division=0))
    intervals = statistics.intervals(resamples=40, confidence=0.9, seed=3)
    for name, values in (("BLEU_4", bleu), ("ROUGE_L", rouge), ("clinical_macro_f1", macro)):
        assert intervals[name] == pytest.approx(np.percentile(values, [5, 95]), abs=1e-9)
    scores = statistics.scores()
    assert all(low <= scores[name] <= high for name in ("BLEU_1", "CIDEr") for low, high in [intervals[name]])


def test_clinical_f1_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    truth, found = rng.random((50, 14)) < 0.3, rng.random((50, 14)) < 0.3
    zeros = np.zeros(50)
    statistics = Statistics(np.zeros((50, 10), int), zeros, zeros, found=found, truth=truth)
    scores = statistics.scores()
    assert scores["clinical_micro_f1"] == pytest.approx(f1_score(truth, found, average="micro"))
    assert scores["clinical_macro_f1"] == pytest.approx(f1_score(truth, found, average="macro"))
    samples = f1_score(truth, found, average="samples", zero_division=1)
    assert statistics.per_study()["clinical_f1"].mean() == pytest.approx(samples)
    both, extra, missed = statistics.observations()
    assert ((both + missed) == truth.sum(0)).all() and ((both + extra) == found.sum(0)).all()


def test_shards_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, wanted, training = reports(30, 9), reports(30, 10), reports(20, 11)
    whole = scored(list(texts), wanted, training_reports=training).metrics
    monkeypatch.setattr(module, "SHARD", 7)
    seen = []

    def elsewhere(tasks):
        seen.extend(tasks)
        tasks = pickle.loads(pickle.dumps(list(tasks)))
        return [function(*arguments) for function, arguments in tasks]

    assert scored(list(texts), wanted, training_reports=training, run=elsewhere).metrics == whole
    assert len(seen) > 20


def test_per_study_table() -> None:
    texts = reports(6, 12)
    table = per_study(scored([None, *texts[1:]], texts))
    assert table.schema == PER_STUDY_SCHEMA and table.num_rows == 6
    first, second = table.slice(0, 2).to_pylist()
    assert first["generated"] is None and first["error"] == "film is truncated" and first["generated_labels"] == []
    assert first["METEOR"] is None and first["ROUGE_L"] == 0 and first["reference"] == texts[0]
    assert second["ROUGE_L"] == pytest.approx(1) and second["clinical_f1"] == 1
    assert second["generated_labels"] == second["reference_labels"]
