"""The parts of the clinical labeller, and its agreement with people.

- templates stand for all their readings; the longest phrase wins; a table holds no stray letters
- misspellings of every word that matters are read, other English words are left alone
- MeSH codes mean observations; the stored agreement is the measured one, and high enough
"""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megpt.evaluation.clinical import labeler
from megpt.evaluation.labeller import context, findings, modifiers, sides
from megpt.evaluation.labeller.phrases import PhraseTable, expand
from megpt.evaluation.labeller.quality import CODED, codes, labeller_quality, measure
from megpt.evaluation.labeller.reading import KNOWN
from megpt.evaluation.labeller.sentences import lowered, sentences, tokens_of
from megpt.evaluation.labeller.spelling import NEIGHBOURS, TARGETS, corrected, distance
from megpt.study import CHEXPERT


def test_templates() -> None:
    assert expand("not (clearly|) (seen|identified)") == [
        *("not clearly seen", "not clearly identified", "not seen", "not identified"),
    ]


def test_the_longest_phrase_wins_and_a_phrase_may_have_two_names() -> None:
    table = PhraseTable({"a": ("no", "no change"), "b": ("effusion",), "c": ("effusion",)})
    found = table.find(["no", "change", "in", "effusion", "no"])
    assert found == [(0, 2, ("a",)), (3, 4, ("b", "c")), (4, 5, ("a",))]


def test_no_phrase_is_a_stray_letter() -> None:
    tables = (findings.MENTIONS, findings.ORGANS, findings.SIZES)
    phrases = [phrase for table in tables for listed in table.values() for phrase in listed]
    phrases += [phrase for rule in modifiers.RULES for phrase in rule.phrases if phrase != "?"]
    phrases += [*modifiers.PSEUDOS, *modifiers.STOPS, *modifiers.CONTRASTS, *findings.UNDERSTOOD]
    assert min(len(reading) for phrase in phrases for reading in expand(phrase) if reading) > 1
    assert set(findings.MENTIONS) - {findings.OTHER, findings.IGNORED} == set(CHEXPERT) - {"No Finding"}
    assert set(CHEXPERT) >= sides.WITHOUT_SIDE | sides.WITH_SIZE and "no" in context.TABLE.words


@given(st.sampled_from([t for t in TARGETS if len(t) >= 8]), st.data())
def test_swapped_letters_are_read(target: str, data: st.DataObject) -> None:
    i = data.draw(st.integers(1, len(target) - 2))
    slip = target[:i] + target[i + 1] + target[i] + target[i + 2 :]
    assert slip in KNOWN or corrected(slip, KNOWN).rstrip("s") == target.rstrip("s")


@pytest.mark.parametrize("word", sorted(NEIGHBOURS))
def test_words_that_exist_are_left_alone(word: str) -> None:
    assert corrected(word, KNOWN) == word


def test_distance_counts_a_swap_once() -> None:
    assert [distance(*pair) for pair in (("ab", "ab"), ("ab", "ba"), ("edema", "edma"), ("a", "bc"))] == [0, 1, 1, 2]


def test_words_of_a_sentence() -> None:
    assert tokens_of("s/p CABG w/o left-sided 2.5 cm nodule, isn't new".lower()) == [
        *("status", "post", "cabg", "without", "left", "sided", "2.5", "cm", "nodule", ",", "is", "not", "new"),
    ]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("No effusion. Nodule!", ["no effusion.", "nodule!"]),
        ("Nodule vs. mass of 2.5 cm. Edema", ["nodule vs. mass of 2.5 cm.", "edema"]),
        ("effusion.No nodule", ["effusion.", "no nodule"]),
        ("Pneumothorax? No. Edema?", ["pneumothorax? no.", "edema?"]),
        ("LUNGS: clear\nPLEURA: no effusion", ["lungs: clear\n", "pleura: no effusion"]),
        ("- nodule\n- edema", ["- nodule\n", "- edema"]),
        ("INDICATION: edema. Cough.\n\nFINDINGS: clear", ["findings: clear"]),
        ("COMPARISON: none. Nodule.\n\nClear.", ["nodule.", "clear."]),
        ("TECHNIQUE: two views FINDINGS: nodule", ["findings: nodule"]),
    ],
)
def test_sentences(text: str, wanted: list[str]) -> None:
    assert [s.strip(" ") for _, s in sentences(lowered(text)) if s.strip()] == wanted


def test_codes() -> None:
    found = codes(
        ["Opacity/lung/left;Nodule", "normal", "Thickening/pleura/apex", "Thickening/heart", "Pneumonia ;Mass/breast"]
    )
    assert [[name for name, there in zip(CHEXPERT, row, strict=True) if there] for row in found] == [
        *(["Lung Lesion", "Lung Opacity"], ["No Finding"], ["Pleural Other"], [], ["Lung Lesion", "Pneumonia"]),
    ]


def test_the_agreement_travels_with_every_result() -> None:
    stored = labeller_quality()
    assert set(stored) == {"micro_f1", "interval", "n", "per_observation", "measured_on", "date"}
    assert set(stored["per_observation"]) == set(CODED)
    low, high = stored["interval"]
    assert low < stored["micro_f1"] < high and stored["micro_f1"] >= 0.88
    assert datetime.date.fromisoformat(stored["date"])


@pytest.mark.slow
def test_the_stored_agreement_is_the_measured_one(real_data: Path) -> None:
    stored = {name: value for name, value in labeller_quality().items() if name != "date"}
    assert measure(real_data / "iu_xray/indiana_reports.csv") == stored


def test_not_normal_is_not_normal() -> None:
    assert "Cardiomegaly" not in labeler().label("The heart size is not normal.")
