"""What an ablation writes, from the metrics of its runs.

- ablation.parquet has a row a run with every score; a failed and a waiting run have none, and say so
- summary.parquet has means, intervals and paired differences over the seeds that both have, and over patients
- the page has them too, says what failed and what is not above a baseline, escapes what it shows, and links only to
  pages that are there
- in a real Chromium: no script, no violation that axe-core finds in light, dark and at 390 px, nothing wider than the
  screen, and everything on paper
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from megpt.config import load_config
from megpt.evaluation.statistics import SCORES
from megpt.output import write_text
from ray_jobs.ablate.plan import plan
from ray_jobs.ablate.results import Outcome, Results, read_summary, screen_table

ROUGE = {"base": {1: 0.30, 2: 0.32, 3: 0.31}, "lr": {1: 0.35, 2: 0.36, 3: 0.37}}
PATIENTS = {"difference": 0.05, "interval": [0.02, 0.08], "p": 0.0004, "p_holm": 0.0021}
CHANGES = "{fem: {model.fem: false}, lr: {train.lr: 0.5}}"


def metrics(rouge: float) -> dict[str, Any]:
    scores = dict.fromkeys(SCORES, 0.25 - rouge * 1e-7) | {"METEOR": None, "ROUGE_L": rouge, "mine": 2.0}
    baselines = {"constant": dict.fromkeys(SCORES, 0.125) | {"ROUGE_L": 0.33}, "permuted": None}
    return {"scores": scores, "baselines": baselines, "n": 5, "n_failed": 1, "signature": "BLEU-4|n:5"}


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Of `fem` one run failed, one is poor, one waits."""
    config = load_config(None, [f"output={tmp_path}", "studies=s", f"ablate.variants={CHANGES}"])
    planned, outcomes = plan(config), {}
    for run in planned.runs:
        if run.variant != "fem":
            outcomes[run.title] = Outcome("done", metrics=metrics(ROUGE[run.variant][run.seed]))
            write_text(run.steps[-1].folder / "index.html", "<title>run</title>")
    outcomes["fem, seed 1"] = Outcome("failed", error="train: <b>no room</b> for 9 workers")
    outcomes["fem, seed 2"] = Outcome("poor", error="3 of 5 studies failed", metrics=metrics(0.31))
    return Results(planned, outcomes, config, {"lr": {"ROUGE_L": PATIENTS}, "fem": "no study in common"})


def test_a_row_a_run(results: Results, tmp_path: Path) -> None:
    results.write(tmp_path)
    rows = {(row["variant"], row["seed"]): row for row in pq.read_table(tmp_path / "ablation.parquet").to_pylist()}
    assert len(rows) == 9
    done, failed, poor, waiting = rows["lr", 2], rows["fem", 1], rows["fem", 2], rows["fem", 3]
    assert (done["status"], done["ROUGE_L"], done["METEOR"], done["mine"]) == ("done", 0.36, None, 2.0)
    assert (done["n"], done["n_failed"], done["folder"]) == (5, 1, "lr/seed-2")
    assert done["changes"] == "train.lr: 0.0001 → 0.5"
    assert (failed["status"], failed["error"]) == ("failed", "train: <b>no room</b> for 9 workers")
    assert (poor["status"], poor["ROUGE_L"], waiting["status"]) == ("poor", 0.31, "waiting")
    assert all(row[name] is None for row in (failed, waiting) for name in (*SCORES, "mine", "n"))


def test_a_row_a_variant_and_score(results: Results, tmp_path: Path) -> None:
    results.write(tmp_path)
    rows = {(row["variant"], row["score"]): row for row in read_summary(tmp_path)}
    assert len(rows) == 3 * (len(SCORES) + 1)
    found = rows["lr", "ROUGE_L"]
    ours, theirs = (list(ROUGE[name].values()) for name in ("lr", "base"))
    low, high = stats.t.interval(0.95, 2, loc=np.mean(ours), scale=stats.sem(ours))
    assert [found[name] for name in ("seeds", "mean", "low", "high")] == pytest.approx([3, np.mean(ours), low, high])
    test = stats.ttest_rel(ours, theirs)
    interval = test.confidence_interval(0.95)
    assert [found[f"difference{end}"] for end in ("", "_low", "_high", "_p")] == pytest.approx(
        [np.mean(ours) - np.mean(theirs), interval.low, interval.high, test.pvalue]
    )
    assert [found[f"patients_{name}"] for name in ("difference", "low", "high", "p", "p_holm")] == [
        *(0.05, 0.02, 0.08, 0.0004, 0.0021)
    ]
    one = rows["fem", "ROUGE_L"]
    assert (one["seeds"], one["mean"], one["low"], one["paired_seeds"]) == (1, 0.31, None, 1)
    assert one["difference"] == pytest.approx(0.31 - 0.32) and one["patients_difference"] is None
    assert rows["base", "ROUGE_L"]["difference"] is None and rows["lr", "METEOR"]["mean"] is None


def test_the_page_says_it(results: Results, tmp_path: Path) -> None:
    results.write(tmp_path)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "For research only, not for clinical decisions." in page and "<script" not in page
    assert "0.360 <span" in page and "+0.050" in page and "p = 0.002" in page and "p = 0.013" in page
    assert "<b>no room" not in page and "&lt;b&gt;no room&lt;/b&gt; for 9 workers" in page
    assert "Failed, and counted nowhere: fem with seed 1." in page and "Not done yet: fem with seed 3." in page
    assert 'href="lr/seed-1/evaluation/index.html"' in page and 'href="fem/' not in page
    assert "not above every baseline in each score, see the red means: base, fem." in page.replace("Not", "not")
    assert '<td class="bad">0.310' in page and "<td>0.360" in page
    assert "-0.000" not in page
    assert "baseline: constant" in page and "baseline: permuted" not in page
    assert "No comparison over patients: no study in common" in page and "BLEU-4|n:5" in page
    assert "METEOR</th>" not in page, "a score that no run has takes no column"


def test_nothing_is_done_yet(results: Results, tmp_path: Path) -> None:
    Results(results.planned, {}, results.config).write(tmp_path)
    assert {row["status"] for row in pq.read_table(tmp_path / "ablation.parquet").to_pylist()} == {"waiting"}
    assert "waiting <b>9</b>" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_the_screen_has_means_and_differences(results: Results) -> None:
    table = screen_table(results.summary, 0.95)
    cells = [list(column.cells) for column in table.columns]
    assert cells[0] == ["base", "fem", "lr"]
    assert cells[3][0] == "0.310" and cells[3][1] == "0.310\n-0.010" and cells[3][2].startswith("0.360\n+0.050 ")


@pytest.mark.slow
def test_in_a_browser(results: Results, browser: Any, tmp_path: Path) -> None:
    import axe_playwright_python

    results.write(tmp_path)
    axe = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    for scheme, width in (("light", 1280), ("dark", 1280), ("light", 390)):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
        tab = context.new_page()
        tab.goto((tmp_path / "index.html").as_uri())
        tab.evaluate(axe)
        violations = tab.evaluate("axe.run()")["violations"]
        assert [(v["id"], v["nodes"][0]["html"]) for v in violations] == []
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        tab.click("a:has-text('lr, seed 2')")
        assert tab.url.endswith("/lr/seed-2/evaluation/index.html")
        context.close()
    tab = browser.new_page(viewport={"width": 700, "height": 900})  # A4 less its margins
    tab.goto((tmp_path / "index.html").as_uri())
    tab.emulate_media(media="print")
    assert tab.evaluate("[...document.querySelectorAll('table')].every(t => t.getBoundingClientRect().right <= 700)")
    assert tab.pdf(format="A4").startswith(b"%PDF")
