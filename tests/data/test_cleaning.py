"""Report cleaners.

- each published cleaner gives its published output, for the awkward texts below and for the golden files
- a full stop at the end of a word is split off by +dotsplit; recipes for scores only are refused for text to be learnt
- `none` changes nothing; an unknown name is an error that names the nearest
- what the conventions share holds for any text: lower case, a final stop, no punctuation inside a sentence
- folding cleaners leave no line feed; cleaned text without the letter case or numbers that they rewrite stays itself
"""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from megpt.data.cleaning import RULES, clean, split_stops
from megpt.errors import InputError
from megpt.recipe import BASES

PUBLISHED = [
    ("1. Heart normal. 2. Lungs clear.", dict.fromkeys(RULES, "heart normal . lungs clear .")),
    ("10. Ten 11. Eleven", dict.fromkeys(RULES, "10 . ten 1eleven .")),
    (
        "A/P view:\n low__volumes..",
        {
            "r2gen-iu": "ap view\n lowvolumes .",
            "r2gen-mimic": "ap view lowvolumes .",
            "r2gengpt-iu": "ap view\n lowvolumes .",
            "r2gengpt-mimic": "ap view : lowvolumes .",
        },
    ),
    ("right-sided, 2-3 cm", dict.fromkeys(RULES, "right-sided 2-3 cm .")),
    (
        "<5 @ [old]",
        {
            "r2gen-iu": "5  old .",
            "r2gen-mimic": "5  old .",
            "r2gengpt-iu": "5  old .",
            "r2gengpt-mimic": "<5 @ old .",
        },
    ),
    ("end.: next", {"r2gen-mimic": "end next .", "r2gengpt-mimic": "end . : next ."}),
    ("", dict.fromkeys(RULES, " .")),
]


@pytest.mark.parametrize("text, wanted", PUBLISHED)
def test_published_outputs(text, wanted):
    assert {name: clean(text, name) for name in wanted} == wanted


def test_golden_files(real_data):
    checked = 0
    for name in ("edge_cases", "iu_xray"):
        for line in (real_data / "golden_cleaners" / f"{name}.jsonl").read_text().splitlines():
            golden = json.loads(line)
            for cleaner in RULES:
                assert clean(golden["text"], cleaner) == golden[cleaner], (golden["id"], cleaner)
                checked += 1
    assert checked == 4 * 624


def test_every_published_base_has_its_rule():
    assert set(BASES) == {"none", "ptb", *RULES}


def test_only_a_score_has_words_replaced_or_cut():
    assert clean("Normal. 3.5 cm", "none+dotsplit") == "Normal . 3.5 cm"
    for cleaner, part in (("r2gen-iu+unk3+59", "+unk3"), ("r2gen-iu+59", "+59"), ("ptb", "ptb"), ("none+ptb", "ptb")):
        with pytest.raises(InputError, match=rf"is for scores only\n  cause: {re.escape(part)} changes"):
            clean("text", cleaner)


@pytest.mark.parametrize(
    "text, wanted",
    [("effusion.", "effusion ."), ("3.5 cm.. end", "3.5 cm . . end"), ("a . b ...", "a . b ..."), ("", ""), (".", ".")],
)
def test_stops_are_split_off_words(text, wanted):
    assert split_stops(text) == wanted and split_stops(wanted) == wanted


def test_an_unknown_cleaner():
    with pytest.raises(InputError, match=r"unknown cleaner 'r2gen'\n  next:  did you mean r2gen-"):
        clean("text", "r2gen")


@given(st.text())
def test_none_changes_nothing(text):
    assert clean(text, "none") == text


reports = st.text(alphabet=st.sampled_from("abcXYZ 0123456789.,:;-_/\\'\"()[]{}<>=@!?*%^&+\n\t\r"), max_size=80)


@pytest.mark.parametrize("cleaner", RULES)
@given(text=st.one_of(st.text(), reports))
@example(text="İ")  # lower-cases to two characters
def test_what_the_conventions_share(cleaner, text):
    cleaned = clean(text, cleaner)
    assert cleaned.endswith(" .")
    assert cleaned == cleaned.lower()
    assert not re.search(r"[,?;*!%^&_+()\[\]{}\"'/\\]", cleaned)
    assert all("." not in sentence for sentence in cleaned.removesuffix(" .").split(" . "))


@pytest.mark.parametrize("cleaner", ["r2gen-mimic", "r2gengpt-mimic"])
@given(text=st.one_of(st.text(), reports))
def test_folding_cleaners_leave_no_line_feed(cleaner, text):
    assert "\n" not in clean(text, cleaner)


words = st.lists(st.text(alphabet="abcdefgh-", min_size=1, max_size=6), min_size=1, max_size=6).map(" ".join)


@pytest.mark.parametrize("cleaner", RULES)
@given(sentences=st.lists(words, min_size=1, max_size=5))
def test_clean_text_stays_itself(cleaner, sentences):
    cleaned = clean(". ".join(sentences) + ".", cleaner).replace(" .", ".")
    assert clean(cleaned, cleaner).replace(" .", ".") == cleaned
