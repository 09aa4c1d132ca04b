"""The shipped configs.

- every file in configs/ is read without complaint, and its header names itself in its commands
- the paper's six runs have the published settings, in each of the three alignment modes
- their batches divide among the published number of GPUs
- they name encoder weights that exist, and an architecture that can be planned offline
"""

from __future__ import annotations

from pathlib import Path

import pytest

from megpt.config import Config, load_config

ROOT = Path(__file__).parents[1]
ALL = sorted((ROOT / "configs").glob("*.yaml"))
MODES = ("shallow", "delta", "deep")
PUBLISHED = {
    "iu_xray": {
        "cluster.num_workers": 2,
        "data.cleaner": "r2gengpt-iu",
        "train.epochs": 15,
        "train.global_batch_size": 16,
        "train.max_report_tokens": 60,
        "train.val_every": 130,
        "generate.min_new_tokens": 40,
        "generate.max_new_tokens": 100,
    },
    "mimic_cxr": {
        "cluster.num_workers": 4,
        "data.cleaner": "r2gengpt-mimic",
        "train.epochs": 5,
        "train.global_batch_size": 32,
        "train.max_report_tokens": 100,
        "train.val_every": 0.5,
        "generate.min_new_tokens": 80,
        "generate.max_new_tokens": 120,
    },
}
BOTH = {
    "cluster.gpus_per_worker": 1,
    "data.section": "findings",
    "model.vision": "swin_base_patch4_window7_224.ms_in1k",
    "model.image_size": 224,
    "model.llm": "meta-llama/Llama-2-7b-chat-hf",
    "model.llm_lora": False,
    "model.fem": True,
    "model.doconv": True,
    "model.dynamic_prompt": True,
    "fit_prompts.num_clusters": 12,
    "train.precision": "bf16",
    "train.lr": 1e-4,
    "train.min_lr": 1e-6,
    "train.warmup_steps": 0,
    "train.l2": 1e-5,
    "train.best_metric": "(BLEU_4 + CIDEr) / 2",
    "generate.num_beams": 3,
    "generate.repetition_penalty": 2.0,
    "generate.length_penalty": 2.0,
}


def value(config: Config, key: str) -> object:
    section, leaf = key.split(".")
    return getattr(getattr(config, section), leaf)


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_reads(path: Path):
    config = load_config(path)
    assert load_config(None, []) != config
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"--config configs/{path.name}" in line for line in header)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("data", PUBLISHED)
def test_published_settings(data: str, mode: str):
    config = load_config(ROOT / "configs" / f"{data}_{mode}.yaml")
    expected = {**BOTH, **PUBLISHED[data], "model.mode": mode}
    assert {key: value(config, key) for key in expected} == expected
    if mode == "delta":
        assert (config.model.lora_rank, config.model.lora_alpha) == (16, 16)
    assert config.train.global_batch_size // config.cluster.max_workers == 8
    # One prepared table and one set of prompts serve all three modes; each mode has its own outputs.
    assert config.studies == f"runs/{data}/studies" and config.prompts == f"runs/{data}/prompts"
    assert config.checkpoint == f"runs/{data}/{mode}/checkpoint"


def test_modes_differ_in_nothing_else():
    for data in PUBLISHED:
        trees = [load_config(ROOT / "configs" / f"{data}_{mode}.yaml").model_dump() for mode in MODES]
        for tree in trees:
            for key in ("mode", "lora_dropout"):
                del tree["model"][key]
            for key in ("checkpoint", "predictions"):
                del tree[key]
            del tree["train"]["cache_features"]
        assert trees[0] == trees[1] == trees[2]


def test_names_exist():
    import timm

    from megpt.model.cost.architectures import described

    for path in ALL:
        model = load_config(path).model
        if model.vision_weights == "pretrained":
            assert timm.is_model_pretrained(model.vision), path
        if "_shallow" in path.stem or "_delta" in path.stem or "_deep" in path.stem:
            assert model.llm in described()
