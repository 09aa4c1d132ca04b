"""The clinical labeller on hard sentences, by kind: `hard_sentences.csv`, `given_sentences.csv`, `sides.csv`.

- what is there is present, and nothing else is; what is denied, doubted or set aside is not
- the side and the size of each finding
- letter case, line ends and a cleaner's punctuation do not change what a sentence says
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from megpt.evaluation.clinical import ABSENT, PRESENT, SIDES, SIZES, UNCERTAIN, label_findings, labeler
from megpt.study import CHEXPERT

HERE = Path(__file__).parent


def rows(name: str) -> list[dict[str, str]]:
    with (HERE / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def names(cell: str) -> list[str]:
    return [name for name in cell.split(";") if name]


HARD, GIVEN, SIDED = rows("hard_sentences.csv"), rows("given_sentences.csv"), rows("sides.csv")


def test_each_kind_has_several_sentences() -> None:
    kinds = [row["kind"] for row in HARD]
    assert len(HARD) >= 200 and min(kinds.count(kind) for kind in kinds) >= 3
    assert {name for row in HARD for cell in list(row.values())[2:] for name in names(cell)} <= set(CHEXPERT)


@pytest.mark.parametrize("row", HARD, ids=lambda row: f"{row['kind']}: {row['sentence'][:50]}")
def test_hard_sentence(row: dict[str, str]) -> None:
    found = labeler().label(row["sentence"])
    for column, value in (("present", PRESENT), ("absent", ABSENT), ("uncertain", UNCERTAIN)):
        assert {name: found.get(name) for name in names(row[column])} == dict.fromkeys(names(row[column]), value)
    present = {name for name, value in found.items() if value == PRESENT}
    assert present - {"No Finding"} == set(names(row["present"])) - {"No Finding"}
    assert not present & set(names(row["not_present"]))


@pytest.mark.parametrize("row", GIVEN, ids=lambda row: row["sentence"][:50])
def test_given_sentence(row: dict[str, str]) -> None:
    found = labeler().label(row["sentence"])
    for column, value in (("positive", PRESENT), ("negative", ABSENT), ("uncertain", UNCERTAIN)):
        assert {name: found.get(name) for name in names(row[column])} == dict.fromkeys(names(row[column]), value)
    assert not [name for name in names(row["must_not_be_positive"]) if found.get(name) == PRESENT]


@pytest.mark.parametrize("row", SIDED, ids=lambda row: row["sentence"][:50])
def test_side_and_size(row: dict[str, str]) -> None:
    found = label_findings([row["sentence"]])
    for column, table, cells in (("sides", SIDES, found.sides), ("sizes", SIZES, found.sizes)):
        wanted = dict(pair.split("=") for pair in names(row[column] or ""))
        assert {name: table[int(cells[0, CHEXPERT.index(name)])] for name in wanted} == wanted


@pytest.mark.parametrize("row", SIDED, ids=lambda row: row["sentence"][:50])
def test_form_does_not_matter(row: dict[str, str]) -> None:
    text = row["sentence"]
    wanted = label_findings([text])
    for other in (text.upper(), text.replace(" ", "\n"), f"  {text}  ", f"Stable chest. {text}"):
        found = label_findings([other])
        assert (found.labels == wanted.labels).all() and (found.sides == wanted.sides).all(), other
