"""metrics.json.

- its names; what is null says why
- failed studies count as empty reports, and earn no clinical hit; studies without a reference are left out and counted
- the permuted baseline is the mean of many permutations, with their range; the nearest one takes the given reports
- patients are the unit where they are known; what an interval is over, and where it cannot be trusted, is said
- a model that does not beat a baseline, or by no more than chance, is called out
- CIDEr of a small set, and a report too long for METEOR, come with a note
- tasks may run anywhere, in any number of shards, with the same result
- references are scored whole
"""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from megpt.config import EvaluateConfig
from megpt.errors import InputError
from megpt.evaluation import score_reports, scoring
from megpt.evaluation.baselines import constant_report, derangements
from megpt.evaluation.meteor import MeteorRows
from megpt.evaluation.metrics import Evaluation, evaluate
from megpt.evaluation.pairs import Pair, Pairs
from megpt.evaluation.statistics import SCORES
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


def pairs_of(generated: list[str | None], references: list[str], patients: list[str] | None = None) -> Pairs:
    return Pairs(
        [
            Pair(f"s{i}", g, r, patients[i] if patients else "", error=None if g is not None else "film is truncated")
            for i, (g, r) in enumerate(zip(generated, references, strict=True))
        ]
    )


def scored(
    generated: list[str | None], references: list[str], *, patients: list[str] | None = None, **more: object
) -> Evaluation:
    arguments = {"training_reports": None, "cleaner": "none", "settings": SETTINGS, "seed": 1, **more}
    return evaluate(pairs_of(generated, references, patients), **arguments)


def test_contract() -> None:
    texts = reports(30, 0)
    result = scored(list(texts), texts, training_reports=reports(40, 1)).metrics
    assert (result["n"], result["unit"], result["cleaner"], result["tokenizer"]) == (30, "study", "none", "whitespace")
    assert {"pycocoevalcap", "python", "meteor"} <= result["versions"].keys()
    assert list(result["scores"]) == list(result["intervals"]) == list(SCORES)
    assert [list(result["baselines"][name]) for name in ("constant", "permuted")] == [list(SCORES)] * 2
    assert [list(result["paired"][name]) for name in ("constant", "permuted")] == [list(SCORES)] * 2
    low, high = result["paired"]["permuted"]["clinical_micro_f1"]
    assert 0 < low < 1 - result["baselines"]["permuted"]["clinical_micro_f1"] < high
    effusion = result["clinical"]["Pleural Effusion"]
    assert effusion["f1"] == 1 and effusion["interval"] == [1, 1] and effusion["baselines"]["permuted"] < 1
    assert result["scores"]["METEOR"] is None and "evaluate.meteor" in result["notes"]["METEOR"]
    assert result["scores"]["BLEU_4"] == pytest.approx(1) and result["scores"]["clinical_micro_f1"] == 1
    # Each finding of these sentences has one side, so nobody can be wrong about it.
    assert {warning.split(" on ")[1] for warning in result["warnings"]} == {"clinical_side_accuracy"}
    assert list(result["clinical"]) == list(CHEXPERT)
    assert result["labeller"]["micro_f1"] > 0.8 and result["signature"].startswith("BLEU-4|n:30|clean:none|ref:full|v:")
    assert result["scores"]["clinical_side_accuracy"] == 1


def test_missing_baselines_say_why() -> None:
    texts = reports(3, 0)
    result = scored(list(texts), texts).metrics
    assert result["baselines"]["constant"] is None and "training=PATH or studies=PATH" in result["notes"]["constant"]
    assert "the constant baseline is missing" in result["warnings"][0]
    alone = scored(list(texts[:1]), texts[:1]).metrics
    assert alone["baselines"]["permuted"] is None and alone["notes"]["permuted"] == "needs two studies"
    off = scored(list(texts), texts, settings=EvaluateConfig(meteor=False, baselines=False)).metrics
    assert (
        set(off["baselines"].items()) == {("constant", None), ("permuted", None), ("nearest", None)}
        and "baselines" in off["notes"]
    )


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


def test_permuted_baseline_is_the_mean_of_permutations() -> None:
    texts, wanted = reports(20, 4), reports(20, 4)
    result = scored(list(texts), wanted).metrics
    orders = derangements(20, 1)
    assert orders is not None and result["permuted"]["permutations"] == len(orders) == 100
    direct = [score_reports([texts[i] for i in order], wanted, cleaner="none", meteor=False) for order in orders]
    for name in direct[0]:
        # no side can be compared in some of them
        values = [scores[name] for scores in direct if name in scores]
        assert result["baselines"]["permuted"][name] == pytest.approx(np.mean(values))
        assert result["permuted"]["range"][name] == pytest.approx([min(values), max(values)])


def test_permutations_stay_between_patients() -> None:
    result = scored(list(reports(6, 4)), reports(6, 4), patients=["a"] * 5 + ["b"]).metrics
    assert result["baselines"]["permuted"] is None and "more than half" in result["notes"]["permuted"]


def test_nearest_baseline_scores_the_reports_it_is_given() -> None:
    texts, wanted = reports(12, 4), reports(12, 5)
    near = {f"s{i}": text for i, text in enumerate(reports(12, 6)) if i != 3}
    result = scored(list(texts), wanted, neighbours={"nearest": near}).metrics
    own = [near.get(f"s{i}", "") for i in range(12)]
    for name, value in score_reports(own, wanted, cleaner="none", meteor=False).items():
        assert result["baselines"]["nearest"][name] == pytest.approx(value)
    assert result["notes"]["nearest"] == "1 of 12 studies have no readable film and count as empty reports here"
    assert set(result["paired"]) == {"permuted", "nearest"}
    without = scored(list(texts), wanted, notes={"nearest": "no film"}).metrics
    assert without["baselines"]["nearest"] is None and without["notes"]["nearest"] == "no film"


def test_a_model_that_ignores_the_film_is_called_out() -> None:
    training = reports(40, 5)
    constant = constant_report(training, 1)
    result = scored([constant] * 20, reports(20, 6), training_reports=training).metrics
    assert result["constant_report"] == constant
    assert result["scores"] == result["baselines"]["constant"]
    assert [w.split(" on ")[0] for w in result["warnings"] if "BLEU_4" in w] == [
        "the model does not beat the constant baseline",
        "the model does not beat the permuted baseline",
    ]
    assert result["paired"]["constant"]["BLEU_4"] == [0, 0]


def test_a_lead_that_may_be_chance_is_called_out() -> None:
    wanted = reports(8, 6)
    near = {f"s{i}": text for i, text in enumerate([*wanted[:3], *reports(5, 7)])}
    result = scored([*wanted[:4], *reports(4, 9)], wanted, neighbours={"nearest": near}).metrics
    low, high = result["paired"]["nearest"]["ROUGE_L"]
    lead = result["scores"]["ROUGE_L"] - result["baselines"]["nearest"]["ROUGE_L"]
    assert lead > 0 and low < 0 < high and low < lead < high
    said = next(w for w in result["warnings"] if w.startswith("the model's lead over the nearest-neighbour baseline"))
    assert "may be chance on" in said and "ROUGE_L" in said


def test_patients_are_the_unit() -> None:
    texts, wanted = [*reports(10, 7)] * 3, [*reports(10, 8)] * 3
    alone = scored(list(texts), wanted).metrics
    one_each = scored(list(texts), wanted, patients=[f"p{i}" for i in range(30)]).metrics
    together = scored(list(texts), wanted, patients=[f"p{i % 10}" for i in range(30)]).metrics
    assert (alone["interval_unit"], alone["n_patients"]) == ("study", None)
    assert (one_each["interval_unit"], one_each["n_patients"]) == ("patient", 30)
    assert (together["interval_unit"], together["n_patients"]) == ("patient", 10)
    assert one_each["intervals"] == alone["intervals"]

    def width(result: dict, name: str) -> float:
        low, high = result["intervals"][name]
        return high - low

    # Three times the same study of one patient tell no more than one.
    for name in ("BLEU_4", "ROUGE_L", "CIDEr", "clinical_micro_f1", "clinical_macro_f1"):
        assert width(together, name) > 1.4 * width(alone, name)
    assert together["scores"] == pytest.approx(alone["scores"])
    assert "subject_id is not known" in alone["notes"]["intervals"]
    assert together["notes"]["intervals"] == "10 patients are few: they hold less than they promise"
    some = scored(list(texts), wanted, patients=["p", "p", *[""] * 28]).metrics
    assert some["n_patients"] == 29 and "28 of 30 studies have no subject_id" in some["notes"]["intervals"]


def test_one_patient_has_no_interval() -> None:
    result = scored(list(reports(6, 7)), reports(6, 8), patients=["p"] * 6).metrics
    assert set(result["intervals"].values()) == {None} and set(result["paired"]) == set()
    assert "one patient only: no interval can be computed" in result["notes"]["intervals"]


def test_what_the_labeller_did_not_read_is_told() -> None:
    texts = ["The lungs are clear.", "Kein Pleuraerguss. Die Lunge ist frei, das Herz ist nicht vergrößert."]
    notes = scored([*texts], ["The lungs are clear."] * 2).metrics["notes"]
    assert notes["clinical"] == "1 generated reports are in another language than English and have no labels"


def test_cider_of_a_small_set_has_a_note() -> None:
    assert (
        "a set of 12 studies scores too high" in scored(list(reports(12, 1)), reports(12, 2)).metrics["notes"]["CIDEr"]
    )
    many = scored(list(reports(1000, 1)), reports(1000, 2), settings=EvaluateConfig(meteor=False, bootstrap=2)).metrics
    assert "CIDEr" not in many["notes"]


def test_meteor_of_long_reports_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(texts, references):
        assert len(set(zip(texts, references, strict=True))) == len(texts)
        long = [i for i, text in enumerate(texts) if text.startswith("loop")]
        return MeteorRows(np.ones((len(texts), 23)), cut=long)

    monkeypatch.setattr(scoring, "meteor_rows", answers)
    texts = ["loop", "a b", "a b", "loop"]
    result = scored(list(texts), ["a b", "a b", "a b", "c d"], settings=EvaluateConfig(bootstrap=10)).metrics
    said = "2 of 4 studies (s0, s3) longer than 1000 words: scored by the first 1000"
    assert result["notes"]["METEOR"] == said and result["scores"]["METEOR"] > 0
    assert result["permuted"]["permutations_meteor"] == 100


def test_shards_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, wanted, training = reports(30, 9), reports(30, 10), reports(20, 11)
    whole = scored(list(texts), wanted, training_reports=training).metrics
    monkeypatch.setattr(scoring, "LABEL_SHARD", 7)
    monkeypatch.setattr(scoring, "TEXT_SHARD", 400)
    seen = []

    def elsewhere(tasks):
        seen.extend(tasks)
        tasks = pickle.loads(pickle.dumps(list(tasks)))
        return [function(*arguments) for function, arguments in tasks]

    assert scored(list(texts), wanted, training_reports=training, run=elsewhere).metrics == whole
    assert len(seen) > 10


def test_per_study_table() -> None:
    texts = reports(6, 12)
    pairs = pairs_of([None, *texts[1:]], texts)
    pairs.unscored.append(Pair("new", "Small left effusion. No pneumothorax.", "", split="val", prompt_id=3))
    table = per_study(evaluate(pairs, training_reports=None, cleaner="none", settings=SETTINGS, seed=1))
    assert table.schema == PER_STUDY_SCHEMA and table.num_rows == 7
    first, second, *_, last = table.to_pylist()
    assert first["generated"] is first["labels"] is first["sides"] is None and first["error"] == "film is truncated"
    assert first["METEOR"] is None and first["ROUGE_L"] == 0 and first["reference"] == texts[0] and first["scored"]
    assert second["ROUGE_L"] == pytest.approx(1) and second["clinical_f1"] == 1
    assert second["labels"] == second["reference_labels"] and second["sides"] == second["reference_sides"]
    # A study without a reference has labels, and nothing else.
    assert (last["scored"], last["split"], last["prompt_id"], last["ROUGE_L"]) == (False, "val", 3, None)
    said = {name: value for name, value in last["labels"].items() if value is not None}
    assert said == {"Pleural Effusion": 1, "Pneumothorax": 0} and last["reference_labels"] is None
    assert {name: side for name, side in last["sides"].items() if side} == {"Pleural Effusion": "left"}
