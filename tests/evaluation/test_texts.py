"""What exactly is compared.

- `none` is to the letter; a published cleaner leaves one blank between words; a blank report stays blank
- +unkN counts words in training reports and holds for both texts; +N cuts references alone; without training: refused
- r2gen-iu+unk3+59 gives the words of R2Gen's own tokenizer, computed here apart, for every report of IU X-Ray
- the PTB tokenizer is pycocoevalcap's; awkward texts do not shift their neighbours
- the signature; the warning about full stops that were not split off
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from megpt import __version__
from megpt.data.cleaning import RULES, clean
from megpt.errors import InputError
from megpt.evaluation import ptb
from megpt.evaluation.texts import Cleaning, full_stop_warnings, scored_text, signature
from megpt.recipe import BASES

java = pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
TRAINING = ["The heart is normal. The lungs are clear.", "The heart is large.", "A nodule."]


def test_to_the_letter_or_by_words() -> None:
    text = "the heart  is normal  ."
    assert scored_text(text, "none") == text
    assert scored_text(text, "none+59") == "the heart is normal ."
    assert scored_text("The heart.", "none+dotsplit") == "The heart ."
    assert scored_text("The heart, is normal.", "r2gen-iu") == "the heart is normal ."


@pytest.mark.parametrize("name", [base for base in BASES if base != "ptb"])
@pytest.mark.parametrize("text", [None, "", " ", ".", "\n", "..."])
def test_blank_stays_blank(name: str, text: str | None) -> None:
    for recipe in (name, f"{name}+dotsplit", f"{name}+2"):
        assert scored_text(text, recipe) == scored_text(text, recipe, reference=True) == ""


def test_rare_words_and_cut_references() -> None:
    cleaning = Cleaning.of("r2gen-iu+unk2+4", training=TRAINING)
    assert cleaning.vocabulary == {"the", "heart", "is", "."}
    assert cleaning.text("The heart is a <unk>. Gone.") == "the heart is <unk> <unk> . <unk> ."
    assert cleaning.text("The heart is a <unk>. Gone.", reference=True) == "the heart is <unk>"
    assert str(cleaning) == "r2gen-iu+unk2+4"


@pytest.mark.parametrize("training", [None, [], ["", " "]])
def test_rare_words_need_training_reports(training: list[str] | None) -> None:
    with pytest.raises(InputError, match=r"the cleaner 'none\+unk3' needs training reports(.|\n)*set training=PATH"):
        Cleaning.of("none+unk3", training=training)


def test_the_words_of_r2gens_tokenizer(real_data: Path) -> None:
    """Chen et al.'s procedure: ids of the words seen three times in training, <start> and 59 more, back to words."""
    annotation = json.loads((real_data / "iu_xray" / "annotation.json").read_text())
    training = [entry["report"] for entry in annotation["train"]]
    counts = Counter(word for report in training for word in clean(report, "r2gen-iu").split())
    ids = {word: i for i, word in enumerate(sorted(w for w, n in counts.items() if n >= 3), 1)}
    words = {i: word for word, i in ids.items()} | {len(ids) + 1: "<unk>"}
    cleaning = Cleaning.of("r2gen-iu+unk3+59", training=training)
    cut = 0
    for entry in annotation["test"]:
        encoded = [0, *(ids.get(w, len(ids) + 1) for w in clean(entry["report"], "r2gen-iu").split()), 0][:60]
        wanted = " ".join(words[i] for i in encoded[1:] if i)
        assert cleaning.text(entry["report"], reference=True) == wanted
        cut += len(cleaning.text(entry["report"]).split()) > 59
    assert cut > 20


@given(st.text(max_size=60), st.sampled_from([*RULES, "none"]), st.integers(1, 5))
def test_a_cut_reference_begins_the_whole_one(text: str, base: str, length: int) -> None:
    whole, cut = scored_text(text, f"{base}+dotsplit"), scored_text(text, f"{base}+dotsplit+{length}", reference=True)
    assert cut.split() in (whole.split()[:length], [])
    assert scored_text(text, f"{base}+dotsplit+{length}") == whole


@java
def test_ptb_is_pycocoevalcaps() -> None:
    texts = ["The heart, is (mildly) enlarged; 1 1/2 cm.", "No effusion.", "", "Tube's tip -- T4?", "naïve 日本語"]
    theirs = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(texts)})
    assert ptb.tokenize(texts) == [theirs[i][0] for i in range(len(texts))]
    cleaning = Cleaning.of("ptb")
    cleaning.prepare(texts)
    assert [cleaning.text(text) for text in texts] == [theirs[i][0] for i in range(len(texts))]
    assert scored_text("No effusion, seen.", "r2gen-iu+ptb") == "no effusion seen"


@java
def test_awkward_texts_do_not_shift_their_neighbours() -> None:
    awkward = ["a\rb", "c\u2028d", "e\x0bf", "g\nh", "\ud800", "", "i\x85j"]
    tokenized = ptb.tokenize([part for text in awkward for part in (text, "the end")])
    assert tokenized[1::2] == ["the end"] * len(awkward) and tokenized[0] == "a b" and tokenized[-2] == "i j"


def test_ptb_without_java() -> None:
    with pytest.raises(InputError, match=r"the PTB tokenizer cannot be used\n  cause: Java is not installed"):
        ptb.tokenize(["a"], java="no-such-program")
    assert ptb.tokenize([], java="no-such-program") == []


def test_signature() -> None:
    cleaning = Cleaning.of("r2gen-iu+unk2+59", training=TRAINING)
    assert signature(cleaning, 590) == f"BLEU-4|n:590|clean:r2gen-iu+unk2+59|ref:cut59|v:{__version__}"
    assert signature("none", 0, "CIDEr") == f"CIDEr|n:0|clean:none|ref:full|v:{__version__}"


def test_full_stops_that_were_not_split_off() -> None:
    joined, split = ["the heart is normal. no effusion."], ["the heart is normal . no effusion . 3.5 cm"]
    assert full_stop_warnings(split, split, "none") == []
    (warning,) = full_stop_warnings(joined, split, "none")
    assert warning.startswith("33 % of the words in the generated reports end in a full stop")
    assert "data.cleaner=none+dotsplit" in warning
    assert "in the references" in full_stop_warnings(split, joined, "none")[0]
    # one word of twenty is 5 %, and no more
    assert full_stop_warnings([" ".join(["a"] * 19 + ["b."])], [""], "none") == []
    assert len(full_stop_warnings([" ".join(["a"] * 18 + ["b."])], [""], "none")) == 1
