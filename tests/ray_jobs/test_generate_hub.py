"""`megpt generate checkpoint=MODEL`, with an image-text model of the hub that is no MeGPT checkpoint.

- the same table: each study once, references, failed films as error rows, the model's fingerprint in every row
- run.json names the backend and the decoding that applied, prompt included; the table can be scored
- a run that was stopped resumes to the same table; another prompt on the same output is refused
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hub_models import hub_model
from small_runs import make_studies, report_rows

from megpt.config import Config, load_config
from megpt.data.studies import write_studies
from megpt.errors import InputError
from megpt.model import fingerprint
from megpt.study import PREDICTIONS_SCHEMA, Study, View
from ray_jobs.evaluate import Evaluate
from ray_jobs.generate.job import Generate


def config(archive: Path, model: Path, output: Path, *overrides: str) -> Config:
    line = [f"source={archive}", f"checkpoint={model}", f"output={output}", "generate.split=test"]
    rules = ["generate.shard_size=4", "generate.slots=2", "generate.max_new_tokens=48", "generate.prompt=Report:"]
    return load_config(None, [*line, *rules, "generate.max_failed_fraction=0.5", *overrides])


@pytest.mark.slow
def test_a_model_of_the_hub_over_an_archive(
    ray_cluster: None, tiny_llm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = hub_model("llava", tmp_path / "model", tiny_llm)
    archive, output = tmp_path / "archive", tmp_path / "out"
    broken = Study("broken", "p", (View("film", data=b"not a film"),), report="Clear lungs.", split="test")
    write_studies(archive, "test", [*make_studies(9, "test"), broken], 0)
    assert Generate.run(config(archive, model, output), dry_run=True) == 0
    assert "num_beams=1, repetition_penalty=1.0" in capsys.readouterr().err
    assert Generate.run(config(archive, model, output)) == 0

    table = pq.read_table(output / "reports")
    assert table.schema.equals(PREDICTIONS_SCHEMA)
    rows = {row["study_id"]: row for row in report_rows(output)}
    assert len(rows) == table.num_rows == 10
    assert rows["broken"]["report"] is None and rows["broken"]["error"].startswith("not a JPEG")
    assert all(row["model"] == fingerprint(model) and row["prompt_id"] is None for row in rows.values())
    assert all(row["reference"] for row in rows.values())
    run = json.loads((output / "run.json").read_text())
    assert (run["backend"], run["decoding"]["num_beams"], run["decoding"]["prompt"]) == ("hf", 1, "Report:")

    (output / "_SUCCESS").unlink()
    (output / "reports" / "part-000001.parquet").unlink()
    assert Generate.run(config(archive, model, output)) == 0
    assert {row["study_id"]: row for row in report_rows(output)} == rows
    with pytest.raises(InputError, match=r"generate\.prompt|exists from another config"):
        Generate.run(config(archive, model, output, "generate.prompt=Findings:"))

    scored = [f"predictions={output}", f"output={tmp_path / 'scores'}", "evaluate.meteor=false"]
    further = [f"studies={archive}", f"checkpoint={model}", "evaluate.bootstrap=20"]
    assert Evaluate.run(load_config(None, [*scored, *further])) == 0
    assert json.loads((tmp_path / "scores" / "metrics.json").read_text())["n"] == 10
