"""What Grafana and Prometheus are given, held to what the code exports.

- every metric of a panel and of a rule is one that a job declares, and every declared one of `generate` is shown
- promtool accepts the rules; each fires in the case it is for, and none where a job is well
- the dashboard's panels have their own places and ids, and its data source is chosen by whoever opens it
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_jobs.metrics import declared

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy" / "alerts.yaml"
NAME = re.compile(r"\bray_megpt_\w+")


def panels() -> list[dict[str, Any]]:
    tree = json.loads((ROOT / "deploy" / "grafana.json").read_text(encoding="utf-8"))
    return list(tree["panels"])


def expressions() -> list[str]:
    shown = [target["expr"] for panel in panels() for target in panel.get("targets", ())]
    tree = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    return shown + [rule["expr"] for group in tree["groups"] for rule in group["rules"]]


def test_every_metric_is_one_that_the_code_declares() -> None:
    for expression in expressions():
        names = set(NAME.findall(expression))
        assert names, expression
        assert names <= declared(), names - declared()
    shown = {name for expression in expressions() for name in NAME.findall(expression)}
    assert {name for name in declared() if "_train_" not in name} == {name for name in shown if "_train_" not in name}


def test_the_dashboard() -> None:
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not taken & cells and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"


def series(job: str, done: str, failed: str) -> list[dict[str, str]]:
    name = f"ray_megpt_{job}_studies"
    return [
        {"series": f'{name}{{SessionName="s"}}', "values": "1000x120"},
        {"series": f'{name}_done{{SessionName="s"}}', "values": done},
        {"series": f'{name}_failed{{SessionName="s",reason="missing file"}}', "values": failed},
    ]


FILMS = 'ray_megpt_generate_film_wait_s_total{SessionName="s",WorkerId="w"}'
CASES: dict[str, tuple[list[dict[str, str]], set[str]]] = {
    "a job that is well": ([*series("generate", "0+5x120", "0x120"), {"series": FILMS, "values": "0+2x120"}], set()),
    "a finished one": (series("generate", "1000x120", "10x120"), set()),
    "many failed": (series("generate", "0+5x120", "51x120"), {"MegptManyFailed"}),
    "many failed, of prepare": (series("prepare", "0+5x120", "51x120"), {"MegptManyFailed"}),
    "no study any more": (series("prepare", "400x120", "0x120"), {"MegptStandsStill"}),
    "no films": ([{"series": FILMS, "values": "0+40x120"}], {"MegptWaitsForFilms"}),
    "no number": (
        [{"series": "ray_megpt_train_loss", "values": "1" + " NaN" * 119}],
        {"MegptLossIsNoNumber", "MegptTrainingStandsStill"},
    ),
    "no step": ([{"series": "ray_megpt_train_loss", "values": "2x120"}], {"MegptTrainingStandsStill"}),
    "training waits": (
        [
            {"series": "ray_megpt_train_data_wait", "values": "0.5x120"},
            {"series": "ray_megpt_train_loss", "values": "200-1x120"},
        ],
        {"MegptTrainingWaitsForFilms"},
    ),
}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool, of the package prometheus")
def test_the_rules(tmp_path: Path) -> None:
    checked = subprocess.run(["promtool", "check", "rules", RULES], capture_output=True, text=True)
    assert checked.returncode == 0 and "6 rules found" in checked.stdout, checked.stdout + checked.stderr
    tree = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    rules = {rule["alert"]: rule for group in tree["groups"] for rule in group["rules"]}
    assert {name for _, fired in CASES.values() for name in fired} == rules.keys()
    # whether a rule fires, and not how it words it
    bare = [{key: rule[key] for key in ("alert", "expr", "for") if key in rule} for rule in rules.values()]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "megpt", "rules": bare}]}))
    tests = []
    for name, (inputs, fired) in CASES.items():
        labels = {"SessionName": "s"} if any("SessionName" in one["series"] for one in inputs) else {}
        asked = [
            {"eval_time": "100m", "alertname": alert, "exp_alerts": [{"exp_labels": labels}] if alert in fired else []}
            for alert in rules
        ]
        tests.append({"name": name, "interval": "1m", "input_series": inputs, "alert_rule_test": asked})
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": tests}))
    run = subprocess.run(["promtool", "test", "rules", tmp_path / "tests.yaml"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
