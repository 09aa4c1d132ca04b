"""compare: predictions/ folders → compare.json, per_study.parquet.

- `megpt compare A B output=…` takes paths and overrides in any order; a folder against itself differs by nothing
- the page has the systems side by side, and their differences
- what was found is said; running again finds nothing to do; other predictions on the same output are refused
- one path, a folder that is not finished, no study in common: exit code 2, nothing written; --dry-run writes nothing
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from test_evaluate import predictions, row

from megpt.study import CHEXPERT
from ray_jobs.__main__ import main

FEW = ["evaluate.meteor=false", "evaluate.bootstrap=50"]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    first = predictions(tmp_path / "first", [row(n, subject_id=f"p{n // 2}") for n in range(10)])
    rows = [row(n, report="No.", reference=row(n)["reference"], subject_id=f"p{n // 2}") for n in range(8)]
    return str(first), str(predictions(tmp_path / "second", rows))


@pytest.mark.slow
def test_compare(
    folders: tuple[str, str], tmp_path: Path, in_both_places: str, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second = folders
    out = tmp_path / "out"
    command = ["compare", first, *FEW, second, f"output={out}"]
    assert main(command) == 0
    result = json.loads((out / "compare.json").read_text())
    assert (result["n"], result["n_patients"], list(result["systems"])) == (8, 4, [first, second])
    assert result["left_out"]["not_in_all"][first] == {"n": 2, "study_ids": ["s8", "s9"]}
    (pair,) = result["comparisons"]
    assert pair["scores"]["ROUGE_L"]["difference"] > 0.8 and pair["scores"]["ROUGE_L"]["p"] == pytest.approx(
        1 / 8, abs=0.02
    )
    table = pq.read_table(out / "per_study.parquet")
    assert table[f"generated:{second}"].to_pylist() == ["No."] * 8
    assert set(table["labels:" + first].to_pylist()[0]) == set(CHEXPERT)
    html = (out / "index.html").read_text()
    assert "Differences" in html and "p, corrected (Holm)" in html and f"{first} [95 % interval]" in html
    said = capfd.readouterr().err
    assert f"compare: ROUGE_L: {first} - {second} = +" in said.replace("\n", "") and "effusion" not in said
    assert main(command) == 0 and "nothing to do" in capfd.readouterr().err
    assert main(["compare", second, first, *FEW, f"output={out}"]) == 2

    assert main(["compare", first, first, *FEW, f"output={tmp_path / 'same'}"]) == 0
    result = json.loads((tmp_path / "same/compare.json").read_text())
    assert list(result["systems"]) == [first, f"{first} (2)"]
    rows = [r for r in result["comparisons"][0]["scores"].values() if r is not None]
    assert rows and all(r == {"difference": 0, "interval": [0, 0], "p": 1, "p_holm": 1} for r in rows)


def test_bad_input(folders: tuple[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first, second = folders
    out = f"output={tmp_path / 'out'}"
    half = predictions(tmp_path / "half", [row(0)], finished=False)
    for arguments, text in (
        ([out], "compare needs two predictions/ folders or more"),
        ([first, out], "compare needs two predictions/ folders or more"),
        ([first, second], "`output` is not set"),
        ([first, str(half), out], "are not finished"),
        ([first, str(tmp_path / "nowhere"), out], "no predictions at"),
        ([first, "--frist", second, out], "cannot read '--frist'"),
    ):
        assert main(["compare", *arguments]) == 2
        assert text in capfd.readouterr().err.replace("\n", " ")
    assert main(["compare", first, second, out, "--dry-run"]) == 0
    assert "would compare" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
