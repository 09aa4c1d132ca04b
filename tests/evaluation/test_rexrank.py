"""ReXrank submissions, in and out.

- beside a ReXrank list the entries are its own, in its order, with model_prediction; what is not in it is counted
- without one they hold the reference and the patient
- what is written is read again as the same pairs; with half of the studies failed, with awkward texts
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megpt.config import Config, load_config
from megpt.evaluation.pairs import Pair, Pairs, read_pairs
from megpt.evaluation.rexrank import write_rexrank


def config(tmp_path: Path, predictions: str, references: str | None = None) -> Config:
    more = [f"references={tmp_path / references}"] if references else []
    return load_config(None, [f"predictions={tmp_path / predictions}", *more])


def test_beside_a_rexrank_list(tmp_path: Path) -> None:
    entries: dict[str, dict[str, Any]] = {
        f"s{i}": {"image_path": [f"s{i}/0.png"], "context": "cough", "section_findings": f"clear {i}", "age": 1.5}
        for i in range(3)
    }
    entries["s0"]["section_impression"] = float("nan")
    (tmp_path / "list.json").write_text(json.dumps(entries))
    entries["s0"]["section_impression"] = None
    (tmp_path / "ours.csv").write_text("study_id,generated\ns2,heart\ns0,\nother,lungs\n")
    pairs = read_pairs(tmp_path / "ours.csv", references=str(tmp_path / "list.json"))
    said = write_rexrank(tmp_path / "out.json", pairs, config(tmp_path, "ours.csv", "list.json"))
    assert said == (
        "out.json: 2 studies as in list.json; 1 with an empty report; 1 predictions are not in that file and left out"
    )
    written = json.loads((tmp_path / "out.json").read_text())
    assert list(written.items()) == [
        ("s0", {**entries["s0"], "model_prediction": ""}),
        ("s2", {**entries["s2"], "model_prediction": "heart"}),
    ]
    # and in again: a submission is a file of predictions, and its own template
    again = read_pairs(tmp_path / "out.json")
    assert [(p.study_id, p.generated, p.reference) for p in again.pairs] == [
        ("s0", None, "clear 0"),
        ("s2", "heart", "clear 2"),
    ]
    write_rexrank(tmp_path / "twice.json", again, config(tmp_path, "out.json"))
    assert json.loads((tmp_path / "twice.json").read_text()) == written


def test_a_list_with_an_entry_an_image(tmp_path: Path) -> None:
    entries = [{"id": "s1", "image_path": [f"{i}.png"], "context": "", "section_findings": "clear"} for i in range(2)]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    (tmp_path / "ours.csv").write_text("study_id,generated\ns1,heart\n")
    pairs = read_pairs(tmp_path / "ours.csv", references=str(tmp_path / "list.json"))
    said = write_rexrank(tmp_path / "out.json", pairs, config(tmp_path, "ours.csv", "list.json"))
    assert said == "out.json: 1 studies as in list.json" and (tmp_path / "out.json").read_text().count('"s1":') == 1


# a letter first: a bare number above all reports is a score, and "NaN" no text
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=30).map("x ".__add__)


@given(st.dictionaries(st.text("abc123é", min_size=1, max_size=6), st.tuples(texts, texts), min_size=1, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_what_is_written_is_read(tmp_path: Path, studies: dict[str, tuple[str, str]]) -> None:
    (tmp_path / "a.csv").write_text("study_id,generated\n")
    pairs = Pairs([Pair(study, text, truth, "p") for study, (text, truth) in studies.items()])
    write_rexrank(tmp_path / "out.json", pairs, config(tmp_path, "a.csv"))
    read = read_pairs(tmp_path / "out.json")
    wanted = {study: (text, truth, "p") for study, (text, truth) in studies.items()}
    assert {pair.study_id: (pair.generated, pair.reference, pair.subject_id) for pair in read.pairs} == wanted
