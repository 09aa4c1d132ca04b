"""Anyone's reports as pairs.

- the columns that are taken, by name in their order, by letter case, or as they were set; what was taken is said
- rows of scores above the reports, empty rows, missing texts and truths, control characters: left out or kept, counted
- one id twice: refused, with all of them up to a screenful
- references of another file: R2Gen's lists, ReXrank's, a studies/ table, by order where there are no ids
- ids of other types match where nothing is ambiguous, and it is said how many
- no truth at all is no error; a file of references in place of predictions is one
- the published runs score to their digits by what their files say alone
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megpt.config import ColumnsConfig, EvaluateConfig
from megpt.data.studies import write_studies
from megpt.errors import InputError
from megpt.evaluation import score_reports
from megpt.evaluation.pairs import Pairs, read_pairs
from megpt.evaluation.reading.ids import Matcher, as_id, loose, named
from megpt.study import Study

HEART, LUNGS = "the heart is normal in size .", "the lungs are clear ."


def write(path: Path, rows: Any) -> Path:
    if path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows))
    return path


def texts(pairs: Pairs) -> list[tuple[str, str | None, str]]:
    return [(pair.study_id, pair.generated, pair.reference) for pair in (*pairs.pairs, *pairs.unscored)]


@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet"])
@pytest.mark.parametrize(
    "row, taken",
    [
        ({"study_id": "1", "id": "2", "model_prediction": "a", "report": "b"}, "study_id model_prediction report"),
        ({"images_id": "1", "ground_truth": "b", "pred_report": "a"}, "images_id pred_report ground_truth"),
        ({"dicom_id": "1", "hyp": "a", "ref": "b"}, "dicom_id hyp ref"),
        ({"ID": "1", "Generated": "a", "Reference": "b", "report": "x"}, "ID Generated Reference"),
        (
            {"id": "1", "model_prediction": "a", "section_findings": "b", "report": "x"},
            "id model_prediction section_findings",
        ),
        ({"id": "1", "report": "a", "reference": "b"}, "id report reference"),
        ({"id": "1", "generated": "a", "labels": "the heart is large", "report": "x"}, "id generated labels"),
        ({"id": "1", "generated": "a", "labels": "Cardiomegaly|Edema", "report": "b"}, "id generated report"),
        ({"id": "1", "generated": "a", "findings": "b"}, "id generated findings"),
    ],
)
def test_columns_by_name(tmp_path: Path, suffix: str, row: dict[str, str], taken: str) -> None:
    pairs = read_pairs(write(tmp_path / f"results{suffix}", [row]))
    study, text, truth = taken.split()
    assert pairs.said[0].endswith(f"1 rows; id: {study}, text: {text}, truth: {truth}")
    assert texts(pairs) == [("1", "a", row[truth])]


def test_row_numbers_are_no_ids(tmp_path: Path) -> None:
    rows = [{"study_id": f"s{i}", "generated": HEART, "reference": LUNGS} for i in range(3)]
    for orient in ("index", "columns", "records"):
        pd.DataFrame(rows).to_json(tmp_path / "a.json", orient=orient)
        assert texts(read_pairs(tmp_path / "a.json")) == [(f"s{i}", HEART, LUNGS) for i in range(3)]
    path = write(tmp_path / "b.json", {"7": rows[0], "8": rows[1]})
    assert [pair.study_id for pair in read_pairs(path).pairs] == ["7", "8"]


def test_columns_that_are_set(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [{"case": "1", "ours": "a", "theirs": "b", "report": "c", "study_id": "9"}])
    columns = ColumnsConfig(id="case", text="Ours", truth="theirs")
    assert texts(read_pairs(path, settings=EvaluateConfig(columns=columns))) == [("1", "a", "b")]
    with pytest.raises(InputError) as error:
        read_pairs(path, settings=EvaluateConfig(columns=ColumnsConfig(text="our")))
    assert "evaluate.columns.text = 'our' is no column of" in error.value.what
    assert "case, ours, theirs, report" in str(error.value.cause) and "did you mean ours" in str(error.value.next)
    # names that nobody knows make a header once they are set
    path.write_text("a,b,c\n1,x,y\n")
    columns = ColumnsConfig(id="a", text="b", truth="c")
    assert texts(read_pairs(path, settings=EvaluateConfig(columns=columns))) == [("1", "x", "y")]


def test_no_column_of_reports(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [{"study_id": "1", "caption": "a"}])
    with pytest.raises(InputError, match=r"has no column of generated reports(.|\n)*set evaluate.columns.text=NAME"):
        read_pairs(path)


def test_scores_above_the_reports(tmp_path: Path) -> None:
    """As several repositories write them: names of scores among the ids, no truth, a number for a report."""
    scores = [{"images_id": name, "ground_truth": None, "pred_report": 0.4} for name in ("1", "BLEU_4", "METEOR")]
    reports = [{"images_id": f"IM-{i}", "ground_truth": LUNGS, "pred_report": HEART} for i in range(3)]
    last = {"images_id": "avg_ROUGE_L", "ground_truth": None, "pred_report": 0.3}
    pairs = read_pairs(write(tmp_path / "a.csv", [*scores, *reports, last]))
    assert texts(pairs) == [(f"IM-{i}", HEART, LUNGS) for i in range(3)]
    assert pairs.said[0].endswith("3 rows; id: images_id, text: pred_report, truth: ground_truth; "
                                  "4 rows of scores left out (1 … avg_ROUGE_L)")  # fmt: skip
    by_id = {"Bleu_1": 0.3, "s1": {"hyp": HEART, "ref": LUNGS}}
    assert texts(read_pairs(write(tmp_path / "a.json", by_id))) == [("s1", HEART, LUNGS)]
    # a model may write a number: below the first report it is one
    odd = [reports[0], {"images_id": "x", "ground_truth": LUNGS, "pred_report": "3"}]
    assert texts(read_pairs(write(tmp_path / "a.csv", odd)))[1] == ("x", "3", LUNGS)
    with pytest.raises(InputError, match="holds only scores"):
        read_pairs(write(tmp_path / "a.csv", scores))


def test_what_is_missing_is_counted(tmp_path: Path) -> None:
    rows = [
        {"study_id": "1", "hyp": HEART, "ref": LUNGS},
        {"study_id": "2", "hyp": None, "ref": LUNGS},
        {"study_id": "3", "hyp": HEART, "ref": None},
        {"study_id": "4", "hyp": "a\x00b\x1bc", "ref": " . "},
        {"study_id": None, "hyp": None, "ref": None},
        {"study_id": "5", "hyp": "nan", "ref": LUNGS},
    ]
    pairs = read_pairs(write(tmp_path / "a.json", rows))
    assert (len(pairs.pairs), pairs.failed, pairs.without_reference) == (3, 2, 2)
    assert texts(pairs)[3:] == [("3", HEART, ""), ("4", "a b c", "")]
    assert pairs.said[0].endswith(
        "; 1 empty rows left out; 2 without text; 1 texts with control characters, read as blanks"
    )
    assert pairs.said[1] == "2 of 5 studies have no reference and are not scored"


@pytest.mark.parametrize(
    "row, where",
    [
        ({"study_id": None, "hyp": "a"}, "row 2, column 'study_id'"),
        ({"study_id": "2", "hyp": {"a": 1}}, "row 2, column 'hyp'"),
        ({"study_id": "2", "hyp": ["a", "b"]}, "row 2, column 'hyp'"),
        ({"study_id": "2", "hyp": True}, "row 2, column 'hyp'"),
    ],
)
def test_cells_that_are_no_text(tmp_path: Path, row: dict[str, Any], where: str) -> None:
    with pytest.raises(InputError) as error:
        read_pairs(write(tmp_path / "a.json", [{"study_id": "1", "hyp": "a"}, row]))
    assert error.value.where == where


def test_half_characters_can_be_written_again(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"id": "1", "hyp": "a \\ud83d b", "ref": "c"}]')
    pairs = read_pairs(tmp_path / "a.json")
    assert texts(pairs) == [("1", "a � b", "c")] and "1 texts with halves of characters" in pairs.said[0]


def test_ids_twice_are_all_named(tmp_path: Path) -> None:
    rows = [{"study_id": f"s{i % 60}", "dicom_id": f"d{i}", "hyp": "a", "ref": "b"} for i in range(100)]
    path = write(tmp_path / "a.csv", rows)
    with pytest.raises(InputError) as error:
        read_pairs(path)
    assert error.value.what == "40 studies are in the predictions more than once"
    assert error.value.where == f"study_id in {path}: " + ", ".join(f"s{i}" for i in range(40))
    assert len(read_pairs(path, settings=EvaluateConfig(columns=ColumnsConfig(id="dicom_id"))).pairs) == 100
    assert named([str(i) for i in range(103)]).endswith(", 99 and 3 more")


def test_no_report_is_shown_for_an_id(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [{"study_id": i, "hyp": HEART} for i in range(2)])
    with pytest.raises(InputError) as error:
        read_pairs(path, settings=EvaluateConfig(columns=ColumnsConfig(id="hyp")))
    assert error.value.where == f"hyp in {path}: ({len(HEART)} characters)"


def test_results_as_r2gen_writes_them(tmp_path: Path) -> None:
    """Two files of texts alone, in one order."""
    for name, column in (("res", [HEART, ""]), ("gts", [LUNGS, HEART])):
        pd.DataFrame(column).to_csv(tmp_path / f"{name}.csv", index=False, header=False)
    pairs = read_pairs(tmp_path / "res.csv", references=str(tmp_path / "gts.csv"))
    assert texts(pairs) == [("row1", HEART, LUNGS), ("row2", None, HEART)]
    assert (
        pairs.said[1]
        == "references: gts.csv, CSV, commas, utf-8, no header; id: none, text: the whole entry; all rows, by order"
    )
    lists = {"train": [{"id": "t", "report": HEART}], "val": [], "test": [{"id": i, "report": LUNGS} for i in "ab"]}
    annotation = write(tmp_path / "annotation.json", lists)
    assert [p.reference for p in read_pairs(tmp_path / "res.csv", references=str(annotation)).pairs] == [LUNGS, LUNGS]
    write(annotation, {**lists, "test": lists["test"][:1]})
    with pytest.raises(InputError, match=r"has 1 references for 2 predictions\n  where: split test"):
        read_pairs(tmp_path / "res.csv", references=str(annotation))


def test_r2gens_list_of_images(tmp_path: Path) -> None:
    """MIMIC-CXR has an entry an image: predictions are found by image or by study, whichever they name."""
    entries = [{"id": f"d{i}", "study_id": i // 2, "subject_id": 7, "report": f"report {i // 2}"} for i in range(6)]
    annotation = str(write(tmp_path / "annotation.json", {"train": [], "val": [], "test": entries}))
    by_image = read_pairs(write(tmp_path / "a.json", {f"d{i}": ["x"] for i in range(6)}), references=annotation)
    assert [pair.reference for pair in by_image.pairs] == [f"report {i // 2}" for i in range(6)]
    by_study = read_pairs(write(tmp_path / "b.json", {"0": ["x"], "2": ["x"]}), references=annotation)
    assert [(pair.reference, pair.subject_id) for pair in by_study.pairs] == [("report 0", "7"), ("report 2", "7")]


def test_references_of_a_rexrank_file_and_of_a_studies_table(tmp_path: Path) -> None:
    predictions = write(tmp_path / "a.csv", [{"study_id": "s1", "hyp": HEART, "ref": "x"}])
    entry = {"section_findings": LUNGS, "section_impression": HEART, "report": "both", "subject_id": "p1"}
    rexrank = str(write(tmp_path / "rexrank.json", {"s1": entry, "s2": entry}))
    pairs = read_pairs(predictions, references=rexrank)
    assert texts(pairs) == [("s1", HEART, LUNGS)] and pairs.pairs[0].subject_id == "p1"
    assert pairs.said[1].endswith("1 of 1 found; 'ref' of the predictions is not used")
    assert texts(read_pairs(predictions, references=rexrank, section="impression")) == [("s1", HEART, HEART)]
    write_studies(tmp_path / "table", "test", [Study("s1", report="whole", findings=LUNGS)], 0)
    for section, wanted in (("report", "whole"), ("findings", LUNGS)):
        pairs = read_pairs(predictions, references=str(tmp_path / "table"), section=section)
        assert texts(pairs) == [("s1", HEART, wanted)]


def test_ids_of_other_types(tmp_path: Path) -> None:
    predictions = write(tmp_path / "a.parquet", [{"study_id": float(i), "hyp": HEART} for i in (1, 2, 30)])
    references = write(tmp_path / "b.csv", [{"id": i, "report": LUNGS} for i in ("001", "s2", "30.0", "4")])
    pairs = read_pairs(predictions, references=str(references))
    assert texts(pairs) == [(i, HEART, LUNGS) for i in ("1", "2", "30")]
    assert "3 of 3 found; 3 of them by ids written otherwise (12, 12.0, 0012)" in pairs.said[1]


def test_ids_of_other_types_in_a_studies_table(tmp_path: Path) -> None:
    predictions = write(tmp_path / "a.json", [{"id": i, "hyp": HEART} for i in (50000001, 2, 3)])
    studies = [
        Study("s50000001", report=LUNGS),
        Study("02", report="a"),
        Study("002", report="b"),
        Study("3", report="c"),
    ]
    write_studies(tmp_path / "table", "test", [*studies, Study("03", report="d")], 0)
    pairs = read_pairs(predictions, studies=str(tmp_path / "table"))
    assert texts(pairs) == [("50000001", HEART, LUNGS), ("3", HEART, "c"), ("2", HEART, "")]


def test_the_first_few(tmp_path: Path) -> None:
    for name, text in (("res", HEART), ("gts", LUNGS)):
        pd.DataFrame([text] * 5).to_csv(tmp_path / f"{name}.csv", index=False, header=False)
    pairs = read_pairs(tmp_path / "res.csv", references=str(tmp_path / "gts.csv"), limit=2)
    assert texts(pairs) == [(f"row{i}", HEART, LUNGS) for i in (1, 2)] and pairs.said[-1] == "the first 2 of 5 only"


def test_a_truth_column_that_is_set_is_that_of_the_references(tmp_path: Path) -> None:
    predictions = write(tmp_path / "a.csv", [{"id": "1", "hyp": HEART, "ref": "x"}])
    references = write(tmp_path / "b.csv", [{"id": "1", "gold": LUNGS, "report": "y"}])
    settings = EvaluateConfig(columns=ColumnsConfig(truth="gold"))
    assert texts(read_pairs(predictions, references=str(references), settings=settings)) == [("1", HEART, LUNGS)]


def test_ambiguous_ids_match_nothing(tmp_path: Path) -> None:
    predictions = write(tmp_path / "a.json", [{"id": i, "hyp": HEART} for i in ("7", "007", "8", "9")])
    rows = [{"id": "7.0", "report": "x"}, {"id": "08", "report": "y"}, {"id": "008", "report": "z"}]
    references = write(tmp_path / "b.json", [*rows, {"id": "9", "report": "exact"}, {"id": "09", "report": "loose"}])
    pairs = read_pairs(predictions, references=str(references))
    assert [(pair.study_id, pair.reference) for pair in pairs.pairs] == [("9", "exact")]
    assert pairs.said[1].endswith("1 of 4 found; 1 ids match several texts and are left out")
    assert pairs.without_reference == 3


def test_references_that_contradict_themselves(tmp_path: Path) -> None:
    predictions = write(tmp_path / "a.json", {"s1": "x", "s2": "y"})
    references = write(
        tmp_path / "b.csv", [{"id": i, "report": f"text {n}"} for n, i in enumerate(("s1", "s1", "s2", "s2"))]
    )
    with pytest.raises(InputError, match=r"2 ids are in .* more than once, with different texts\n  where: s1, s2"):
        read_pairs(predictions, references=str(references))
    write(references, [{"id": "a", "report": "x y"}])
    with pytest.raises(InputError) as error:
        read_pairs(predictions, references=str(references))
    assert "none of the 2 predictions has a reference in" in error.value.what
    assert error.value.where == "ids there (id): a …; ids of the predictions: s1, s2 …"


def test_no_truth_at_all(tmp_path: Path) -> None:
    pairs = read_pairs(write(tmp_path / "a.json", {"s1": "x", "s2": None}))
    assert pairs.pairs == [] and texts(pairs) == [("s1", "x", ""), ("s2", None, "")]
    assert pairs.said[0].endswith("truth: none; 1 without text")
    # a report is not its own reference
    pairs = read_pairs(write(tmp_path / "a.csv", [{"study_id": "s1", "report": "x"}]))
    assert texts(pairs) == [("s1", "x", "")] and pairs.said[0].endswith("text: report, truth: none")


@pytest.mark.parametrize(
    "rows", [{"train": [], "test": [{"id": "1", "report": "a"}]}, {"1": {"section_findings": "a", "report": "b"}}]
)
def test_references_are_no_predictions(tmp_path: Path, rows: Any) -> None:
    with pytest.raises(InputError, match=r"holds references, and no generated reports(.|\n)*set references="):
        read_pairs(write(tmp_path / "a.json", rows))


@given(st.integers(0, 10**12), st.integers(0, 5))
def test_one_number_in_any_writing(number: int, zeros: int) -> None:
    written = [str(number), "0" * zeros + str(number), f"{number}.0", f" s{number} "]
    assert {loose(text) for text in written} == {str(number)} and as_id(float(number)) == as_id(number) == str(number)
    assert all(Matcher(["x", text]).find(str(number)) == (text, text == str(number)) for text in written)
    assert loose(f"{number:.12e}") == str(number)


@given(st.lists(st.text(max_size=8), unique=True, max_size=8), st.text(max_size=8))
def test_a_match_is_never_ambiguous(ids: list[str], other: str) -> None:
    found, exact = Matcher(ids).find(other)
    assert exact == (other in ids)
    if exact:
        assert found == other
    else:
        alike = [study for study in ids if loose(study) == loose(other)]
        assert found == (alike[0] if len(alike) == 1 else None)


@pytest.mark.parametrize("run", ["template", "sft_rag_beam3", "copy_oracle_cw1_lr2e5_logp_top20"])
def test_published_runs(real_data: Path, run: str) -> None:
    folder = real_data / "metric_conformity" / run
    published = json.loads((folder / "scores.json").read_text())["published"]
    pairs = read_pairs(folder / "pairs.json")
    assert pairs.said == ["predictions: pairs.json, JSON by id, 382 rows; id: the entry's key, text: hyp, truth: ref"]
    generated, references = zip(*((p.generated or "", p.reference) for p in pairs.pairs), strict=True)
    scores = score_reports(generated, references, cleaner="none", meteor=False, clinical=False)
    for name, value in scores.items():
        assert value == pytest.approx(published[name.replace("BLEU", "Bleu")], abs=5e-7)


def test_r2gens_and_rexranks_lists_of_iu_x_ray(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "iu_xray"
    annotation = json.loads((folder / "annotation.json").read_text())
    path = write(tmp_path / "a.json", {entry["id"]: [entry["report"]] for entry in annotation["test"]})
    pairs = read_pairs(path, references=str(folder / "annotation.json"))
    assert len(pairs.pairs) == 590 and all(pair.generated == pair.reference for pair in pairs.pairs)
    pairs = read_pairs(path, references=str(folder / "ReXRank_IUXray_test.json"))
    assert len(pairs.pairs) == 590 and "text: section_findings; 590 of 590 found" in pairs.said[1]
