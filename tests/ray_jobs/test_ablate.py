"""The plan of an ablation, and one carried out.

- each variant runs with each seed, the first seed of all variants first; a run's config is the variant's
- a grid has a variant for each combination; the one that equals the base is said and not run again
- steps that give the same result are done once: prompts of one encoder, checkpoints of variants that only decode
  otherwise; a variant with another encoder, or a drawn one with another seed, fits prompts of its own
- given prompts are used where they fit
- what would make scores incomparable, change nothing, or escape the folder is refused by name
- the dry run says how many runs there are, what differs and what is shared
- the shipped ablation is the paper's: six variants, three seeds, one set of prompts a seed
- a run that fails is named (exit code 3), the others go on; the same command tries it again and leaves what is done
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from job_promises import check_done, contents
from small_runs import make_studies

from megpt.config import Config, load_config
from megpt.data.studies import write_studies
from megpt.errors import InputError
from megpt.output import claim
from ray_jobs.__main__ import main
from ray_jobs.ablate.job import Ablate
from ray_jobs.ablate.plan import Plan, plan
from ray_jobs.evaluate import Evaluate
from ray_jobs.fit_prompts import FitPrompts
from ray_jobs.generate.job import Generate
from ray_jobs.train.job import Train

PRETRAINED = "model.vision_weights=pretrained"


def planned(*overrides: str) -> Plan:
    return plan(load_config(None, ["output=out", "studies=studies", *overrides]))


def own_steps(found: Plan) -> dict[str, list[str]]:
    """Run → the jobs that are done for it, and by no earlier run."""
    return {
        run.title: [step.job.name for step in run.steps if step.owner == run.title and step.job is not Evaluate]
        for run in found.runs
    }


def test_every_variant_runs_with_every_seed() -> None:
    found = planned("ablate.variants={b: {model.fem: false}, c: {train.lr: 0.5}}", "ablate.seeds=[7, 8]")
    assert [run.title for run in found.runs] == [
        *("base, seed 7", "b, seed 7", "c, seed 7", "base, seed 8", "b, seed 8", "c, seed 8")
    ]
    b = found.runs[4]
    own = [step.config for step in b.steps if step.owner == b.title]
    assert len(own) == 3 and all(config.seed == 8 and config.model.fem is False for config in own)
    assert b.folder(Train) == Path("out/b/seed-8/checkpoint")
    generate = next(step.config for step in b.steps if step.job is Generate)
    assert (generate.checkpoint, generate.output) == ("out/b/seed-8/checkpoint", "out/b/seed-8/predictions")
    assert [variant.changes for variant in found.variants] == [
        (),
        ("model.fem: True → False",),
        ("train.lr: 0.0001 → 0.5",),
    ]


def test_a_grid_has_each_combination_once() -> None:
    found = planned("ablate.grid={train.lr: [1e-4, 3e-4], model.fem: [true, false]}", "ablate.seeds=[1]")
    assert [variant.name for variant in found.variants] == [
        *("base", "lr-0.0001_fem-false", "lr-0.0003_fem-true", "lr-0.0003_fem-false")
    ]
    assert found.merged == {"lr-0.0001_fem-true": "base"}
    last = found.variants[-1].config
    assert (last.train.lr, last.model.fem) == (3e-4, False)
    # Last parts that are alike keep their sections, and values that cannot be in a name do not clash.
    found = planned("ablate.grid={train.precision: [bf16], generate.precision: [bf16, fp32]}", "ablate.seeds=[1]")
    assert [v.name for v in found.variants[1:]] == [
        *("train.precision-bf16_generate.precision-bf16", "train.precision-bf16_generate.precision-fp32")
    ]
    found = planned("ablate.grid={model.llm: [a/b, ab]}", "ablate.seeds=[1]")
    assert [v.name for v in found.variants[1:]] == ["llm-ab", "llm-ab-1"]


def test_what_does_not_differ_is_done_once() -> None:
    variants = "{lr: {train.lr: 0.5}, beams: {generate.num_beams: 1}, k: {fit_prompts.num_clusters: 3}}"
    found = planned(f"ablate.variants={variants}", "ablate.seeds=[1]")
    assert own_steps(found) == {
        "base, seed 1": ["fit-prompts", "train", "generate"],
        "lr, seed 1": ["train", "generate"],
        "beams, seed 1": ["generate"],
        "k, seed 1": ["fit-prompts", "train", "generate"],
    }
    beams = next(run for run in found.runs if run.variant == "beams")
    assert beams.folder(Train) == Path("out/base/seed-1/checkpoint")
    assert beams.folder(Generate) == Path("out/beams/seed-1/predictions")
    # With validation reports are written while training, so that decoding is a part of it.
    found = planned("ablate.variants={beams: {generate.num_beams: 1}}", "ablate.seeds=[1]", "train.val_every=1")
    assert own_steps(found)["beams, seed 1"] == ["train", "generate"]


def test_prompts_belong_to_an_encoder() -> None:
    prompts = ("prompts=mine", "ablate.variants={fem: {model.fem: false}, other: {model.image_size: 96}}")
    found = planned(*prompts, PRETRAINED, "ablate.seeds=[1, 2]")
    fitted = {run.title for run in found.runs for step in run.steps if step.job is FitPrompts}
    assert fitted == {"other, seed 1", "other, seed 2"}
    trained = {run.title: next(s.config.prompts for s in run.steps if s.job is Train) for run in found.runs}
    assert trained["fem, seed 2"] == "mine" and trained["other, seed 2"] == "out/other/seed-2/prompts"
    # A drawn encoder is another one with another seed.
    found = planned(*prompts, "model.vision_weights=none", "seed=2", "ablate.seeds=[1, 2]")
    trained = {run.title: next(s.config.prompts for s in run.steps if s.job is Train) for run in found.runs}
    assert (trained["fem, seed 1"], trained["fem, seed 2"]) == ("out/base/seed-1/prompts", "mine")


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["ablate.variants={}"], "`ablate.variants` and `ablate.grid` are empty"),
        (["ablate.variants={base: {model.fem: false}}"], "'base' cannot name a variant"),
        (["ablate.variants={../x: {model.fem: false}}"], "'../x' cannot name a variant"),
        (["ablate.variants={x: {seed: 3}}"], "seed cannot differ between variants\n  where: ablate.variants.x"),
        (["ablate.variants={x: {output: y}}"], "output cannot differ between variants"),
        (["ablate.variants={x: {cluster: {num_workers: 2}}}"], "cluster.num_workers cannot differ"),
        (["ablate.variants={x: {data.cleaner: r2gen-iu}}"], "data.cleaner cannot differ between variants"),
        (["ablate.grid={evaluate.bootstrap: [10, 20]}"], "evaluate.bootstrap cannot differ between variants"),
        (["ablate.grid={generate.split: [val, test]}"], "generate.split cannot differ between variants"),
        (["ablate.variants={x: {model.femm: false}}"], "unknown key 'model.femm'\n  where: ablate.variants.x"),
        (["ablate.grid={train.lr: [-1]}"], "train.lr = -1: Input should be greater than 0\n  where: ablate.grid"),
        (["ablate.grid={train.lr: []}"], "grid.train.lr must list different values"),
        (["ablate.grid={train.lr: [1, 1.0]}"], "grid.train.lr must list different values"),
        (["ablate.variants={x: {model.fem: true}}"], "'x' gives the same result as 'base'\n  cause: it changes no"),
        (
            ["ablate.variants={x: {train.lr: 0.5}, y: {train.lr: 0.5, train.log_every: 7}}"],
            "'y' gives the same result as 'x'",
        ),
        (["ablate.grid={model.fem: [true]}"], "every combination equals the base"),
        (["ablate.grid={train.lr: [1.0]}", "ablate.seeds=[1, 1]"], "seeds must be different numbers"),
        (["ablate.grid={train.lr: [1.0]}", "ablate.seeds=[]"], "seeds must be different numbers"),
        ([f"ablate.grid={{train.warmup_steps: {list(range(400))}}}"], "ablate.grid means 1200 runs, more than 1000"),
    ],
)
def test_what_is_refused(overrides: list[str], text: str) -> None:
    with pytest.raises(InputError) as caught:
        planned(*overrides)
    assert text in str(caught.value)


def test_a_section_may_be_overridden_as_a_mapping() -> None:
    found = planned("ablate.variants={x: {model: {fem: false, doconv: false}}}")
    assert found.variants[1].changes == ("model.doconv: True → False", "model.fem: True → False")


def test_the_shipped_ablation_is_the_paper_s() -> None:
    config = load_config("ablation", ["output=out"])
    found = plan(config)
    assert {
        v.name: (v.config.model.fem, v.config.model.doconv, v.config.model.dynamic_prompt, v.config.train.l2)
        for v in found.variants
    } == {
        "base": (False, False, False, 0.0),
        "fem": (True, False, False, 0.0),
        "doconv": (False, True, False, 0.0),
        "dynamic_prompt": (False, False, True, 0.0),
        "l2": (False, False, False, 1e-5),
        "all": (True, True, True, 1e-5),
    }
    assert found.steps == {"fit-prompts": 3, "train": 18, "generate": 18, "evaluate": 18}
    assert found.done_once() == ["all shares prompts with dynamic_prompt, seed by seed"]


@pytest.fixture
def tiny(tmp_path: Path, tiny_llm: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of an ablation at its smallest, in a folder of its own."""
    for split, count in (("train", 8), ("test", 4)):
        write_studies(tmp_path / "studies", split, make_studies(count, split), 0)
    monkeypatch.chdir(tmp_path)
    return [
        *("studies=studies", f"model.llm={tiny_llm}", "model.vision=test_vit", "model.vision_weights=none"),
        *("model.image_size=32", "model.dynamic_prompt=false", "train.max_steps=2", "train.global_batch_size=8"),
        *("train.loggers=[]", "generate.min_new_tokens=2", "generate.max_new_tokens=8", "evaluate.meteor=false"),
        *("evaluate.bootstrap=20", "ablate.variants={greedy: {generate.num_beams: 1}}", "ablate.seeds=[1]"),
    ]


def test_a_dry_run_says_what_differs(tiny: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", *tiny, "output=out", "--dry-run"]) == 0
    said = capfd.readouterr().err.splitlines()
    assert said == [
        "ablate: 2 runs: 2 variants × 1 seed (1); train once, generate 2 times, evaluate 2 times",
        "ablate: base: the config as it is",
        "ablate: greedy: generate.num_beams: 3 → 1",
        "ablate: greedy shares checkpoint with base, seed by seed",
        "ablate: would do 2 runs under out, 0 are finished",
    ]
    assert main(["ablate", *tiny, "output=out", "generate.split=val", "--dry-run"]) == 2
    assert "no studies of split 'val'" in capfd.readouterr().err


@pytest.mark.slow
def test_a_failed_run_is_named_and_tried_again(
    tiny: list[str], ray_cluster: None, capfd: pytest.CaptureFixture[str]
) -> None:
    out, config = Path("out"), load_config(None, [*tiny, "output=out"])
    obstacle = out / "greedy" / "seed-1" / "predictions" / "thesis.txt"
    _begin(config)
    obstacle.parent.mkdir(parents=True)
    obstacle.write_text("x")

    assert main(["ablate", *tiny, "output=out"]) == 3
    screen = capfd.readouterr().err
    assert "error: 1 of 2 runs failed: greedy, seed 1\n" in screen and "Traceback" not in screen
    assert not (out / "_SUCCESS").exists()
    base, failed = pq.read_table(out / "ablation.parquet").to_pylist()
    assert (base["status"], failed["status"], failed["BLEU_4"]) == ("done", "failed", None)
    assert failed["error"].startswith("generate: output out/greedy/seed-1/predictions exists and was not written")
    metrics = json.loads((out / "base" / "seed-1" / "evaluation" / "metrics.json").read_text())
    assert {name: base[name] for name in metrics["scores"]} == metrics["scores"]

    obstacle.unlink()
    before = contents(out, "base/*/*/**/*")
    assert main(["ablate", *tiny, "output=out"]) == 0
    assert contents(out, "base/*/*/**/*") == before
    rows = pq.read_table(out / "ablation.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["done", "done"]
    assert not (out / "greedy" / "seed-1" / "checkpoint").exists()
    page = (out / "index.html").read_text(encoding="utf-8")
    assert 'href="greedy/seed-1/evaluation/index.html"' in page
    check_done(capfd, "ablate", tiny, out)


def _begin(config: Config) -> None:
    """What an ablation leaves that was stopped as soon as it had begun."""
    job = Ablate(config)
    job.open()
    with claim(config.output, job=job.name, identity=job.identity(), config=config):
        pass
