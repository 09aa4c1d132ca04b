"""Every job at its smallest, and a folder with an input of every kind for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from reference_layout import GEOMETRY, IMAGE_SIZE, Reference, save_reference
from safetensors.torch import save_file
from small_runs import film, make_studies

from megpt.data.studies import write_studies
from megpt.model.reference.swin import swin_to_timm
from megpt.study import PREDICTIONS_SCHEMA

ENCODER = ["model.vision=test_vit", "model.vision_weights=none", "model.image_size=32"]


@dataclass(frozen=True)
class Case:
    """How one job is run at its smallest, and how it is led astray. Paths are relative to the test's own folder."""

    arguments: tuple[str, ...]
    bad: tuple[str, str]
    """An argument that makes an input unusable, and the first words of the error."""
    unread: str
    """A setting that the job does not read."""
    changed: tuple[str, str] = ("", "")
    """Another setting, and the difference that is shown."""
    spoil: Callable[[Path], Any] | None = None
    """Changes an input that the output depends on."""
    began: str = "megpt.yaml"
    """A file by which work is known to have begun."""
    results: tuple[str, ...] = field(default=())
    """Files that do not depend on how often the job was stopped."""


CASES = {
    "prepare": Case(
        ("source=archive", "prepare.image_size=32", "prepare.shard_size=2", "prepare.max_failed_fraction=0.5"),
        bad=("source=nowhere", "no archive at nowhere"),
        unread="model.llm=x",
        changed=("prepare.image_size=24", "prepare.image_size: 32 → 24"),
        began=".work/done/*.json",
        results=("data/split=*/*.parquet", "README.md"),
    ),
    "fit-prompts": Case(
        ("studies=studies", "fit_prompts.num_clusters=2", *ENCODER),
        bad=("limit=1", "fit_prompts.num_clusters = 2, but there are only 1 training studies"),
        unread="model.llm=x",
        changed=("fit_prompts.terms=2", "fit_prompts.terms: 6 → 2"),
        spoil=lambda here: write_studies(here / "studies", "train", make_studies(13), 0),
        results=("prompts.yaml", "centroids.safetensors"),
    ),
    "train": Case(
        (
            *("studies=studies", "model.llm=llm", "model.dynamic_prompt=false", *ENCODER, "train.loggers=[]"),
            *("train.max_steps=12", "train.save_every=2", "train.log_every=1", "train.global_batch_size=8"),
        ),
        bad=("cluster.num_workers=3", "train.global_batch_size = 8 cannot be divided among 3 workers"),
        unread="predictions=x",
        changed=("train.lr=0.5", "train.lr: 0.0001 → 0.5"),
        spoil=lambda here: write_studies(here / "studies", "train", make_studies(13), 0),
        began="steps/step-*",
        results=("model.safetensors",),
    ),
    "generate": Case(
        (
            *("studies=studies", "checkpoint=checkpoint", "generate.split=train", "generate.shard_size=2"),
            *("generate.min_new_tokens=2", "generate.max_new_tokens=8"),
        ),
        bad=("generate.split=test", "no stud"),
        unread="prompts=x",
        changed=("generate.num_beams=2", "generate.num_beams: 3 → 2"),
        began="reports/*.parquet",
        results=("reports/*.parquet", "failed.parquet"),
    ),
    "evaluate": Case(
        ("predictions=predictions", "studies=studies", "evaluate.meteor=false", "evaluate.bootstrap=20"),
        bad=("predictions=studies", "studies is a studies/ table, not predictions"),
        unread="train.lr=1",
        changed=("data.cleaner=r2gen-iu", "data.cleaner: 'none' → 'r2gen-iu'"),
        spoil=lambda here: write_predictions(here / "predictions", 7),
        results=("per_study.parquet",),
    ),
    "compare": Case(
        ("predictions", "predictions", "studies=studies", "evaluate.meteor=false", "evaluate.bootstrap=20"),
        bad=("nowhere", "no predictions at nowhere"),
        unread="train.lr=1",
        changed=("data.cleaner=r2gen-iu", "data.cleaner: 'none' → 'r2gen-iu'"),
        spoil=lambda here: write_predictions(here / "predictions", 7),
        results=("per_study.parquet", "compare.json"),
    ),
    "ablate": Case(
        (
            *("studies=studies", "model.llm=llm", *ENCODER, "generate.split=val"),
            "ablate.variants={no_fem: {model.fem: false}}",
        ),
        bad=("ablate.variants={}", "`ablate.variants` and `ablate.grid` are empty"),
        unread="phantom.broken=1",
    ),
    "run": Case(
        ("source=archive",),
        bad=("source=nowhere", "no archive at nowhere"),
        unread="prompts=x",
    ),
    "language-model": Case(
        (
            *("studies=studies", "language_model.steps=40", "language_model.hidden_size=32"),
            *("language_model.num_heads=2", "language_model.val_every=20"),
        ),
        bad=("studies=nowhere", "no studies/ table at nowhere"),
        unread="model.llm=x",
        changed=("language_model.lr=0.5", "language_model.lr: 0.002 → 0.5"),
        spoil=lambda here: write_studies(here / "studies", "train", make_studies(13), 0),
        results=("*.safetensors", "tokenizer.json"),
    ),
    "pretrained": Case(
        ("run.encoder=packaged",),
        bad=("cluster.num_workers=0", "cluster.num_workers = 0: "),
        unread="train.lr=1",
    ),
    "demo": Case(
        ("phantom.num_studies=20",),
        bad=("cluster.num_workers=3", "train.global_batch_size = 16 cannot be divided among 3 workers"),
        unread="prompts=x",
    ),
    "export": Case(
        ("checkpoint=checkpoint", "full=true", "dtype=bf16"),
        bad=("checkpoint=nowhere", "no checkpoint at nowhere"),
        unread="train.lr=1",
        changed=("merge=true", "export.merge: False → True"),
        results=("model.safetensors",),
    ),
    "import-checkpoint": Case(
        (
            *("reference.pth", f"model.vision_args={GEOMETRY}", "model.vision_weights=encoder.safetensors"),
            *(f"model.image_size={IMAGE_SIZE}", "model.llm=llm"),
        ),
        bad=("model.llm=nowhere", ""),
        unread="train.lr=1",
        changed=("import_checkpoint.merge_lora=true", "import_checkpoint.merge_lora: False → True"),
        results=("model.safetensors",),
    ),
}


def add_study(archive: Path, count: int = 1) -> None:
    """An archive of drawn noise, two studies a patient, the fourth without its film; or more of it."""
    (archive / "films").mkdir(parents=True, exist_ok=True)
    manifest = archive / "manifest.csv"
    if not manifest.exists():
        manifest.write_text("study_id,image_path,subject_id,report\n")
    rng, first = np.random.default_rng(0), len(manifest.read_text().splitlines()) - 1
    with manifest.open("a") as file:
        for number in range(first, first + count):
            if number != 3:
                (archive / "films" / f"{number}.jpg").write_bytes(film(rng, 400))
            file.write(f"s{number:03},films/{number}.jpg,p{number // 2},Clear lungs.\n")


def write_predictions(folder: Path, count: int = 6) -> None:
    (folder / "reports").mkdir(parents=True, exist_ok=True)
    rows = [
        {"study_id": f"s{n}", "subject_id": f"p{n}", "image_ids": ["i"], "report": "Clear lungs.", "model": "abc"}
        | {"reference": "Clear lungs.", "prompt_id": 0, "num_tokens": 5, "finish_reason": "stop", "error": None}
        for n in range(count)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=PREDICTIONS_SCHEMA), folder / "reports" / "part-000000.parquet")
    (folder / "_SUCCESS").write_text("{}\n")


def make_world(here: Path, llm: Path, checkpoint: Path) -> None:
    """An archive, studies, predictions, a reference checkpoint; a language model and a checkpoint by link."""
    add_study(here / "archive", 40)
    write_studies(here / "studies", "train", make_studies(12), 0)
    write_studies(here / "studies", "val", make_studies(3, "val"), 0)
    write_predictions(here / "predictions")
    (here / "llm").symlink_to(llm)
    (here / "checkpoint").symlink_to(checkpoint)
    torch.manual_seed(3)
    reference = Reference(llm, megpt=True).eval()
    save_reference(reference, here / "reference.pth", mode="shallow")
    mapped = swin_to_timm(reference.visual_encoder.state_dict())[0]
    save_file({name: tensor.contiguous() for name, tensor in mapped.items()}, here / "encoder.safetensors")
